"""One delivery of a callback, to real servers: what is dialled, what is sent, and what an answer means."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from proxy.http.aiohttp_loading import trusted_context
from proxy.tasks import callback_delivery
from proxy.tasks.callback_delivery import Delivery, deliver_callback

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
BODY = json.dumps({"type": "task.succeeded", "data": {"id": "x"}}).encode()


class Receiver:
    def __init__(self) -> None:
        self.status = 204
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.port = 0
        self.location = ""
        self.hold = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        self.heard.append((request.path_qs, dict(request.headers), await request.read()))
        await asyncio.sleep(self.hold)
        return web.Response(status=self.status, headers={"Location": self.location} if self.location else {})


@asynccontextmanager
async def receiver(context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.5)  # what still holds a delivery then is nobody's
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    found.port = runner.addresses[0][1]
    try:
        yield found
    finally:
        await runner.cleanup()


async def deliver(url: str, *, hosts=("127.0.0.1",), addresses=("127.0.0.1",), secret: str = SECRET) -> Delivery:
    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return list(addresses)

    asked: list[str] = []
    found = await deliver_callback(url, BODY, "msg_1", listed_hosts=hosts, secret=secret, resolve=resolve)
    assert len(asked) <= 1  # a name is resolved once
    return found


async def test_what_arrives_is_signed_and_its_path_is_the_urls_byte_for_byte() -> None:
    async with receiver() as there:
        found = await deliver(f"http://127.0.0.1:{there.port}/a%2Fb/../c?x=%20&y=ä".replace("ä", "%C3%A4"))
        assert found == Delivery("ok", "it was answered with 204", 204)
        ((path, fields, body),) = there.heard
    assert path == "/a%2Fb/../c?x=%20&y=%C3%A4"
    assert body == BODY
    assert fields["Content-Type"] == "application/json"
    assert Webhook(SECRET).verify(body, fields) == json.loads(BODY)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (200, "ok"),
        (202, "ok"),
        (410, "gone"),
        (301, "failed"),
        (307, "failed"),
        (400, "failed"),
        (404, "failed"),
        (429, "failed"),
        (500, "failed"),
    ],
)
async def test_2xx_ends_it_410_gives_up_and_anything_else_failed(status: int, result: str) -> None:
    async with receiver() as there, receiver() as elsewhere:
        there.status, there.location = status, f"http://127.0.0.1:{elsewhere.port}/"
        found = await deliver(f"http://127.0.0.1:{there.port}/")
        assert (found.result, found.status) == (result, status)
        assert elsewhere.heard == []  # no redirect is followed


async def test_the_address_that_was_judged_is_dialled_whatever_the_name_says_elsewhere() -> None:
    async with receiver() as there:
        # The system's resolver does not know this name: only the one address that was judged can have been dialled.
        url = f"http://hooks.invalid:{there.port}/"
        assert (await deliver(url, hosts=("hooks.invalid", "127.0.0.1"))).result == "ok"
        assert there.heard[0][1]["Host"] == f"hooks.invalid:{there.port}"


async def test_a_name_with_a_private_address_is_not_dialled() -> None:
    async with receiver() as there:
        url = f"http://hooks.invalid:{there.port}/"
        found = await deliver(url, hosts=("hooks.invalid",))
        assert found.result == "refused"
        assert there.heard == []


async def test_a_host_that_is_listed_no_more_and_a_secret_that_is_gone_are_not_called() -> None:
    async with receiver() as there:
        url = f"http://127.0.0.1:{there.port}/"
        assert (await deliver(url, hosts=())).result == "refused"
        assert (await deliver(url, secret="")).result == "refused"
        assert there.heard == []


async def test_one_that_does_not_answer_has_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_delivery, "DELIVERY_TIMEOUT", 0.3)
    async with receiver() as there:
        there.hold = 5.0
        found = await deliver(f"http://127.0.0.1:{there.port}/")
        assert (found.result, found.status) == ("failed", None)
        assert "0.3 s" in found.detail


async def test_one_that_is_away_or_speaks_nonsense_failed_and_the_reason_has_no_url() -> None:
    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = await deliver(f"http://127.0.0.1:{port}/?token=secret")
    server.close()
    await server.wait_closed()
    away = await deliver(f"http://127.0.0.1:{port}/?token=secret")
    for one in (found, away):
        assert one.result == "failed"
        assert "secret" not in one.detail
        assert "127.0.0.1" not in one.detail


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as there, receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await deliver(f"http://127.0.0.1:{there.port}/")).result == "ok"
        assert proxy.heard == []


async def test_https_asks_for_the_names_certificate_at_the_judged_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 1 -subj /CN=hooks.invalid"
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:hooks.invalid"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    async with receiver(context) as there:
        url = f"https://hooks.invalid:{there.port}/"
        hosts = ("hooks.invalid", "other.invalid", "127.0.0.1")
        assert (await deliver(url, hosts=hosts)).result == "failed"  # nobody vouches for it
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        trusted_context.cache_clear()
        assert (await deliver(url, hosts=hosts)).result == "ok"
        assert (await deliver(url.replace("hooks", "other"), hosts=hosts)).result == "failed"
    trusted_context.cache_clear()
