"""The admin listener over real sockets."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from proxy.admin.auth import TokenAuthenticator
from proxy.admin.endpoints import AdminEndpoints
from proxy.admin.listener import AdminListener
from proxy.observe.health import ComponentHealth, HealthCheckRegistry
from proxy.observe.metrics import Metrics
from proxy.observe.request_ids import IdGenerator
from proxy.policy import schema

TOKEN = {"Authorization": "Bearer t0ken"}


class Running:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.metrics = Metrics(schema.Metrics(), version="1.2.3")
        self.status: dict[str, object] = {"app": {"state": "ready"}}
        health = HealthCheckRegistry(loop.time, version="1.2.3")
        health.register("app", lambda: ComponentHealth("ok", "ready"))
        endpoints = AdminEndpoints(
            health=health,
            metrics=self.metrics,
            authenticator=TokenAuthenticator("t0ken", clock=loop.time),
            check_readiness=lambda: (True, "ready"),
            build_status=self.give_status,
            version="1.2.3",
        )
        self.listener = AdminListener(endpoints, ids=IdGenerator(), emit=self.emit)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def give_status(self) -> dict[str, object]:
        if "broken" in self.status:
            raise RuntimeError("no status today")
        return self.status

    def emit(self, event: str, message: str, *, level: str = "info", **facts: object) -> None:
        self.events.append((event, {"message": message, "level": level, **facts}))

    async def raw(self, request: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request.encode("latin-1"))
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
        return answer


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running()
    await running.listener.start(running.socket)
    yield running
    await running.listener.stop()


@pytest.fixture
async def client(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dashboard/style.css", "text/css; charset=utf-8"),
        ("/healthz", "application/json"),
        ("/healthz?x=1", "application/json"),
        ("/readyz", "application/json"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/status", "application/json"),
    ],
)
async def test_each_path_answers_get_and_head(client: httpx.AsyncClient, path: str, kind: str) -> None:
    got = await client.get(path, headers=TOKEN)
    assert got.status_code == 200
    assert got.headers["Content-Type"] == kind
    assert got.headers["Server"] == "outrigger"
    headed = await client.head(path, headers=TOKEN)
    assert (headed.status_code, headed.content) == (200, b"")
    assert int(headed.headers["Content-Length"]) > 10


async def test_head_leaves_the_connection_fit_for_the_next_request(running: Running) -> None:
    answer = await running.raw(
        "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    first, second = answer.split(b"\r\n\r\n", 1)
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 200 ")
    assert second.endswith(b'"reason": "ready"\n}\n')


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Host: 127.0.0.1:9901", 200),
        ("Host: [::1]:9901", 200),
        ("Host: localhost", 200),
        ("Host: rebound.example:9901", 421),
        ("Host: 127.0.0.1.rebound.example", 421),
        ("X: no host", 400),
        ("Host: localhost\r\nOrigin: http://evil.example", 403),
        ("Host: localhost\r\nOrigin: null", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors", 403),
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/nothing"])
async def test_only_people_on_this_machine_are_answered(running: Running, head: str, status: int, path: str) -> None:
    answer = await running.raw(f"GET {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n")
    expected = 404 if status == 200 and path == "/nothing" else status
    assert answer.split()[1] == str(expected).encode()
    if expected not in (200, 400):  # a 400 comes from the parser
        assert b"application/problem+json" in answer
        assert b"outrigger_" not in answer


async def test_an_absolute_target_does_not_lead_past_the_guard(running: Running) -> None:
    for host, status in (("evil.example", b"421"), ("localhost", b"404")):
        answer = await running.raw(
            f"GET http://evil.example/metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        assert answer.split()[1] == status


async def test_status_needs_the_token_where_one_is_set(client: httpx.AsyncClient) -> None:
    closed = await client.get("/status")
    assert closed.status_code == 401
    assert closed.headers["WWW-Authenticate"].startswith("Bearer")
    assert "OUTRIGGER_ADMIN_TOKEN" in closed.json()["detail"]
    opened = await client.get("/status", headers=TOKEN)
    assert opened.json()["app"] == {"state": "ready"}


async def test_request_ids_are_taken_over_and_shown_in_problems(client: httpx.AsyncClient) -> None:
    answer = await client.get("/nothing", headers={"X-Request-Id": "mine-1"})
    assert (answer.status_code, answer.headers["X-Request-Id"]) == (404, "mine-1")
    assert answer.json()["request_id"] == "mine-1"
    made = await client.get("/nothing", headers={"X-Request-Id": "not fit"})
    assert made.headers["X-Request-Id"] == made.json()["request_id"] != "not fit"


async def test_other_methods_are_told_what_is_allowed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/metrics", content=b"x" * 100_000)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert (await client.get("/healthz")).status_code == 200


async def test_a_body_without_end_is_refused_and_no_fault(running: Running, client: httpx.AsyncClient) -> None:
    answer = await client.post("/dashboard/login", content=2_000_000 * b"x")
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:outrigger:body-too-large")
    assert running.events == []


async def test_a_fault_inside_is_a_500_with_its_reason_in_the_log(running: Running, client: httpx.AsyncClient) -> None:
    running.status["broken"] = True
    answer = await client.get("/status", headers=TOKEN)
    assert answer.status_code == 500
    [(event, facts)] = running.events
    assert event == "admin.error"
    assert "no status today" in str(facts["message"])
    assert "no status today" not in answer.text
    assert facts["request_id"] == answer.json()["request_id"]


async def test_openmetrics_comes_when_asked_for(client: httpx.AsyncClient) -> None:
    asked = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    answer = await client.get("/metrics", headers={"Accept": asked})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
async def test_promtool_is_content_with_what_the_wire_gives(running: Running, client: httpx.AsyncClient) -> None:
    running.metrics.observe_request("default", "GET", 200, 0.1, 0.001)
    scrape = (await client.get("/metrics")).content
    ran = subprocess.run(["promtool", "check", "metrics"], input=scrape, capture_output=True, timeout=20)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, b"")


async def test_many_scrapes_at_once_are_all_whole(running: Running, client: httpx.AsyncClient) -> None:
    running.metrics.declare_routes(f"r{number}" for number in range(50))
    answers = await asyncio.gather(*(client.get("/metrics") for _ in range(10)))
    for answer in answers:
        assert answer.text.count("# TYPE outrigger_http_request_duration_seconds ") == 1
        assert answer.text.count("outrigger_http_request_duration_seconds_count{") == 50


async def test_stopping_closes_idle_connections_and_the_port(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"}\n")
    await asyncio.wait_for(running.listener.stop(), 3)
    assert await asyncio.wait_for(reader.read(), 3) == b""
    writer.close()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", running.port)
    await running.listener.stop()


async def test_a_person_who_left_while_being_slowed_leaves_nothing_behind(running: Running) -> None:
    before = len(asyncio.all_tasks())
    wrong = "GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n"
    for _ in range(3):
        assert (await running.raw(wrong)).startswith(b"HTTP/1.1 401")
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(wrong.encode())
    gate: Any = running.listener._endpoints._authenticator
    peer = gate._peers["127.0.0.1"]
    await until(lambda: peer.waiting == 1)
    writer.transport.abort()
    await until(lambda: peer.waiting == 0)
    await until(lambda: len(asyncio.all_tasks()) == before)
    assert json.loads((await running.raw(wrong.replace("/status", "/readyz"))).split(b"\r\n\r\n")[1])


async def until(true: Any, seconds: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.005)
