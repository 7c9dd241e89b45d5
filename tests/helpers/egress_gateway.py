"""The way out over real sockets, before a scripted upstream: what the egress tests stand on."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from proxy.egress.service import Egress
from proxy.ledger.ledger import Ledger
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Policy

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
QUICK = "retry: {backoff: {first: 1ms, max: 5ms}}"


def completion(text: str = "well", model: str = "gpt-4o-mini-2024-07-18") -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
        "usage": USAGE,
    }


def chunks(*texts: str, usage: bool = False, done: bool = True) -> list[bytes]:
    """A streamed chat completion, event by event."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
    deltas = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    events = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        events.append({**head, "choices": [], "usage": USAGE})
    return [f"data: {json.dumps(event)}\n\n".encode() for event in events] + ([b"data: [DONE]\n\n"] if done else [])


class Vendor:
    """An upstream that answers as told. `answers` are taken in turn, the last for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.open = 0
        self.gone = 0
        self.port = 0
        self.ssl: ssl.SSLContext | None = None
        self._turn = 0
        self._runner: web.ServerRunner | None = None

    @property
    def bodies(self) -> list[dict]:
        return [json.loads(body) for _, _, _, body in self.requests if body]

    async def start(self) -> None:
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await self._runner.setup()
        sock = socket.socket()
        sock.bind(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        await web.SockSite(self._runner, sock, ssl_context=self.ssl).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read() if "upgrade" not in request.headers else b""
        self.requests.append((request.method, request.raw_path, dict(request.headers), body))
        answer = self.answers[min(self._turn, len(self.answers) - 1)]
        self._turn += 1
        self.open += 1
        try:
            return await answer(request)
        except asyncio.CancelledError:
            self.gone += 1
            raise
        finally:
            self.open -= 1


def says(body: object = None, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes):
            return web.Response(body=body, status=status, headers=named)
        return web.json_response(completion() if body is None else body, status=status, headers=named)

    return answer


def errs(status: int, code: str = "", **headers: str) -> Answer:
    return says({"error": {"message": "no", "type": code, "param": None, "code": code}}, status, **headers)


def resets() -> Answer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return answer


def hangs(seconds: float = 60.0) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.json_response(completion())

    return answer


def streams(events: list[bytes], *, pause: float = 0.0, then: str = "end", **headers: str) -> Answer:
    """`then`: end, cut (the connection breaks) or stall."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
        await response.prepare(request)
        for event in events:
            await response.write(event)
            await asyncio.sleep(pause)
        if then == "cut":
            assert request.transport is not None
            await asyncio.sleep(0.02)
            request.transport.abort()
        elif then == "stall":
            await asyncio.sleep(60)
        else:
            await response.write_eof()
        return response

    return answer


class ReceivedCall:
    """A request that came in, on a route with `when_abandoned: cancel`, or (`None` left) on one without."""

    tier, request_id, trace_id, route_name = "", "r", None, "ask"

    def __init__(self, left: float | None = 60.0, user: str = "ada") -> None:
        self.left = left
        self.user = user
        self.under_way = 0
        self.cost = 0

    def time_left(self, now: float) -> float | None:
        return self.left

    def call_began(self) -> None:
        self.under_way += 1

    def call_ended(self, cost: int | None) -> None:
        self.under_way -= 1
        self.cost += cost or 0

    def call_paid(self, cost: int) -> None:
        self.cost += cost


class EgressGateway:
    def __init__(
        self, egress: Egress, port: int, log: Path, metrics: Metrics, requests: RequestRegistry, policy: Policy
    ) -> None:
        self.egress = egress
        self.policy = policy
        self.port = port
        self.log = log
        self.metrics = metrics
        self.requests = requests
        self.url = f"http://127.0.0.1:{port}"
        self.session = aiohttp.ClientSession()

    @property
    def openai(self):
        return self.egress.upstreams["openai"]

    async def chat(self, body: dict | None = None, headers: dict[str, str] | None = None, upstream: str = "openai"):
        """A chat completion's status, headers and text."""
        url = f"{self.url}/{upstream}/v1/chat/completions"
        async with self.session.post(url, json=body or CHAT, headers=headers) as answer:
            return answer.status, answer.headers, (await answer.read()).decode()

    async def text(self) -> str:
        return (await self.metrics.render())[0].decode()

    async def logged(self, count: int = 1) -> list[dict]:
        """The calls in the log, as soon as there are so many."""
        for _ in range(1500):
            if len(self.calls()) >= count:
                break
            await asyncio.sleep(0.01)
        return self.calls()

    def calls(self) -> list[dict]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == "call"]


@asynccontextmanager
async def egress_gateway(
    tmp: Path,
    *vendors: Vendor,
    openai: str = QUICK,
    more: str = "",
    environ: dict[str, str] | None = None,
    bind: str = "127.0.0.1",
    ledger: Ledger | None = None,
) -> AsyncIterator[EgressGateway]:
    """The first vendor is `openai`; the policy may name the others by {1}, {2} …, their ports. What a `ledger` has is
    loaded, as at a start."""
    for vendor in vendors:
        await vendor.start()
    ports = [vendor.port for vendor in vendors]
    text = f"upstreams:\n  openai:\n    base_url: http://127.0.0.1:{ports[0]}/v1\n"
    text += "".join(f"    {line}\n" for line in openai.splitlines())
    for number, port in enumerate(ports):
        text, more = text.replace(f"<{number}>", str(port)), more.replace(f"<{number}>", str(port))
    policy = load_policy(PolicySource("test", None, text + more), environ or {})
    path = tmp / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = EventLog(policy.log, out=descriptor)
    metrics = Metrics(policy.metrics, version="test")
    requests = RequestRegistry(asyncio.get_running_loop().time)
    egress = Egress(policy, requests=requests, metrics=metrics, log=log, environ=environ or {}, ledger=ledger)
    await egress.load()
    sock = socket.socket()
    sock.bind((bind, 0))
    await egress.start(sock)
    out = EgressGateway(egress, sock.getsockname()[1], path, metrics, requests, policy)
    try:
        yield out
    finally:
        await out.session.close()
        await egress.stop()
        for vendor in vendors:
            await vendor.stop()
        log.close()
        os.close(descriptor)
