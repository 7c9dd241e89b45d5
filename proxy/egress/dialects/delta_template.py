"""Events that differ from one before them in their text alone, told by their bytes.

A model's answer streams as hundreds of events with the same JSON around a few bytes of text. Once one of them has been
parsed, another with the same bytes around its text says the same with that text: within a JSON string, bytes without
quotes, backslashes and control characters are the text itself (RFC 8259 section 7). So it need not be parsed. Whatever
differs by a single other byte is parsed as ever.

Measured on a stream of chat completions, cutting it into events included: 2.0 µs an event in place of 5.8.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_LEARNT = 4  # templates of one stream: one whose events all differ does not pay for each again

_TEXT = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"0|[1-9][0-9]{0,14}")
_PADDING = re.compile(rb'"obfuscation"\s*:\s*"')  # of random length, so that nobody learns from the sizes of packets
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(?=[0-9])')


class Delta(NamedTuple):
    """What an event has in its template's holes: `size` in bytes of text, `number` is -1 without one."""

    size: int
    number: int


class DeltaTemplate:
    """The bytes of an event between its holes: its text, its sequence number and its padding."""

    __slots__ = ("_number_at", "_parts", "_tail", "_text_at")

    def __init__(
        self, parts: list[tuple[bytes, re.Pattern[bytes]]], tail: bytes, text_at: int, number_at: int | None
    ) -> None:
        """`parts`: what stands before each hole, and what may stand in it; `text_at`, `number_at`: which hole has the
        text, and which the number."""
        self._parts = parts
        self._tail = tail
        self._text_at = text_at
        self._number_at = number_at

    def match(self, event: bytes) -> Delta | None:
        """What stands in the holes, if all else is the same."""
        at, size, number = 0, 0, -1
        for hole, (literal, pattern) in enumerate(self._parts):
            if not event.startswith(literal, at):
                return None
            start = at + len(literal)
            found = pattern.match(event, start)
            if found is None:
                return None
            at = found.end()
            if hole == self._text_at:
                size = at - start
            elif hole == self._number_at:
                number = int(event[start:at])
        return Delta(size, number) if event[at:] == self._tail else None


def learn_template(event: bytes, key: bytes, text: str) -> DeltaTemplate | None:
    """A template from an event that was parsed, whose only text is `text`, below `key`; None if its bytes do not show
    it plainly."""
    texts = list(re.finditer(rb'"%s"\s*:\s*"' % key, event))
    paddings, numbers = list(_PADDING.finditer(event)), list(_SEQUENCE.finditer(event))
    if len(texts) != 1 or len(paddings) > 1 or len(numbers) > 1 or b"\r" in event:
        return None
    start = texts[0].end()
    shown = _TEXT.match(event, start)
    if shown is None or shown[0] != text.encode("utf-8", "surrogatepass"):
        return None  # it has escapes
    holes = [(found.end(), _TEXT) for found in (*texts, *paddings)] + [(found.end(), _NUMBER) for found in numbers]
    holes.sort(key=lambda hole: hole[0])
    parts, at = [], 0
    for hole, pattern in holes:
        filled = pattern.match(event, hole)
        if filled is None:
            return None
        parts.append((event[at:hole], pattern))
        at = filled.end()
    order = [hole for hole, _ in holes]
    return DeltaTemplate(parts, event[at:], order.index(start), order.index(numbers[0].end()) if numbers else None)
