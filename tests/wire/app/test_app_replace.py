"""The app replaced under load: nobody notices but by waiting."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from free_ports import free_port
from gateway_process import APPS, eventually, gateway
from ingress_gateway import IngressGateway, ours, until

from proxy.app.command import Command
from proxy.app.supervisor import Supervisor
from proxy.ingress.service import IngressService
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.policy.loading import PolicySource, load_policy

PLAIN = Command((sys.executable, str(APPS / "plain.py")), "plain.py", ())


class Replaced(IngressGateway):
    def __init__(self, supervisor: Supervisor, ingress: IngressService, port: int, log: Path, metrics: Metrics) -> None:
        super().__init__(ingress, supervisor, port, log, metrics)  # type: ignore[arg-type]
        self.supervisor = supervisor
        self.reasons: list[str] = []


@asynccontextmanager
async def supervised(tmp: Path, policy: str = "", *, drain: float = 20.0) -> AsyncIterator[Replaced]:
    loop = asyncio.get_running_loop()
    parsed = load_policy(PolicySource("test", None, policy or "{}"), {})
    descriptor = os.open(tmp / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = EventLog(parsed.log, out=descriptor)
    metrics = Metrics(parsed.metrics, version="test")
    port = free_port()
    environ = {**os.environ, "PORT": str(port)}
    reasons: list[str] = []
    app = Supervisor(parsed.app, PLAIN, environ, port=port, emit=log.emit, on_restart=reasons.append, clock=loop.time)
    ingress = IngressService(loop, parsed, app, own_endpoints=ours, metrics=metrics, log=log)
    app.attach_traffic(ingress.pool, lambda: drain)
    life = loop.create_task(app.run())
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    try:
        assert await app.wait_ready(20.0)
        await ingress.open(sock)
        there = Replaced(app, ingress, sock.getsockname()[1], tmp / "log", metrics)
        there.reasons = reasons
        yield there
    finally:
        await app.stop()
        await life
        ingress.close()
        log.close()
        os.close(descriptor)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1]) if answer else 0


async def test_hundreds_of_requests_while_it_is_replaced_are_all_answered(tmp_path):
    async with supervised(tmp_path) as there:
        before = there.supervisor.pid
        over = False
        statuses: list[int] = []

        async def client(n: int) -> None:
            reader, writer = await there.connect()
            try:
                while not over:
                    path = f"/slow?0.0{n % 9 + 1}" if n % 2 else "/world"
                    method, body = ("POST", b"x") if n % 3 == 0 else ("GET", b"")
                    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
                    writer.write(head.encode() + body)
                    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
                    statuses.append(status_of(answer))
                    length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    await reader.readexactly(length)
            finally:
                writer.close()

        async def enough(many: int) -> None:
            async with asyncio.timeout(20):
                while len(statuses) < many:
                    await asyncio.sleep(0.01)

        clients = [asyncio.create_task(client(n)) for n in range(20)]
        for _ in range(2):
            await enough(len(statuses) + 100)
            assert await there.supervisor.replace("memory")
        await enough(len(statuses) + 100)
        over = True
        await asyncio.gather(*clients)
        assert set(statuses) == {200}
        assert there.supervisor.pid != before
        assert there.reasons == ["memory", "memory"]


async def test_what_is_in_flight_finishes_and_what_comes_waits(tmp_path):
    async with supervised(tmp_path) as there:
        slow = asyncio.create_task(there.get("/slow?0.5"))
        reader, writer = await there.connect()
        writer.write(b"GET /big?20000000 HTTP/1.1\r\nHost: t\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: there.service.pool.in_use == 2)
        replaced = asyncio.create_task(there.supervisor.replace("reload"))
        await asyncio.sleep(0)
        assert there.supervisor.is_replacing
        waits = asyncio.create_task(there.raw(b"GET /w HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n", timeout=20))
        assert (await slow).endswith(b"slow")
        assert not replaced.done()  # the other has not been read yet
        assert len(await asyncio.wait_for(reader.readexactly(20_000_000), 20)) == 20_000_000
        writer.close()
        assert (await waits).endswith(b"hello /w")
        assert await replaced
        assert not there.supervisor.is_replacing


async def test_what_does_not_finish_within_drain_is_cut_and_said(tmp_path):
    async with supervised(tmp_path, "app: {stop_timeout: 200ms}", drain=0.2) as there:
        slow = asyncio.create_task(there.get("/slow?60"))
        await until(lambda: there.service.pool.in_use == 1)
        assert await there.supervisor.replace("reload")
        assert status_of(await slow) == 502
        async with asyncio.timeout(5):  # lines are written a moment later
            while b"1 requests did not finish in 0.2 s (listen.drain)" not in there.log.read_bytes():
                await asyncio.sleep(0.02)


async def test_whoever_asked_may_go_and_one_replacement_is_made_at_a_time(tmp_path):
    async with supervised(tmp_path) as there:
        before = there.supervisor.pid
        asked = asyncio.create_task(there.supervisor.replace("reload"))
        await asyncio.sleep(0)
        assert not await there.supervisor.replace("memory")
        asked.cancel()
        async with asyncio.timeout(20):
            while there.supervisor.pid == before or not there.supervisor.is_ready:
                await asyncio.sleep(0.02)
        assert there.reasons == ["reload"]


async def test_stopping_in_the_middle_of_a_replacement_ends_both(tmp_path):
    async with supervised(tmp_path) as there:
        slow = asyncio.create_task(there.get("/slow?60"))
        await until(lambda: there.service.pool.in_use == 1)
        replaced = asyncio.create_task(there.supervisor.replace("reload"))
        await asyncio.sleep(0.05)
        await there.supervisor.stop()
        assert not await asyncio.wait_for(replaced, 20)
        await asyncio.gather(slow, return_exceptions=True)


async def test_an_app_that_leaks_is_replaced_in_time_and_its_route_is_named(tmp_path):
    policy = (
        "app: {memory: {limit: 400MiB, warn: 50%, recycle: 60%}, restart: {backoff: 100ms}}\n"
        "routes: [{name: leaks, match: {path: /grow}}]\n"
    )
    async with gateway(tmp_path, *PLAIN.argv, policy=policy) as g:
        await g.ready()
        first = g.app_pid()
        async with asyncio.timeout(10):  # growth is told from one sample to the next
            while b"outrigger_app_memory_bytes 0.0" in await g.request("/metrics", port=g.admin):
                await asyncio.sleep(0.1)
        answers: list[bytes] = []

        async def client() -> None:
            while len(g.events("app.ready")) < 2:
                answers.append(await g.request("/slow?0.05"))

        clients = [asyncio.create_task(client()) for _ in range(5)]
        for _ in range(8):
            answers.append(await g.request("/grow?40000000"))
        await asyncio.wait_for(asyncio.gather(*clients), 30)
        assert {status_of(answer) for answer in answers} == {200}
        assert g.app_pid() != first
        status = json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])
        growth = status["memory"]["growth"]
        assert growth["leaks"]["requests"] == 8
        assert growth["leaks"]["bytes"] > 10_000_000
        metrics = (await g.request("/metrics", port=g.admin)).decode()
        assert 'outrigger_app_restarts_total{reason="memory"} 1.0' in metrics
        assert 'outrigger_app_restarts_total{reason="crash"} 0.0' in metrics
        assert 'outrigger_app_memory_growth_bytes{route="leaks"}' in metrics
        (recycled,) = await eventually(lambda: g.events("memory.recycle"))
        assert "the app is replaced (app.memory.recycle: 60%)" in recycled["message"]
        assert len(g.events("memory.warning")) == 1
        assert await g.stop() == 0
