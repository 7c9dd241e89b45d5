"""A vendor that goes on with responses by itself and keeps books of what they cost; and instances of the way out
over one ledger, that end as a process does: in order, or from one moment to the next."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
from aiohttp import web

from proxy.egress.service import Egress
from proxy.ledger.ledger import Ledger
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.loading import PolicySource, load_policy

PRICES = "prices: {o3-deep-research: {input: 10, output: 40}}"
ASK = {"model": "o3-deep-research", "input": "Why is the sky blue?", "background": True}
USAGE = {
    "input_tokens": 100_000,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 17_500,
    "output_tokens_details": {"reasoning_tokens": 10_000},
    "total_tokens": 117_500,
}
COST = 1_700_000_000  # nano-dollars of that


class BackgroundVendor:
    """Its responses by id, each as far as a test moved it. `paths` are those that were asked for."""

    def __init__(self) -> None:
        self.responses: dict[str, dict] = {}
        self.paths: list[str] = []
        self.port = 0
        self.usage_at_once = False
        self.silent = False  # it begins, and says nothing
        self.says_nothing_of_deleting = False
        self.polls = 0  # questions after which one is over by itself, if any
        self.cut_after: int | None = None  # events of a stream before it breaks
        self._asked: dict[str, int] = {}
        self._ids = itertools.count(1)
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        server = web.Server(self._handle, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def move(self, id: str, status: str, usage: dict | None = None) -> None:
        text = [{"type": "output_text", "text": "Rayleigh.", "annotations": []}]
        output = [{"type": "message", "id": "m", "role": "assistant", "content": text}] if status == "completed" else []
        self.responses[id].update(status=status, usage=usage, output=output)

    def finish(self, id: str) -> None:
        self.move(id, "completed", USAGE)

    def _new(self, body: dict) -> dict:
        id = f"resp_{next(self._ids):04d}Ab"
        self.responses[id] = {
            "id": id, "object": "response", "created_at": 1, "status": "queued", "model": f"{body['model']}-2025-06-26",
            "background": body.get("background", False), "output": [], "usage": None, "error": None,
        }  # fmt: skip
        if self.usage_at_once:
            self.finish(id)
        return self.responses[id]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.paths.append(f"{request.method} {request.raw_path}")
        url = urlsplit(request.raw_path)
        words = [word for word in url.path.split("/") if word]
        at = words.index("responses")
        if request.method == "POST" and len(words) == at + 1:
            body = json.loads(await request.content.read())
            made = self._new(body)
            if self.silent:
                await asyncio.sleep(60)
            if body.get("stream"):
                return await self._stream(request, made, 0)
            return web.json_response(made)
        found = self.responses.get(words[at + 1])
        if found is None:
            error = {"message": "no such response", "type": "invalid_request_error", "param": None, "code": None}
            return web.json_response({"error": error}, status=404)
        if request.method == "DELETE":
            del self.responses[found["id"]]
            if self.says_nothing_of_deleting:
                return web.Response(status=204)
            return web.json_response({"id": found["id"], "object": "response", "deleted": True})
        if words[-1] == "cancel":
            if found["status"] in ("queued", "in_progress"):
                found["status"] = "cancelled"
            return web.json_response(found)
        asked = self._asked[found["id"]] = self._asked.get(found["id"], 0) + 1
        if self.polls and asked >= self.polls:
            self.finish(found["id"])
        query = parse_qs(url.query)
        if query.get("stream") == ["true"]:
            return await self._stream(request, found, int(query.get("starting_after", ["-1"])[0]) + 1)
        return web.json_response(found)

    def events(self, response: dict) -> list[tuple[str, dict]]:
        queued = {**response, "status": "queued", "output": [], "usage": None}
        delta = {"item_id": "m", "output_index": 0, "content_index": 0, "delta": "Ray"}
        events = [
            ("response.created", {"response": queued}),
            ("response.in_progress", {"response": {**queued, "status": "in_progress"}}),
            ("response.output_text.delta", delta),
            ("response.output_text.delta", delta),
        ]
        self.finish(response["id"])
        return [*events, ("response.completed", {"response": self.responses[response["id"]]})]

    async def _stream(self, request: web.BaseRequest, response: dict, start: int) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for number, (kind, said) in enumerate(self.events(response)):
            if number < start:
                continue
            if number == self.cut_after:
                assert request.transport is not None
                await asyncio.sleep(0.02)
                request.transport.abort()
                return answer
            data = json.dumps({"type": kind, "sequence_number": number, **said})
            await answer.write(f"event: {kind}\ndata: {data}\n\n".encode())
        await answer.write_eof()
        return answer


class Instance:
    """One gateway's way out. `kill` is what the ledger sees of `kill -9`: nothing more is written."""

    def __init__(self, egress: Egress, ledger: Ledger, port: int, metrics: Metrics) -> None:
        self.egress = egress
        self.ledger = ledger
        self.metrics = metrics
        self.url = f"http://127.0.0.1:{port}"
        self.session = aiohttp.ClientSession()
        self.killed = False

    @property
    def limits(self):
        return self.egress.upstreams["openai"].billing.limits

    @property
    def pending(self):
        return self.egress._pending

    async def call(self, method: str, path: str, body: dict | None = None, upstream: str = "openai"):
        """An answer's status, and its body as far as it came."""
        url = f"{self.url}/{upstream}{path}"
        async with self.session.request(method, url, json=body) as answer:
            data = b""
            try:
                async for part in answer.content.iter_any():
                    data += part
            except aiohttp.ClientError:
                pass
            return answer.status, data

    async def begin(self, **more: object) -> str:
        """A response in the background; its id."""
        status, body = await self.call("POST", "/v1/responses", {**ASK, "user": "ada", **more})
        assert status == 200, body
        return json.loads(body)["id"]

    async def poll(self, id: str, path: str = "/v1/responses/{id}", method: str = "GET") -> int:
        return (await self.call(method, path.format(id=id)))[0]

    async def counted(self) -> dict[str, float]:
        """Dollars by basis, as the metrics have them."""
        found: dict[str, float] = {}
        for line in (await self.metrics.render())[0].decode().splitlines():
            if line.startswith("outrigger_cost_usd_total{"):
                basis = line.partition('basis="')[2].partition('"')[0]
                found[basis] = found.get(basis, 0.0) + float(line.rpartition(" ")[2])
        return {basis: amount for basis, amount in found.items() if amount}

    def kill(self) -> None:
        self.killed = True
        for task in self.ledger._tasks:
            task.cancel()


