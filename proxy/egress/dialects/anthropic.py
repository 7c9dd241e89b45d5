"""Anthropic's Messages API (docs.anthropic.com/en/api/messages, /errors, /streaming)."""

from __future__ import annotations

from proxy.egress.dialects.anthropic_usage import anthropic_usage
from proxy.egress.dialects.base import (
    NO_REQUEST_INFO,
    Dialect,
    EventKind,
    Json,
    RequestInfo,
    StreamState,
    SyntheticResponse,
    Usage,
    as_mapping,
    as_text,
    model_name,
    to_count,
)
from proxy.egress.dialects.delta_template import MAX_LEARNT, learn_template
from proxy.egress.dialects.endpoints import ANTHROPIC, EndpointTable
from proxy.egress.dialects.output_size import OutputSize
from proxy.egress.dialects.synthetic_response import anthropic_response
from proxy.egress.sse import format_event, parse_event
from proxy.util.json_bytes import json_bytes, parse_json

_ERROR_TYPES = {
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
_ENDPOINTS = EndpointTable(ANTHROPIC)
_RETRYABLE_STATUSES = {"overloaded_error": 529, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504}


class Anthropic(Dialect):
    """Anthropic's Messages API."""

    def endpoint(self, method: str, path: str) -> str | None:
        return _ENDPOINTS.find(path) if method == "POST" else None

    def required_keys(self, endpoint: str) -> frozenset[str]:
        return frozenset(("content",))

    def error_status(self, error: object) -> int:
        kind = str(as_mapping(error).get("type"))
        return next((status for status, name in _ERROR_TYPES.items() if name == kind and status != 503), 502)

    def parse_request(self, endpoint: str | None, body: Json | None) -> RequestInfo:
        if endpoint is None or body is None:
            return NO_REQUEST_INFO
        most, temperature = body.get("max_tokens"), body.get("temperature")
        exact = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
        return RequestInfo(
            model=model_name(body.get("model")),
            stream=body.get("stream") is True,
            user=as_text(as_mapping(body.get("metadata")).get("user_id")),
            deterministic=exact,
            max_tokens=to_count(most) if isinstance(most, int | float) else None,
        )

    def usage(self, endpoint: str, answer: object) -> Usage | None:
        found = as_mapping(answer)
        return (
            anthropic_usage(as_mapping(found.get("usage")), model_name(found.get("model")))
            if found.get("usage")
            else None
        )

    def output_size(self, endpoint: str, answer: object) -> OutputSize:
        written, content = OutputSize(), as_mapping(answer).get("content")
        for block in content if isinstance(content, list) else ():
            add_block(written, as_mapping(block))
        return written

    def error_body(self, code: str, status: int, message: str, *, request_id: str) -> bytes:
        error = {"type": _ERROR_TYPES.get(status, "api_error"), "message": message, "code": code}
        return json_bytes({"type": "error", "error": error, "request_id": request_id or None})

    def is_permanent(self, status: int, answer: object) -> bool:
        kind = str(as_mapping(as_mapping(answer).get("error")).get("type") or "")
        return status == 429 and ("billing" in kind or "credit" in kind or "spend" in kind)

    def stream_state(self, endpoint: str, *, strip_usage: bool) -> StreamState | None:
        return MessagesStream()

    def synthetic_response(
        self, endpoint: str, body: Json, text: str, *, id: str, created: int
    ) -> SyntheticResponse | None:
        return anthropic_response(body, text, id=id)


HIDDEN_TOKEN_BYTES = 4  # that a token of hidden reasoning would have had
# Blocks that no model wrote. So are all `…_result`: the results of tools are input.
_NOT_WRITTEN = frozenset(("fallback", "container_upload", "mcp_tool_listing"))


def add_block(written: OutputSize, block: Json) -> None:
    kind = as_text(block.get("type")) or ""
    if kind == "redacted_thinking":
        written.add_sealed(block.get("data"))
    elif not kind.endswith("_result") and kind not in _NOT_WRITTEN:
        written.add_part(block)


class MessagesStream(StreamState):
    """message_start, then blocks of start, deltas and stop, then message_delta with the usage, and message_stop."""

    def __init__(self) -> None:
        super().__init__()
        self._usage_members: dict[str, object] = {}
        self._final = False
        # Of the block under way: bytes of reasoning counted, and tokens of reasoning that the vendor hides.
        self._reasoning_bytes = self._hidden_tokens = 0

    @property
    def usage_is_final(self) -> bool:
        return self._final  # message_start reports the input, and a token or two of output

    def classify_parsed(self, event: bytes) -> EventKind:
        found = parse_event(event)
        if found.data is None:
            return EventKind.PREAMBLE
        try:
            said = parse_json(found.data)
        except (ValueError, RecursionError):
            return EventKind.MALFORMED
        if not isinstance(said, dict):
            return EventKind.MALFORMED
        kind = as_text(said.get("type"))
        if kind == "message_start":
            start = as_mapping(said.get("message"))
            self.model = model_name(start.get("model"))
            self._read_usage(start.get("usage"))
            return EventKind.PREAMBLE
        if kind == "content_block_start":
            # A signature seals the reasoning of its own block alone.
            self._reasoning_bytes = self._hidden_tokens = 0
            add_block(self.output_size, as_mapping(said.get("content_block")))
            return EventKind.PREAMBLE
        if kind == "ping":
            return EventKind.PREAMBLE
        if kind == "message_delta":
            self._read_usage(said.get("usage"))
            self._final = self._final or bool(said.get("usage"))
        if kind == "error":
            error = as_text(as_mapping(said.get("error")).get("type")) or ""
            self.error_status, self.retryable = _RETRYABLE_STATUSES.get(error, 400), error in _RETRYABLE_STATUSES
            return EventKind.ERROR
        if kind == "message_stop":
            self.ended = True
            return EventKind.END
        if kind == "content_block_delta":
            delta = as_mapping(said.get("delta"))
            self._count_delta(delta)
            if self._templates_learnt < MAX_LEARNT and delta.get("type") == "text_delta":
                self._templates_learnt += 1
                if isinstance(text := delta.get("text"), str) and delta.keys() == {"type", "text"}:
                    self._template = learn_template(event, b"text", text) or self._template
        return EventKind.CONTENT

    def error_event(self, code: str, message_: str) -> bytes:
        kind = "timeout_error" if code == "upstream_timeout" else "api_error"
        error = {"type": "error", "error": {"type": kind, "message": message_, "code": code}}
        return format_event(json_bytes(error), "error")

    def _count_delta(self, delta: Json) -> None:
        """Count a delta. What `citations_delta` quotes is not billed (docs.claude.com, citations)."""
        if "text" in delta and self.output_size.add_text(delta["text"]):  # the usual
            return
        before = self.output_size.reasoning_bytes
        if delta.get("type") == "signature_delta":
            self.output_size.add_sealed(
                delta.get("signature"), self._reasoning_bytes + HIDDEN_TOKEN_BYTES * self._hidden_tokens
            )
        else:
            self.output_size.add_part(delta)
            if not delta.get("thinking"):  # hidden (`display: omitted`), and sometimes reported by its length
                hidden = to_count(delta.get("estimated_tokens"))
                self.output_size.other_tokens += hidden
                self._hidden_tokens += hidden
        self._reasoning_bytes += self.output_size.reasoning_bytes - before

    def _read_usage(self, found: object) -> None:
        # message_start and message_delta each report a part of the usage, and the later figure is the sum so far.
        self._usage_members.update({key: value for key, value in as_mapping(found).items() if value is not None})
        if self._usage_members:
            self.usage = anthropic_usage(self._usage_members, self.model)
