"""What lies between the gateway and a vendor: TLS, proxies of its own, WebSockets; in a process as users start it."""

import asyncio
import base64
import json
import ssl

import openai
import pytest
from aiohttp import web
from egress_gateway import CHAT, Vendor, completion, egress_gateway, says
from gateway_process import eventually, gateway

SUBJECT = '-subj /CN=vendor.test -addext "subjectAltName=DNS:vendor.test,DNS:localhost"'


@pytest.fixture
async def certificate(tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 1 {SUBJECT}"
    if (await (await asyncio.create_subprocess_shell(f"{command} 2>/dev/null")).wait()) != 0:
        pytest.skip("no openssl here to make a certificate with")
    return key, cert


@pytest.fixture
async def vendor(certificate):
    key, cert = certificate
    vendor = Vendor(says())
    vendor.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    vendor.ssl.load_cert_chain(cert, key)
    await vendor.start()
    yield vendor
    await vendor.stop()


@pytest.fixture
async def app():
    """Something that answers: the gateway fronts it by `app.url`."""
    app = Vendor(says({}))
    await app.start()
    yield app
    await app.stop()


class Parent:
    """A proxy that wants a password: CONNECT, and requests in absolute form. Every name is this machine to it."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.close()

    async def _handle(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        method, target, _ = head.split(b" ", 2)
        if b"basic " + base64.b64encode(b"me:secret") not in head.replace(b"Basic", b"basic"):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        address = target if method == b"CONNECT" else target.split(b"/")[2]
        there, back = await asyncio.open_connection("127.0.0.1", int(address.rpartition(b":")[2]))
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            back.write(head.replace(b"http://" + address, b"", 1))

        async def copy(source, sink):
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, back), copy(there, writer))


@pytest.fixture
async def parent():
    parent = Parent()
    await parent.start()
    yield parent
    parent.stop()


def fronting(app: Vendor, base_url: str) -> str:
    return f'app: {{url: "http://127.0.0.1:{app.port}"}}\nupstreams: {{openai: {{base_url: "{base_url}"}}}}\n'


async def ask(egress: int) -> str:
    async with openai.AsyncOpenAI(api_key="sk-x", base_url=f"http://127.0.0.1:{egress}/openai/v1") as sdk:
        answer = await sdk.chat.completions.create(**CHAT)
        return answer.choices[0].message.content


async def echoes(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        said = json.loads(message.data)
        await ws.send_json({"type": "session.updated", "event_id": "e", "session": said["session"]})
    return ws


async def test_a_vendor_behind_tls_is_verified_and_realtime_is_wss_beyond(tmp_path, app, vendor, certificate):
    policy = fronting(app, f"https://localhost:{vendor.port}/v1")
    async with gateway(tmp_path, policy=policy, environ={"SSL_CERT_FILE": str(certificate[1])}) as g:
        await g.ready()
        assert await ask(g.egress) == completion()["choices"][0]["message"]["content"]
        assert [call["outcome"] for call in await eventually(lambda: g.events("call"))] == ["ok"]

        vendor.answers = [echoes]
        async with openai.AsyncOpenAI(api_key="sk-x", base_url=f"http://127.0.0.1:{g.egress}/openai/v1") as sdk:
            async with sdk.realtime.connect(model="gpt-realtime") as connection:
                await connection.session.update(session={"type": "realtime", "instructions": "hello"})
                event = await asyncio.wait_for(connection.recv(), 10)
                assert event.session.instructions == "hello"
        method, path, headers, _ = vendor.requests[-1]
        assert (method, path) == ("GET", "/v1/realtime?model=gpt-realtime")
        assert headers["Authorization"] == "Bearer sk-x"


async def test_a_vendor_that_nobody_vouches_for_is_refused(tmp_path, app, vendor):
    policy = fronting(app, f"https://localhost:{vendor.port}/v1")
    async with gateway(tmp_path, policy=policy) as g:
        await g.ready()
        with pytest.raises(openai.InternalServerError, match="certificate"):
            await ask(g.egress)
        [call] = await eventually(lambda: g.events("call"))
        assert (call["attempts"], call["status"]) == (1, 502)
        assert "certificate" in call["reason"]
    assert not vendor.requests


async def test_the_proxy_that_the_gateways_environment_names_is_on_the_way(tmp_path, app, vendor, certificate, parent):
    """vendor.test has no address here: only through the proxy is there a way."""
    environ = {"SSL_CERT_FILE": str(certificate[1]), "HTTPS_PROXY": f"http://me:secret@127.0.0.1:{parent.port}"}
    policy = fronting(app, f"https://vendor.test:{vendor.port}/v1") + "egress: {other_hosts: observe}\n"
    async with gateway(tmp_path, policy=policy, environ=environ) as g:
        await g.ready()
        assert await ask(g.egress) == completion()["choices"][0]["message"]["content"]
        assert parent.heads[0].startswith(f"CONNECT vendor.test:{vendor.port} ".encode())

        reader, writer = await asyncio.open_connection("127.0.0.1", g.egress)  # as an app that uses us as its proxy
        writer.write(f"CONNECT other.test:{vendor.port} HTTP/1.1\r\nHost: other.test\r\n\r\n".encode())
        assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
        assert parent.heads[-1].startswith(f"CONNECT other.test:{vendor.port} ".encode())
        assert "secret" not in g.output()


async def test_what_no_proxy_names_is_reached_directly_and_plain_http_goes_in_absolute_form(tmp_path, parent):
    vendor = Vendor(says())
    environ = {"http_proxy": f"http://me:secret@127.0.0.1:{parent.port}", "no_proxy": "direct.test"}
    more = '  far: {kind: openai, base_url: "http://vendor.test:<0>/v1"}\n'
    more += '  near: {kind: openai, base_url: "http://direct.test:<0>/v1", retry: {attempts: 1}}\n'
    async with egress_gateway(tmp_path, vendor, more=more, environ=environ) as out:
        assert (await out.chat())[0] == 200  # loopback
        assert not parent.heads
        assert (await out.chat(upstream="far"))[0] == 200
        assert parent.heads[0].startswith(f"POST http://vendor.test:{vendor.port}/v1/chat/completions ".encode())
        status, _, text = await out.chat(upstream="near")
        assert (status, len(parent.heads)) == (502, 1)
        assert "name could not be resolved" in json.loads(text)["error"]["message"]


async def test_a_proxy_that_refuses_is_a_clear_error(tmp_path, parent):
    environ = {"http_proxy": f"http://127.0.0.1:{parent.port}"}
    more = '  far: {kind: openai, base_url: "http://vendor.test:<0>/v1"}\n'
    async with egress_gateway(tmp_path, Vendor(says()), more=more, environ=environ) as out:
        assert (await out.chat(upstream="far"))[0] == 407
