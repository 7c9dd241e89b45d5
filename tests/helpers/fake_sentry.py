"""A Sentry that takes envelopes and keeps them."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

from aiohttp import web
from free_ports import free_port


class FakeSentry:
    def __init__(self, port: int) -> None:
        self.dsn = f"http://publickey@127.0.0.1:{port}/7"
        self.events: list[dict] = []
        self.raw = b""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw += body
        lines = [json.loads(line) for line in body.splitlines() if line]
        self.events += [after for before, after in pairwise(lines[1:]) if before.get("type") == "event"]
        return web.json_response({"id": "x"})


@asynccontextmanager
async def fake_sentry() -> AsyncIterator[FakeSentry]:
    port = free_port()
    fake = FakeSentry(port)
    runner = web.ServerRunner(web.Server(fake), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield fake
    finally:
        await runner.cleanup()
