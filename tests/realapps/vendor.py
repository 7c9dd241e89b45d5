"""A stand-in for OpenAI's chat completions that fails on demand: `faults` of a hundred calls do, in turn in each way."""

from __future__ import annotations

import asyncio
import json
from itertools import cycle

from aiohttp import web

ANSWER = "The sea is rough, and the boat stays upright."
FAULTS = ("500", "reset", "429", "503")


class Vendor:
    def __init__(self) -> None:
        self.faults = 0  # per cent of the calls
        self.calls = 0
        self.url = ""
        self._kinds = cycle(FAULTS)

    def misbehave(self, share: int) -> None:
        """The same faults in the same order from here on."""
        self.faults, self.calls, self._kinds = share, 0, cycle(FAULTS)

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
        return runner

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls += 1
        if "slowly" in json.dumps(body["messages"]):
            await asyncio.sleep(2)
        if self.faults and self.calls * self.faults % 100 < self.faults:
            kind = next(self._kinds)
            if kind == "reset":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            wait = {"Retry-After": "1"} if kind == "429" else {}
            error = {"error": {"message": "as asked", "type": "server_error", "code": None}}
            return web.json_response(error, status=int(kind), headers=wait)
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
            return web.json_response(_shell(body, "chat.completion", [choice]) | {"usage": usage})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        words = ANSWER.split(" ")
        for number, word in enumerate(words):
            text = word + (" " if number + 1 < len(words) else "")
            await self._event(answer, body, {"index": 0, "delta": {"content": text}, "finish_reason": None})
            await asyncio.sleep(0.02)
        await self._event(answer, body, {"index": 0, "delta": {}, "finish_reason": "stop"})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _event(self, answer: web.StreamResponse, body: dict, choice: dict) -> None:
        event = _shell(body, "chat.completion.chunk", [choice])
        await answer.write(f"data: {json.dumps(event)}\n\n".encode())


def _shell(body: dict, kind: str, choices: list[dict]) -> dict:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body.get("model", ""), "choices": choices}
