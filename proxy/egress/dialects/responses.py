"""A stream of OpenAI's Responses API: typed events with running sequence numbers."""

from __future__ import annotations

import json
from typing import Any

from proxy.egress.dialects.chat import judged
from proxy.egress.dialects.dialect import Json, StreamState, Verdict, count, mapping, text
from proxy.egress.dialects.usage import openai_usage
from proxy.egress.jsonbytes import json_bytes
from proxy.egress.sse import fields, message

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
_END = frozenset(("response.completed", "response.incomplete"))


class ResponsesStream(StreamState):
    def __init__(self) -> None:
        super().__init__()
        self.sequence_number = -1
        self._response: dict[str, Any] = {}

    def judge(self, event: bytes) -> Verdict:
        found = fields(event)
        if found.data is None:
            return Verdict.START
        if found.data.strip() == "[DONE]":
            self.ended = True
            return Verdict.END
        try:
            said = json.loads(found.data)
        except (ValueError, RecursionError):
            return Verdict.MALFORMED
        if not isinstance(said, dict):
            return Verdict.MALFORMED
        kind = text(said.get("type"))
        self.sequence_number = max(self.sequence_number, count(said.get("sequence_number")))
        response = said.get("response")
        if isinstance(response, dict):
            self._response = response
            self.model = text(response.get("model")) or self.model
            self._use(response)
        if kind in _START:
            return Verdict.START
        if kind in _END:
            self.ended = True
            return Verdict.END
        if kind in ("response.failed", "error") or (kind is None and said.get("error") is not None):
            self.ended = True
            error = mapping(mapping(response).get("error")) or mapping(said.get("error")) or said
            self.error_status, self.retryable = judged(error)
            return Verdict.ERROR
        if kind == "response.output_text.delta":
            self.text_bytes += len(text(said.get("delta")) or "")
        return Verdict.REAL

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
        first = message(json_bytes(failed), "response.failed")
        return first + message(json_bytes({"error": error}), "error")

    def _use(self, response: Json) -> None:
        self.usage = openai_usage(response) or self.usage
