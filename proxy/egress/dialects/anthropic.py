"""Anthropic's Messages API (docs.anthropic.com/en/api/messages, /errors, /streaming)."""

from __future__ import annotations

import json

from proxy.egress.dialects.canned import anthropic_answer
from proxy.egress.dialects.dialect import (
    NOTHING,
    Ask,
    Canned,
    Dialect,
    Json,
    StreamState,
    Usage,
    Verdict,
    count,
    mapping,
    text,
)
from proxy.egress.jsonbytes import json_bytes
from proxy.egress.sse import fields, message

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STATUSES = {"overloaded_error": 529, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504}


class Anthropic(Dialect):
    def endpoint(self, method: str, path: str) -> str | None:
        return "messages" if method == "POST" and path.lower().removeprefix("/v1") == "/messages" else None

    def due(self, endpoint: str) -> frozenset[str]:
        return frozenset(("content",))

    def error_status(self, error: object) -> int:
        kind = str(mapping(error).get("type"))
        return next((status for status, name in _TYPES.items() if name == kind and status != 503), 502)

    def ask(self, endpoint: str | None, body: Json | None) -> Ask:
        if endpoint is None or body is None:
            return NOTHING
        most, temperature = body.get("max_tokens"), body.get("temperature")
        exact = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
        return Ask(
            model=text(body.get("model")),
            stream=body.get("stream") is True,
            user=text(mapping(body.get("metadata")).get("user_id")),
            deterministic=exact,
            max_tokens=most if isinstance(most, int) else None,
        )

    def usage(self, endpoint: str, answer: object) -> Usage | None:
        found = mapping(answer)
        return usage_of(mapping(found.get("usage")), text(found.get("model"))) if found.get("usage") else None

    def error(self, code: str, status: int, message: str, *, request_id: str) -> bytes:
        error = {"type": _TYPES.get(status, "api_error"), "message": message, "code": code}
        return json_bytes({"type": "error", "error": error, "request_id": request_id or None})

    def permanent(self, status: int, answer: object) -> bool:
        kind = str(mapping(mapping(answer).get("error")).get("type") or "")
        return status == 429 and ("billing" in kind or "credit" in kind or "spend" in kind)

    def stream(self, endpoint: str, *, strip_usage: bool) -> StreamState | None:
        return MessagesStream()

    def canned(self, endpoint: str, body: Json, text: str, *, id: str, created: int) -> Canned | None:
        return anthropic_answer(body, text, id=id)


def usage_of(found: Json, model: str | None) -> Usage:
    """Their input_tokens leave out what the cache read or wrote; ours have all of them."""
    read, wrote = count(found.get("cache_read_input_tokens")), count(found.get("cache_creation_input_tokens"))
    fresh = count(found.get("input_tokens"))
    return Usage(fresh + read + wrote, read, count(found.get("output_tokens")), 0, model, dict(found))


class MessagesStream(StreamState):
    def __init__(self) -> None:
        super().__init__()
        self._used: dict[str, object] = {}

    def judge(self, event: bytes) -> Verdict:
        found = fields(event)
        if found.data is None:
            return Verdict.START
        try:
            said = json.loads(found.data)
        except (ValueError, RecursionError):
            return Verdict.MALFORMED
        if not isinstance(said, dict):
            return Verdict.MALFORMED
        kind = text(said.get("type"))
        if kind == "message_start":
            start = mapping(said.get("message"))
            self.model = text(start.get("model"))
            self._use(start.get("usage"))
            return Verdict.START
        if kind in ("ping", "content_block_start"):
            return Verdict.START
        if kind == "message_delta":
            self._use(said.get("usage"))
        if kind == "error":
            error = text(mapping(said.get("error")).get("type")) or ""
            self.error_status, self.retryable = _STATUSES.get(error, 400), error in _STATUSES
            return Verdict.ERROR
        if kind == "message_stop":
            self.ended = True
            return Verdict.END
        if kind == "content_block_delta":
            self.text_bytes += len(text(mapping(said.get("delta")).get("text")) or "")
        return Verdict.REAL

    def failure(self, code: str, message_: str) -> bytes:
        kind = "timeout_error" if code == "upstream_timeout" else "api_error"
        error = {"type": "error", "error": {"type": kind, "message": message_, "code": code}}
        return message(json_bytes(error), "error")

    def _use(self, found: object) -> None:
        self._used.update({key: value for key, value in mapping(found).items() if value is not None})
        if self._used:
            self.usage = usage_of(self._used, self.model)
