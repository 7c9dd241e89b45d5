"""A stand-in for Slack's incoming webhooks, as well or unwell as a test wants it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from free_ports import free_port
from gateway_process import eventually


class FakeSlack:
    """`answers` are given in turn, then 200; "hang" is none."""

    def __init__(self, answers: list[object] | None = None) -> None:
        self.answers = list(answers or [])
        self.messages: list[dict] = []
        self.at: list[float] = []  # when each request came
        self.url = ""
        self._release = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.at.append(time.monotonic())
        answer = self.answers.pop(0) if self.answers else 200
        if answer == "hang":
            await self._release.wait()
            return web.Response(status=500)
        if isinstance(answer, tuple):
            return web.Response(status=answer[0], headers=answer[1])
        if answer == 200:
            self.messages.append(body)
        return web.Response(status=answer, text="ok")

    def texts(self) -> list[str]:
        return [message["text"] for message in self.messages]

    async def until(self, what: str | Callable[[str], bool], timeout: float = 20.0) -> dict:
        """The first message that has `what` anywhere in it."""

        def found() -> dict | None:
            for message in self.messages:
                text = json.dumps(message)
                if what in text if isinstance(what, str) else what(text):
                    return message
            return None

        return await eventually(found, timeout)

    def release(self) -> None:
        self._release.set()


@asynccontextmanager
async def fake_slack(answers: list[object] | None = None, port: int = 0) -> AsyncIterator[FakeSlack]:
    stand_in = FakeSlack(answers)
    app = web.Application()
    app.router.add_post("/services/T0/B0/{secret}", stand_in.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = port or free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stand_in.url = f"http://127.0.0.1:{port}/services/T0/B0/hunter2"
    try:
        yield stand_in
    finally:
        stand_in.release()
        await runner.cleanup()
