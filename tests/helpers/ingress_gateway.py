"""A front door over real sockets before a scripted app: what the relay's tests stand on."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.ingress.listener import ClientTimeouts
from proxy.ingress.service import IngressService
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Policy
from proxy.store.memory import MemoryStore
from proxy.store.opening import make_member, open_store
from proxy.store.store import Store

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Scripted:
    """An app of raw bytes: `script` has each connection; what came first is kept in `heads`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.heads: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.is_ready = True
        self.state = "ready"
        self.address = ("127.0.0.1", 0)
        self.answers = 0
        self._server: asyncio.Server | None = None
        self._live: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, *self.address, limit=2**20)
        self.address = self._server.sockets[0].getsockname()[:2]

    async def stop(self) -> None:
        """Close, and leave no connection for the garbage collector to complain of in another test."""
        if self._server is not None:
            self._server.close()
        for task, writer in list(self._live.items()):
            writer.transport.abort()
            task.cancel()
        for _ in range(10):  # turns of the loop, in which the tasks and the transports end
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        task = asyncio.current_task()
        assert task is not None
        self._live[task] = writer
        try:
            await self._script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            del self._live[task]
            writer.close()

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    # the face of a Backend
    async def wait_ready(self, timeout: float) -> bool:
        deadline = asyncio.get_running_loop().time() + timeout
        while not self.is_ready and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        return self.is_ready

    def record_answer(self) -> None:
        self.answers += 1


def answering(*answers: bytes) -> Scripted:
    """An app that reads a head and a body of Content-Length, then gives the answers in turn, for ever."""
    turn = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        while True:
            head = await app.head(reader)
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            writer.write(answers[turn % len(answers)])
            turn += 1
            await writer.drain()

    app = Scripted(script)
    return app


class IngressGateway:
    def __init__(
        self,
        service: IngressService,
        app: Scripted,
        port: int,
        log: Path,
        metrics: Metrics,
        store: MemoryStore | Store | None = None,
    ) -> None:
        self.service = service
        self.store = store
        self.app = app
        self.port = port
        self.log = log
        self.metrics = metrics

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)

    async def raw(self, data: bytes, *, timeout: float = 5.0) -> bytes:
        """Send bytes, read until the other side closes."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            async with asyncio.timeout(timeout):
                return await reader.read(-1)
        finally:
            writer.close()

    async def get(self, path: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
        """One request on a connection of its own; the whole answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def text(self) -> str:
        return (await self.metrics.render())[0].decode()


async def ours(*_: object) -> tuple[int, list[tuple[str, str]], bytes]:
    return 200, [("Content-Length", "4")], b"ours"


@asynccontextmanager
async def ingress_gateway(
    app: Scripted,
    policy: str = "",
    *,
    patience: ClientTimeouts = ClientTimeouts(sweep=0.05),
    tmp: Path | None = None,
    requests: RequestRegistry | None = None,
) -> AsyncIterator[IngressGateway]:
    loop = asyncio.get_running_loop()
    await app.start()
    parsed = load_policy(PolicySource("test", None, policy), {}) if policy else Policy()
    descriptor = os.open(tmp / "log" if tmp else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = EventLog(parsed.log, out=descriptor)
    metrics = Metrics(parsed.metrics, version="test")
    member = make_member(parsed.store.region)
    store = open_store(parsed.store, member, emit=log.emit, metrics=metrics, clock=loop.time)
    await store.start()
    service = IngressService(
        loop,
        parsed,
        app,
        own_endpoints=ours,
        metrics=metrics,
        log=log,
        timeouts=patience,
        requests=requests,
        store=store,
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await service.open(sock)
    try:
        where = tmp / "log" if tmp else Path(os.devnull)
        yield IngressGateway(service, app, sock.getsockname()[1], where, metrics, store)
    finally:
        service.close()
        await store.stop()
        await app.stop()
        log.close()
        os.close(descriptor)


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    """Wait until something holds; TimeoutError when it never does."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)
