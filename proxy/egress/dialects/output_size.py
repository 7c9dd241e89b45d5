"""How much a model wrote, for answers without usage: a stream that was cut, an answer of a host that reports none.

Everything that a model writes is billed as output, not its prose alone: tool arguments, code, refusals, reasoning,
speech. So all text counts except what is listed here, and a kind of delta that a vendor adds later counts from its
first day.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names, ids and flags; results of tools, which are input; citations and probabilities, which repeat the text.
UNWRITTEN_KEYS = frozenset(
    [
        "id",
        "type",
        "role",
        "index",
        "object",
        "status",
        "phase",
        "call_id",
        "item_id",
        "tool_use_id",
        "file_id",
        "container_id",
        "response_id",
        "server_label",
        "server_name",
        "created_by",
        "caller",
        "expires_at",
        "format",
        "obfuscation",
        "annotations",
        "citations",
        "citation",
        "logprobs",
        "outputs",
        "output",
        "result",
        "results",
        "size",
        "quality",
        "background",
        "output_format",
        "tools",
        "error",
        "moderation",
    ]
)
# Reasoning under the names that hosts have for it; if a part has two of them, they say the same.
REASONING_KEYS = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "reasoning_details")
_REASONING_KEY_SET = frozenset(REASONING_KEYS)
_PROSE_KEYS = UNWRITTEN_KEYS | {"content", "refusal"}
# Below these a model writes the keys too: it is JSON in a shape that the app defined.
VERBATIM_KEYS = frozenset(("input", "arguments", "action", "operation", "actions"))
# Reasoning that only the vendor can read: base64, three bytes in four characters.
SEALED_KEYS = frozenset(("encrypted_content", "signature"))
BASE64_PER_AUDIO_TOKEN = 3_200  # characters: 24 kHz of 16 bits, 20 tokens a second
INLINE_IMAGE_TOKENS = 1_300  # of an image inside a text answer (ai.google.dev/gemini-api/docs/pricing: 1,290)
JSON_OVERHEAD = 4  # bytes of quotes, colon and comma around a key, or of `true` and `null`


class OutputSize:
    """A count of what was written, filled piece by piece.

    text_bytes: UTF-8 bytes of text, code, arguments, refusals
    reasoning_bytes: UTF-8 bytes of reasoning, readable or sealed
    audio_tokens, image_tokens: tokens of speech and of images
    image_model: the model that a tool draws with, if that is another and named
    other_tokens: tokens that a vendor counted but does not show
    """

    __slots__ = ("audio_tokens", "image_model", "image_tokens", "other_tokens", "reasoning_bytes", "text_bytes")

    def __init__(self, text_bytes: int = 0) -> None:
        self.text_bytes = text_bytes
        self.reasoning_bytes = 0
        self.audio_tokens = 0
        self.image_tokens = 0
        self.image_model: str | None = None
        self.other_tokens = 0

    def __repr__(self) -> str:
        return " ".join(f"{name}={getattr(self, name)}" for name in self.__slots__)

    def __bool__(self) -> bool:
        return bool(
            self.text_bytes or self.reasoning_bytes or self.audio_tokens or self.image_tokens or self.other_tokens
        )

    def learnable_text_bytes(self, reasoning: int) -> int:
        """Bytes of text that the reported output tokens, less the `reasoning` ones, stand for.

        It is 0 if nothing can be learnt, since the reported tokens are of something else too.
        """
        if self.audio_tokens or self.image_tokens or self.other_tokens or (self.reasoning_bytes and not reasoning):
            return 0
        return self.text_bytes

    def add_text(self, text: object, *, reasoning: bool = False) -> int:
        """Count a text; the return value is its length in bytes."""
        if not isinstance(text, str):
            return 0
        size = len(text) if text.isascii() else utf8_length(text)
        if reasoning:
            self.reasoning_bytes += size
        else:
            self.text_bytes += size
        return size

    def add_sealed(self, base64: object, already_counted: int = 0) -> None:
        """Count reasoning that only the vendor can read, less the bytes of it that were readable besides."""
        if isinstance(base64, str):
            self.reasoning_bytes += max(0, len(base64) * 3 // 4 - already_counted)

    def add_audio(self, base64: object) -> None:
        if isinstance(base64, str):
            self.audio_tokens += -(-len(base64) // BASE64_PER_AUDIO_TOKEN)

    def add_part(self, part: Mapping[str, Any], *, reasoning: bool = False) -> None:
        """Count a message, an item of output, or a delta of one: all in it that is not UNWRITTEN_KEYS."""
        if part.keys() <= _PROSE_KEYS and isinstance(part.get("content"), str) and not part.get("refusal"):
            self.add_text(part["content"], reasoning=reasoning)  # the usual case, and the quick one
            return
        # Hosts repeat one thought under several keys (`reasoning`, `reasoning_details`): it is counted once.
        reasoning_key = None
        if not _REASONING_KEY_SET.isdisjoint(part):
            reasoning_key = next((key for key in REASONING_KEYS if part.get(key)), None)
        before = self.reasoning_bytes
        for key, value in part.items():
            if isinstance(value, str) and key == "content":
                self.add_text(value, reasoning=reasoning)
            elif not value or key in UNWRITTEN_KEYS or key in SEALED_KEYS:
                continue
            elif key == reasoning_key or key not in _REASONING_KEY_SET:  # of several names for one thought, the first
                self._add_value(key, value, reasoning)
        if not SEALED_KEYS.isdisjoint(part):
            for key in SEALED_KEYS:
                self.add_sealed(part.get(key), self.reasoning_bytes - before)

    def _add_value(self, key: str, value: object, reasoning: bool) -> None:
        # A stack and no recursion: a hostile answer may be nested as deep as the JSON parser lets it be.
        reasoning, verbatim = reasoning or key in _REASONING_KEY_SET, key in VERBATIM_KEYS
        stack: list[tuple[str, Any, bool, bool]] = [(key, value, reasoning, verbatim)]
        while stack:
            key, value, reasoning, verbatim = stack.pop()
            if isinstance(value, str):
                if key in SEALED_KEYS and not verbatim:
                    self.add_sealed(value)
                elif value.startswith("data:image/") and not verbatim:
                    self.image_tokens += INLINE_IMAGE_TOKENS
                else:
                    self.add_text(value, reasoning=reasoning)
            elif isinstance(value, dict):
                if key == "audio" and not verbatim:
                    self.add_audio(value.get("data"))
                    value = {"transcript": value.get("transcript")}
                for inner_key, inner in value.items():
                    if verbatim:
                        self.text_bytes += len(inner_key) + JSON_OVERHEAD
                    elif inner_key in UNWRITTEN_KEYS:
                        continue
                    inner_reasoning = reasoning or inner_key in _REASONING_KEY_SET
                    stack.append((inner_key, inner, inner_reasoning, verbatim or inner_key in VERBATIM_KEYS))
            elif isinstance(value, list):
                stack.extend((key, inner, reasoning, verbatim) for inner in value)
            elif verbatim and value is not None:
                self.text_bytes += JSON_OVERHEAD


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
