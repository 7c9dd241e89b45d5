"""A stream of OpenAI's Responses API: typed events with running sequence numbers."""

from __future__ import annotations

import json
from typing import Any

from proxy.egress.dialects.base import BackgroundStatus, EventKind, Json, StreamState, count, mapping, model_name, text
from proxy.egress.dialects.image_tokens import PARTIAL, image_tokens
from proxy.egress.dialects.openai_chat_stream import judged
from proxy.egress.dialects.openai_usage import drawing_model, openai_usage
from proxy.egress.dialects.output_size import OutputSize
from proxy.egress.sse import format_event, parse_event
from proxy.util.json_bytes import json_bytes

_START = frozenset(
    (
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "keepalive",
    )
)
DELTA = "response.output_text.delta"
PARTIAL_IMAGE = "response.image_generation_call.partial_image"
COMMAND = "response.shell_call_command.added"
MOST_ITEMS = 1_000  # under way at once, whose deltas are told apart
# Items that no model wrote: what tools and people answered, lists of tools. So are all `…_output`.
_GIVEN = frozenset(("mcp_list_tools", "additional_tools", "mcp_approval_response"))
_END = frozenset(("response.completed", "response.incomplete"))


class ResponsesStream(StreamState):
    def __init__(self) -> None:
        super().__init__()
        self.sequence_number = -1
        self._response: dict[str, Any] = {}
        self._told: dict[int, int] = {}  # bytes of an item that its deltas had

    @property
    def shown(self) -> BackgroundStatus | None:
        return shown_of(self._response)

    def judge(self, event: bytes) -> EventKind:
        found = parse_event(event)
        if found.data is None:
            return EventKind.START
        if found.data.strip() == "[DONE]":
            self.ended = True
            return EventKind.END
        try:
            said = json.loads(found.data)
        except (ValueError, RecursionError):
            return EventKind.MALFORMED
        if not isinstance(said, dict):
            return EventKind.MALFORMED
        kind = text(said.get("type"))
        self.sequence_number = max(self.sequence_number, count(said.get("sequence_number")))
        response = said.get("response")
        if isinstance(response, dict):
            self._response = response
            self.written.painter = drawing_model(response)
            self.model = model_name(response.get("model")) or self.model
            self._use(response)
        if kind in _START:
            return EventKind.START
        if kind in _END:
            self.ended = True
            return EventKind.END
        if kind in ("response.failed", "error") or (kind is None and said.get("error") is not None):
            self.ended = True
            error = mapping(mapping(response).get("error")) or mapping(said.get("error")) or said
            self.error_status, self.retryable = judged(error)
            return EventKind.ERROR
        self._count(kind or "", said)
        return EventKind.REAL

    def failure(self, code: str, message_: str) -> bytes:
        """`response.failed` for those who look at types; the SDK raises at an `error` only."""
        failed = {
            "type": "response.failed",
            "sequence_number": self.sequence_number + 1,
            "response": {
                "id": "",
                "created_at": 0,
                "model": self.model or "",
                "output": [],
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
                **self._response,
                "object": "response",
                "status": "failed",
                "error": {"code": "server_error", "message": message_},
            },
        }
        error = {"message": message_, "type": "server_error", "param": None, "code": code}
        first = format_event(json_bytes(failed), "response.failed")
        return first + format_event(json_bytes({"error": error}), "error")

    def _count(self, kind: str, said: Json) -> None:
        """All that its deltas have, and of an item that is over what none of them had: some come at once."""
        written, at = self.written, count(said.get("output_index"))
        if kind == DELTA:  # the usual
            self._tell(at, written.say(said.get("delta")))
        elif kind == "response.output_item.done":
            whole = OutputSize()
            written_item(whole, mapping(said.get("item")))
            rest = max(0, whole.text + whole.thought - self._told.pop(at, 0))
            written.text += min(rest, whole.text)
            written.thought += max(0, rest - whole.text)
            written.images += whole.images
        elif kind == "response.audio.delta":
            written.speak(said.get("delta"))
        elif kind == PARTIAL_IMAGE:
            written.images += PARTIAL
        elif kind.endswith(".delta") or kind == COMMAND:
            new = said.get("command") if kind == COMMAND else said.get("delta")
            self._tell(at, written.say(new, thought="reasoning" in kind))

    def _tell(self, at: int, size: int) -> None:
        told = self._told.get(at)
        if told is not None or len(self._told) < MOST_ITEMS:
            self._told[at] = (told or 0) + size

    def _use(self, response: Json) -> None:
        self.usage = openai_usage(response) or self.usage


def written_output(answer: Json) -> OutputSize:
    """Of a whole answer."""
    written = OutputSize()
    output = answer.get("output")
    for item in output if isinstance(output, list) else ():
        written_item(written, mapping(item))
    return written


def written_item(written: OutputSize, item: Json) -> None:
    kind = text(item.get("type")) or ""
    if kind.endswith("_output") or kind in _GIVEN:
        return
    if kind == "image_generation_call" and item.get("result"):
        written.images += image_tokens(text(item.get("model")), item.get("size"), item.get("quality"))
    written.part(item, thought=kind == "reasoning")


def shown_of(answer: object) -> BackgroundStatus | None:
    """Of a response as a whole answer or an event has it, or of what is said of one that was deleted."""
    found = mapping(answer)
    reference = text(found.get("id"))
    if reference is None:
        return None
    background, usage = found.get("background"), openai_usage(found)
    return BackgroundStatus(
        reference=reference,
        status=text(found.get("status")),
        usage=usage,
        background=background if isinstance(background, bool) else None,
        deleted=found.get("deleted") is True,
        written=written_output(found) if usage is None else OutputSize(),
    )
