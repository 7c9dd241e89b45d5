"""A vendor that keeps its own books: what each attempt at each of its endpoints costs, and whether it could be seen.

What it does with an attempt stands in the request itself, as `TAG|step,step,…`: one step an attempt, the last for
ever. Its tokens are a quarter of the bytes: of the body that came, of the text that it wrote.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aiohttp import web

# Dollars per million tokens, in and out; what is else is said in POLICY.
PRICES = {"small": (1, 2), "large": (3, 8), "embedding": (1, 0), "heard": (2, 4), "drawn": (5, 10), "claude": (3, 15)}
POLICY = """
small: {input: 1, output: 2, cached_input: 0.5}
large: {input: 3, output: 8}
embedding: {input: 1, output: 0}
heard: {input: 2, output: 4}
drawn: {input: 5, output: 10}
spoken: {characters: 15}
filmed: {per_second: 0.0001}
claude: {input: 3, output: 15}
"""
CHARACTERS = 15  # dollars per million of them
SECOND = 100_000  # nano-dollars of film
MARK = re.compile(rb"([a-z]\d+)\|([\w,-]+)\|")
ERRORS = {"400", "401", "404", "409", "429", "500", "503"}
WORDS = (16, 32)  # of an answer, five bytes each: 20 or 40 tokens
EVENTS = 4  # that a stream's text comes in


@dataclass(slots=True)
class Booked:
    """An attempt that is billed, in nano-dollars. `shown`: all that says so went out."""

    cost: int
    shown: bool = False


class BookkeepingVendor:
    """`books` by tag. `late` are responses in the background by id: what is booked, and the answer as it stands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.books: dict[str, list[Booked]] = defaultdict(list)
        self.attempts: dict[str, int] = defaultdict(int)
        self.late: dict[str, tuple[Booked, dict]] = {}
        self.open = 0
        self.port = 0
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # ── an attempt ───────────────────────────────────────────────────────────────────────────

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.open += 1
        try:
            body = await request.content.read()
            path = request.raw_path.partition("?")[0].removeprefix("/v1")
            if path.startswith("/responses/") and path != "/responses/compact":
                return await self._follow(request, path)
            found = MARK.search(body)
            if found is None:
                return web.json_response({"object": "list", "data": []})
            tag, steps = found[1].decode(), found[2].decode().split(",")
            step = steps[min(self.attempts[tag], len(steps) - 1)]
            self.attempts[tag] += 1
            return await self._answer(request, path, tag, step, body)
        except ConnectionError:  # the other side left
            return web.Response()
        finally:
            self.open -= 1

    async def _answer(
        self, request: web.BaseRequest, path: str, tag: str, step: str, body: bytes
    ) -> web.StreamResponse:
        if step in ERRORS:
            error = {"message": "no", "type": "server_error", "param": None, "code": None}
            headers = {"retry-after-ms": "1"} if step == "429" else {}
            return web.json_response({"error": error}, status=int(step), headers=headers)
        asked = json.loads(body) if body[:1] == b"{" else _form(body)
        words = WORDS[len(body) % 2] if path not in ("/embeddings", "/moderations") else 0
        before = -(-len(body) // (4 if body[:1] == b"{" else 235))
        words = 4 if path.startswith("/audio") else words
        work = Work(asked, path, "word " * words, before, step)
        if step == "inner":  # an error inside a 200
            return web.json_response({"error": {"message": "no", "type": "server_error", "code": 503}})
        if asked.get("background") is True:
            return await self._begin(request, tag, work)
        if asked.get("stream") in (True, "true"):
            return await self._stream(request, tag, work)
        booked = Booked(work.cost())
        self.books[tag].append(booked)
        if step == "hang":
            await asyncio.sleep(30)
        if step == "slow":
            await asyncio.sleep(0.02)
        if step == "reset":
            return _abort(request)
        if step == "page":
            return web.Response(text="<html>busy</html>", content_type="text/html")
        if path == "/audio/speech":
            return web.Response(body=b"\0" * 3000, content_type="audio/mpeg")
        answer = work.answer(usage=step != "silent")
        if step == "half":
            return web.Response(text=json.dumps(answer)[:-9], content_type="application/json")
        if step == "short":  # it breaks off
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100000"})
            await response.prepare(request)
            await response.write(json.dumps(answer).encode())
            return _abort(request)
        booked.shown = step != "silent"
        return web.json_response(answer)

    async def _stream(self, request: web.BaseRequest, tag: str, work: Work) -> web.StreamResponse:
        """Booked as it is written: who leaves has what was written until then."""
        booked = Booked(0)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if work.step == "early":
            self.books[tag].append(Booked(work.cost(0)))
            await asyncio.sleep(0.002)
            return _abort(request)
        self.books[tag].append(booked)
        for number, (text, event) in enumerate(work.events()):
            if work.step == "cut" and number == EVENTS - 1:
                await asyncio.sleep(0.005)
                return _abort(request)
            if work.step == "stall" and number == EVENTS - 1:
                await asyncio.sleep(30)
            if work.step == "broken" and number == EVENTS - 1:
                await response.write(b"data: {not json\n\n")
                break
            booked.cost = work.cost(text)
            await response.write(event)
            await asyncio.sleep(0.001)
        await response.write_eof()
        booked.shown = work.step not in ("silent", "broken")
        return response

    # ── what goes on by itself ───────────────────────────────────────────────────────────────

    async def _begin(self, request: web.BaseRequest, tag: str, work: Work) -> web.StreamResponse:
        id = f"resp_{self.name}{tag}x{self.attempts[tag]}"
        answer = {**work.answer(usage=True), "id": id, "background": True}
        booked = Booked(work.cost())
        self.late[id] = booked, answer
        self.books[tag].append(booked)
        answer["then"], answer["status"], answer["usage"], answer["asked"] = answer["usage"], "queued", None, 0
        if work.step == "reset":
            return _abort(request)
        return web.json_response(_public(answer))

    async def _follow(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        id = path.split("/")[2]
        if id not in self.late:
            return web.json_response({"error": {"message": "gone", "type": "invalid_request_error"}}, status=404)
        booked, answer = self.late[id]
        if request.method == "DELETE":
            del self.late[id]
            return web.json_response({"id": id, "object": "response", "deleted": True})
        answer["asked"] += 1
        if path.endswith("/cancel") and answer["status"] in ("queued", "in_progress"):
            answer["status"] = "cancelled"
            booked.cost, booked.shown = 0, True
        elif answer["status"] in ("queued", "in_progress"):
            answer["status"] = "completed" if answer["asked"] > 1 else "in_progress"
            if answer["status"] == "completed":
                answer["usage"] = answer["then"]
                booked.shown = True
        if "stream=true" not in request.query_string:
            return web.json_response(_public(answer))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        kind = f"response.{answer['status']}"
        said = {"type": kind, "sequence_number": 9, "response": _public(answer)}
        await response.write(f"event: {kind}\ndata: {json.dumps(said)}\n\n".encode())
        await response.write_eof()
        return response


@dataclass(slots=True)
class Work:
    """What one attempt is about: what was asked, what will be written, what it costs."""

    asked: dict
    path: str
    text: str
    before: int  # tokens
    step: str

    @property
    def cached(self) -> int:
        return self.before // 3 if self.step == "cached" and self.asked["model"] == "small" else 0

    def cost(self, written: int | None = None) -> int:
        """`written`: bytes of the answer so far; None: all of it."""
        model = self.asked["model"]
        if model == "spoken":
            return len(self.asked["input"]) * CHARACTERS * 1000
        if model == "filmed":
            return int(self.asked["seconds"]) * SECOND
        if self.path == "/moderations":
            return 0
        into, out = PRICES[model]
        after = self.after if written is None else -(-written // 4)
        return (self.before - self.cached) * into * 1000 + self.cached * into * 500 + after * out * 1000

    @property
    def after(self) -> int:
        return -(-len(self.text) // 4)

    def usage(self) -> dict:
        before, after = self.before, self.after
        if self.path in ("/responses", "/responses/compact"):
            details = {"input_tokens_details": {"cached_tokens": self.cached}}
            return {"input_tokens": before, "output_tokens": after, "total_tokens": before + after, **details}
        if self.path == "/messages":
            return {"input_tokens": before, "output_tokens": after}
        if self.path in ("/audio/transcriptions", "/images/generations"):
            kind = {"type": "tokens"} if self.path.startswith("/audio") else {}
            return {**kind, "input_tokens": before, "output_tokens": after, "total_tokens": before + after}
        details = {"prompt_tokens_details": {"cached_tokens": self.cached}}
        return {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after, **details}

    def answer(self, *, usage: bool) -> dict:
        model, text = self.asked["model"], self.text
        said: dict = {"id": "a1", "object": "thing", "created": 1, "created_at": 1, "model": model}
        if self.path == "/chat/completions":
            message = {"role": "assistant", "content": text}
            said["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        elif self.path == "/completions":
            said["choices"] = [{"index": 0, "text": text, "finish_reason": "stop"}]
        elif self.path in ("/responses", "/responses/compact"):
            part = {"type": "output_text", "text": text, "annotations": []}
            said |= {"object": "response", "status": "completed", "background": False}
            said["output"] = [{"type": "message", "id": "m", "role": "assistant", "content": [part]}]
        elif self.path == "/messages":
            said |= {"type": "message", "role": "assistant", "content": [{"type": "text", "text": text}]}
        elif self.path == "/moderations":
            return {**said, "results": [{"flagged": False}]}
        elif self.path == "/videos":
            return {
                **said,
                "object": "video",
                "status": "queued",
                "seconds": self.asked["seconds"],
                "error": None,
            }
        elif self.path == "/audio/transcriptions":
            said = {"text": text}
        elif self.path == "/images/generations":
            said = {"created": 1, "data": [{"b64_json": base64.b64encode(text.encode()).decode()}]}
        else:
            said["data"] = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        return {**said, "usage": self.usage()} if usage else said

    def events(self) -> Iterator[tuple[int, bytes]]:
        """Bytes of text written once the event is, and the event."""
        size = len(self.text) // EVENTS
        parts = [self.text[at : at + size] for at in range(0, len(self.text), size)]
        usage = None if self.step == "silent" else self.usage()
        make: Callable[[list[str], dict | None], Iterator[tuple[int, bytes]]] = {
            "/responses": self._responses,
            "/messages": self._messages,
            "/images/generations": self._pictures,
            "/audio/transcriptions": self._heard,
        }.get(self.path, self._choices)
        return make(parts, usage)

    def _choices(self, parts: list[str], usage: dict | None) -> Iterator[tuple[int, bytes]]:
        head = {"id": "c1", "object": "chunk", "created": 1, "model": self.asked["model"]}
        chat, written = self.path == "/chat/completions", 0
        for part in parts:
            written += len(part)
            said = {"delta": {"content": part}} if chat else {"text": part}
            yield written, _event({**head, "choices": [{"index": 0, "finish_reason": None, **said}]})
        end = {"delta": {}} if chat else {"text": ""}
        yield written, _event({**head, "choices": [{"index": 0, "finish_reason": "stop", **end}]})
        if usage is not None:
            yield written, _event({**head, "choices": [], "usage": usage})
        yield written, b"data: [DONE]\n\n"

    def _responses(self, parts: list[str], usage: dict | None) -> Iterator[tuple[int, bytes]]:
        whole = self.answer(usage=False)
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        yield 0, _event({"type": "response.created", "sequence_number": 0, "response": begun})
        written = 0
        for number, part in enumerate(parts, 1):
            written += len(part)
            said = {"item_id": "m", "output_index": 0, "content_index": 0, "delta": part}
            yield written, _event({"type": "response.output_text.delta", "sequence_number": number, **said})
        yield (
            written,
            _event({"type": "response.completed", "sequence_number": 9, "response": {**whole, "usage": usage}}),
        )

    def _messages(self, parts: list[str], usage: dict | None) -> Iterator[tuple[int, bytes]]:
        head = {"id": "m1", "type": "message", "role": "assistant", "model": self.asked["model"], "content": []}
        yield 0, _event({"type": "message_start", "message": {**head, "usage": {**self.usage(), "output_tokens": 1}}})
        yield 0, _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        written = 0
        for part in parts:
            written += len(part)
            delta = {"type": "text_delta", "text": part}
            yield written, _event({"type": "content_block_delta", "index": 0, "delta": delta})
        yield written, _event({"type": "content_block_stop", "index": 0})
        reported = {"usage": {"output_tokens": self.after}} if usage is not None else {}
        yield written, _event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, **reported})
        yield written, _event({"type": "message_stop"})

    def _pictures(self, parts: list[str], usage: dict | None) -> Iterator[tuple[int, bytes]]:
        said = {"type": "image_generation.completed", "b64_json": "AAAA", "created_at": 1}
        yield len(self.text), _event({**said, **({"usage": usage} if usage is not None else {})})

    def _heard(self, parts: list[str], usage: dict | None) -> Iterator[tuple[int, bytes]]:
        written = 0
        for part in parts:
            written += len(part)
            yield written, _event({"type": "transcript.text.delta", "delta": part})
        said = {"type": "transcript.text.done", "text": self.text}
        yield written, _event({**said, **({"usage": usage} if usage is not None else {})})


def _event(said: dict) -> bytes:
    name = f"event: {said['type']}\n" if "type" in said else ""
    return f"{name}data: {json.dumps(said)}\n\n".encode()


def _public(answer: dict) -> dict:
    return {key: value for key, value in answer.items() if key not in ("then", "asked")}


def _abort(request: web.BaseRequest) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def _form(body: bytes) -> dict:
    found = re.findall(rb'name="(\w+)"\r\n\r\n([^\r]*)\r\n', body)
    return {name.decode(): value.decode() for name, value in found}
