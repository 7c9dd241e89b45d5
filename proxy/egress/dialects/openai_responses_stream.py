"""Streams of OpenAI's Responses API: typed events with running sequence numbers.

platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import Any

from proxy.egress.dialects.base import (
    BackgroundStatus,
    EventKind,
    Json,
    StreamState,
    as_mapping,
    as_text,
    model_name,
    to_count,
)
from proxy.egress.dialects.delta_template import MAX_LEARNT, PlainRun, learn_template
from proxy.egress.dialects.image_tokens import PREVIEW_TOKENS, image_tokens
from proxy.egress.dialects.openai_chat_stream import classify_error
from proxy.egress.dialects.openai_usage import image_tool_model, openai_usage
from proxy.egress.dialects.output_size import OutputSize
from proxy.egress.sse import format_event, parse_event
from proxy.util.json_bytes import json_bytes, parse_json

_PREAMBLE_EVENTS = frozenset(
    (
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "keepalive",
    )
)
TEXT_DELTA = "response.output_text.delta"
PARTIAL_IMAGE = "response.image_generation_call.partial_image"
COMMAND_ADDED = "response.shell_call_command.added"
MAX_ITEMS = 1_000  # under way at once, whose deltas are counted apart
# Items that no model wrote: results of tools, answers of people, lists of tools. So are all `…_output`.
_NOT_WRITTEN = frozenset(("mcp_list_tools", "additional_tools", "mcp_approval_response"))
_END_EVENTS = frozenset(("response.completed", "response.incomplete"))


class ResponsesStream(StreamState):
    def __init__(self) -> None:
        super().__init__()
        self.sequence_number = -1
        self._response: dict[str, Any] = {}
        self._delta_bytes: dict[int, int] = {}  # by item: what its deltas had
        self._template_item = 0  # the item that the events of the template are of

    @property
    def background_status(self) -> BackgroundStatus | None:
        return background_status_of(self._response)

    def _count_plain(self, run: PlainRun) -> None:
        super()._count_plain(run)
        self.sequence_number = max(self.sequence_number, run.number)
        self._note_delta(self._template_item, run.size)

    def classify_parsed(self, event: bytes) -> EventKind:
        found = parse_event(event)
        if found.data is None:
            return EventKind.PREAMBLE
        if found.data.strip() == "[DONE]":
            self.ended = True
            return EventKind.END
        try:
            said = parse_json(found.data)
        except (ValueError, RecursionError):
            return EventKind.MALFORMED
        if not isinstance(said, dict):
            return EventKind.MALFORMED
        kind = as_text(said.get("type"))
        # An error event made here must follow on in the numbering.
        self.sequence_number = max(self.sequence_number, to_count(said.get("sequence_number")))
        response = said.get("response")
        if isinstance(response, dict):
            self._response = response
            self.output_size.image_model = image_tool_model(response)
            self.model = model_name(response.get("model")) or self.model
            self._read_usage(response)
        # Nothing of the answer has been shown yet, so a failure after this can still be tried again.
        if kind in _PREAMBLE_EVENTS:
            return EventKind.PREAMBLE
        if kind in _END_EVENTS:
            self.ended = True
            return EventKind.END
        # Errors come as an event type, or bare from proxies in front of the API.
        if kind in ("response.failed", "error") or (kind is None and said.get("error") is not None):
            self.ended = True
            error = as_mapping(as_mapping(response).get("error")) or as_mapping(said.get("error")) or said
            self.error_status, self.retryable = classify_error(error)
            return EventKind.ERROR
        self._count_output(kind or "", said)
        if kind == TEXT_DELTA and response is None and self._templates_learnt < MAX_LEARNT:
            self._templates_learnt += 1
            if isinstance(text := said.get("delta"), str) and (learnt := learn_template(event, b"delta", text)):
                self._template, self._template_item = learnt, to_count(said.get("output_index"))
        return EventKind.CONTENT

    def error_event(self, code: str, message_: str) -> bytes:
        """`response.failed` for apps that look at types, then an `error`: the SDK raises at that alone."""
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

    def _count_output(self, kind: str, said: Json) -> None:
        """Count deltas, and of a finished item what no delta had: some items come in one piece."""
        size, at = self.output_size, to_count(said.get("output_index"))
        if kind == TEXT_DELTA:  # the usual
            self._note_delta(at, size.add_text(said.get("delta")))
        elif kind == "response.output_item.done":
            whole = OutputSize()
            add_output_item(whole, as_mapping(said.get("item")))
            # Deltas and the finished item say the same thing twice: only what no delta had is new.
            rest = max(0, whole.text_bytes + whole.reasoning_bytes - self._delta_bytes.pop(at, 0))
            size.text_bytes += min(rest, whole.text_bytes)
            size.reasoning_bytes += max(0, rest - whole.text_bytes)
            size.image_tokens += whole.image_tokens
        elif kind == "response.audio.delta":
            size.add_audio(said.get("delta"))
        elif kind == PARTIAL_IMAGE:
            size.image_tokens += PREVIEW_TOKENS
        elif kind.endswith(".delta") or kind == COMMAND_ADDED:
            new = said.get("command") if kind == COMMAND_ADDED else said.get("delta")
            self._note_delta(at, size.add_text(new, reasoning="reasoning" in kind))

    def _note_delta(self, at: int, size: int) -> None:
        counted = self._delta_bytes.get(at)
        if counted is not None or len(self._delta_bytes) < MAX_ITEMS:
            self._delta_bytes[at] = (counted or 0) + size

    def _read_usage(self, response: Json) -> None:
        self.usage = openai_usage(response) or self.usage


def size_of_output(answer: Json) -> OutputSize:
    """Of a whole answer."""
    written = OutputSize()
    output = answer.get("output")
    for item in output if isinstance(output, list) else ():
        add_output_item(written, as_mapping(item))
    return written


def add_output_item(written: OutputSize, item: Json) -> None:
    kind = as_text(item.get("type")) or ""
    if kind.endswith("_output") or kind in _NOT_WRITTEN:
        return
    if kind == "image_generation_call" and item.get("result"):
        written.image_tokens += image_tokens(as_text(item.get("model")), item.get("size"), item.get("quality"))
    written.add_part(item, reasoning=kind == "reasoning")


def background_status_of(answer: object) -> BackgroundStatus | None:
    """The status of a response, as a whole answer or an event has it; None if this is no response.

    It may also be the confirmation that one was deleted.
    """
    found = as_mapping(answer)
    reference = as_text(found.get("id"))
    if reference is None:
        return None
    background, usage = found.get("background"), openai_usage(found)
    return BackgroundStatus(
        reference=reference,
        status=as_text(found.get("status")),
        usage=usage,
        background=background if isinstance(background, bool) else None,
        deleted=found.get("deleted") is True,
        output_size=size_of_output(found) if usage is None else OutputSize(),
    )
