"""Streams of chat completions and legacy completions: chunks, then `[DONE]`.

platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

from proxy.egress.dialects.base import EventKind, Json, StreamState, as_mapping, as_text, model_name, to_count
from proxy.egress.dialects.delta_template import MAX_LEARNT, learn_template
from proxy.egress.dialects.openai_usage import openai_usage
from proxy.egress.dialects.output_size import OutputSize
from proxy.egress.sse import format_event, parse_event
from proxy.util.json_bytes import json_bytes, parse_json


class ChatStream(StreamState):
    """Some hosts never send `[DONE]`: an answer whose every choice has its finish_reason is whole all the same."""

    def __init__(self, *, strip_usage: bool) -> None:
        super().__init__()
        self._strip_usage = strip_usage
        self._tier: str | None = None
        self._saw_done = False
        self._unfinished: dict[int, bool] = {}  # choices without a finish_reason so far

    @property
    def usage_is_final(self) -> bool:
        return self.ended  # some hosts (xAI, vLLM) report usage with every chunk

    @property
    def is_over(self) -> bool:
        return self._saw_done  # usage may still follow a finish_reason

    def classify_parsed(self, event: bytes) -> EventKind:
        found = parse_event(event)
        if found.data is None:
            return EventKind.PREAMBLE
        if found.data.strip() == "[DONE]":
            self.ended = self._saw_done = True
            return EventKind.END
        try:
            chunk = parse_json(found.data)
        except (ValueError, RecursionError):
            return EventKind.MALFORMED
        if not isinstance(chunk, dict):
            return EventKind.MALFORMED
        if chunk.get("error") is not None:
            self._read_error(as_mapping(chunk["error"]))
            return EventKind.ERROR
        self._tier = as_text(chunk.get("service_tier")) or self._tier
        if chunk.get("usage") is not None:
            self.usage = openai_usage(chunk, self._tier) or self.usage
            # The gateway asked for this chunk (`stream_options`); an app that did not would stumble over empty
            # choices.
            if self._strip_usage and not chunk.get("choices"):
                return EventKind.DROP
        # The first chunk's model is the one that answers; later chunks repeat it.
        if self.model is None:
            self.model = model_name(chunk.get("model"))
        verdict = self._read_choices(chunk)
        if verdict is EventKind.CONTENT and self._templates_learnt < MAX_LEARNT:
            self._learn_template(event, chunk)
        return verdict

    def error_event(self, code: str, message_: str) -> bytes:
        error = {"message": message_, "type": "server_error", "param": None, "code": code}
        return format_event(json_bytes({"error": error}))

    def _read_choices(self, chunk: Json) -> EventKind:
        choices = chunk.get("choices")
        verdict = EventKind.PREAMBLE
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            done = choice.get("finish_reason") is not None
            self._unfinished[to_count(choice.get("index"))] = not done
            delta = as_mapping(choice.get("delta"))
            said = self.output_size.add_text(choice["text"]) if "text" in choice else 0
            if len(delta) == 1 and "content" in delta:  # the usual
                said = self.output_size.add_text(delta["content"])
            if not said:
                self.output_size.add_part(delta)
            # A first chunk has the role alone: until content comes, a failure can still be tried again unseen.
            if done or said or any(value for key, value in delta.items() if key != "role"):
                verdict = EventKind.CONTENT
        # Some hosts never send [DONE], so finish reasons decide as well.
        if self._unfinished:  # with several choices (n) one may end before the next begins
            self.ended = self._saw_done or not any(self._unfinished.values())
        return verdict

    def _learn_template(self, event: bytes, chunk: Json) -> None:
        """Keep the bytes of an event that has nothing but text for one choice that goes on."""
        choices = chunk.get("choices")
        if chunk.get("usage") is not None or not isinstance(choices, list) or len(choices) != 1:
            return
        delta, text = as_mapping(choices[0].get("delta")), choices[0].get("text")
        key = "text" if isinstance(text, str) else "content"
        text = text if key == "text" else delta.get("content")
        if choices[0].get("finish_reason") is not None or delta.keys() - {"content", "role"}:
            return
        if isinstance(text, str) and (key == "content" or not delta):
            self._templates_learnt += 1
            self._template = learn_template(event, key.encode(), text) or self._template

    def _read_error(self, error: Json) -> None:
        self.error_status, self.retryable = classify_error(error)


def size_of_choices(answer: Json) -> OutputSize:
    """Of a whole answer, chat's or legacy completions'."""
    written = OutputSize()
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        written.add_text(as_mapping(choice).get("text"))
        written.add_part(as_mapping(as_mapping(choice).get("message")))
    return written


def classify_error(error: Json) -> tuple[int, bool]:
    """The status that an error inside a stream would have had, and whether another attempt may mend it."""
    said = f"{error.get('type') or ''} {error.get('code') or ''}"
    # First of all: no retry mends an empty account, whatever else its error says.
    if "insufficient_quota" in said:
        return 429, False
    if "rate_limit" in said:
        return 429, True
    if "overloaded" in said:
        return 529, True
    if "server" in said or "timeout" in said or "api_error" in said or "unavailable" in said:
        return 500, True
    return 400, False