@asynccontextmanager
async def instance(
    tmp: Path, vendor: BackgroundVendor, *, ledger: str = "", cap: str = "", base: str = "/v1", more: str = ""
) -> AsyncIterator[Instance]:
    """`ledger`: its URL, else a file."""
    url = ledger or f"sqlite:///{tmp}/ledger.db"
    text = (
        f"upstreams:\n  openai:\n    base_url: http://127.0.0.1:{vendor.port}{base}\n    {PRICES}\n"
        f"    retry: {{backoff: {{first: 1ms, max: 5ms}}}}\n"
        + (f"    cap: {cap}\n" if cap else "")
        + f"ledger: {{url: '{url}'}}\n{more}"
    )
    policy = load_policy(PolicySource("test", None, text), {})
    descriptor = os.open(tmp / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = EventLog(policy.log, out=descriptor)
    metrics = Metrics(policy.metrics, version="test")
    loop = asyncio.get_running_loop()
    books = Ledger(policy.ledger, emit=log.emit, metrics=metrics, clock=loop.time)
    await books.start()
    egress = Egress(policy, requests=RequestRegistry(loop.time), metrics=metrics, log=log, environ={}, ledger=books)
    await egress.load()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await egress.start(sock)
    made = Instance(egress, books, sock.getsockname()[1], metrics)
    try:
        yield made
    finally:
        await made.session.close()
        await egress.stop()
        if made.killed:
            await books.store.close()
        else:
            await books.stop()
        log.close()
        os.close(descriptor)


@asynccontextmanager
async def background_vendor() -> AsyncIterator[BackgroundVendor]:
    vendor = BackgroundVendor()
    await vendor.start()
    try:
        yield vendor
    finally:
        await vendor.stop()


COLUMNS = ("user_id", "model", "cost", "estimated", "basis", "outcome", "input_tokens", "output_tokens", "reference")
OF_CALLS = f"SELECT {', '.join(COLUMNS)} FROM outrigger_calls WHERE cost > 0 OR reference <> '' ORDER BY at"


def rows(tmp: Path) -> list[dict]:
    """What the ledger's file has of calls that cost something, or may."""
    file = tmp / "ledger.db"
    if not file.exists():
        return []
    with closing(sqlite3.connect(file)) as connection:
        return [dict(zip(COLUMNS, row, strict=True)) for row in connection.execute(OF_CALLS)]
