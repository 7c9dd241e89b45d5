"""How much a model wrote, for where no usage says so: a stream that was cut, an answer of a host that reports none.

Everything that it writes is output, not its prose alone: tool arguments, code, refusals, what it thought, speech.
So all text counts but for what is named here, and a kind of delta that is new counts before anybody has heard of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names, ids and marks; what tools answered (that is input); citations and probabilities, which are read off the text.
UNWRITTEN = frozenset(
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
# One thought under the names that hosts have for it; where a part has two, they say the same.
THOUGHT = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "reasoning_details")
_THOUGHTS = frozenset(THOUGHT)
_PROSE = UNWRITTEN | {"content", "refusal"}
# Of these a model writes the names too: JSON of a shape that is the app's.
VERBATIM = frozenset(("input", "arguments", "action", "operation", "actions"))
# Thoughts that only the vendor can read: base64, three bytes in four characters.
SEALED = frozenset(("encrypted_content", "signature"))
AUDIO_CHARACTERS = 3_200  # of base64 for a token: 24 kHz of 16 bits, 20 tokens a second
PICTURE = 1_300  # tokens of an image inside a text answer (ai.google.dev/gemini-api/docs/pricing: 1,290)


class OutputSize:
    """`text` and `thought` are bytes of UTF-8; `audio`, `images` and `tokens` (of no kind of their own) are tokens.
    `painter`: the model that a tool draws with, where that is another and named."""

    __slots__ = ("audio", "images", "painter", "text", "thought", "tokens")

    def __init__(self, text: int = 0) -> None:
        self.text = text
        self.thought = 0
        self.audio = 0
        self.images = 0
        self.painter: str | None = None
        self.tokens = 0

    def __repr__(self) -> str:
        return " ".join(f"{name}={getattr(self, name)}" for name in self.__slots__)

    def __bool__(self) -> bool:
        return bool(self.text or self.thought or self.audio or self.images or self.tokens)

    def lesson(self, reasoning: int) -> int:
        """Bytes of text that so many tokens of output, less `reasoning`, stand for; 0 where nothing is to be learnt:
        where they are tokens of something else, too."""
        if self.audio or self.images or self.tokens or (self.thought and not reasoning):
            return 0
        return self.text

    def say(self, text: object, *, thought: bool = False) -> int:
        """Count a text; how many bytes it has."""
        if not isinstance(text, str):
            return 0
        size = len(text) if text.isascii() else size_of(text)
        if thought:
            self.thought += size
        else:
            self.text += size
        return size

    def seal(self, base64: object, told: int = 0) -> None:
        """A thought that only the vendor can read, of which so many bytes were told besides."""
        if isinstance(base64, str):
            self.thought += max(0, len(base64) * 3 // 4 - told)

    def speak(self, base64: object) -> None:
        if isinstance(base64, str):
            self.audio += -(-len(base64) // AUDIO_CHARACTERS)

    def part(self, part: Mapping[str, Any], *, thought: bool = False) -> None:
        """A message, an item of output, or a delta of one: all in it that is not UNWRITTEN."""
        if part.keys() <= _PROSE and isinstance(part.get("content"), str) and not part.get("refusal"):
            self.say(part["content"], thought=thought)  # the usual
            return
        told = None
        if not _THOUGHTS.isdisjoint(part):
            told = next((name for name in THOUGHT if part.get(name)), None)
        before = self.thought
        for name, value in part.items():
            if isinstance(value, str) and name == "content":
                self.say(value, thought=thought)
            elif value and name not in UNWRITTEN and name not in SEALED and (name == told or name not in THOUGHT):
                self._take(name, value, thought)
        if not SEALED.isdisjoint(part):
            for name in SEALED:
                self.seal(part.get(name), self.thought - before)

    def _take(self, name: str, value: object, thought: bool) -> None:
        thought, verbatim = thought or name in THOUGHT, name in VERBATIM
        left: list[tuple[str, Any, bool, bool]] = [(name, value, thought, verbatim)]
        while left:
            name, value, thought, verbatim = left.pop()
            if isinstance(value, str):
                if name in SEALED and not verbatim:
                    self.seal(value)
                elif value.startswith("data:image/") and not verbatim:
                    self.images += PICTURE
                else:
                    self.say(value, thought=thought)
            elif isinstance(value, dict):
                if name == "audio" and not verbatim:
                    self.speak(value.get("data"))
                    value = {"transcript": value.get("transcript")}
                for key, inner in value.items():
                    if verbatim:
                        self.text += len(key) + 4
                    elif key in UNWRITTEN:
                        continue
                    left.append((key, inner, thought or key in THOUGHT, verbatim or key in VERBATIM))
            elif isinstance(value, list):
                left.extend((name, inner, thought, verbatim) for inner in value)
            elif verbatim and value is not None:
                self.text += 4


def size_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
