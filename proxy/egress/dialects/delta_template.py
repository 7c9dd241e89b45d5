"""Events that differ from one before them in their text alone, told by their bytes.

A model's answer streams as hundreds of events with the same JSON around a few bytes of text. Once one of them has been
parsed, another with the same bytes around its text says the same with that text: within a JSON string, bytes without
quotes, backslashes and control characters are the text itself (RFC 8259 section 7). So it need not be parsed, nor be
cut out of the bytes that it came in. Whatever differs by a single other byte is parsed as ever.

Measured on a stream of chat completions: 0.2 µs an event if many come together and 0.9 if each comes alone; cut out and
parsed it is 4.4.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.util.json_bytes import parse_json

MAX_LEARNT = 4  # templates of one stream: one whose events all differ does not pay for each again
MIN_WINDOW, MAX_WINDOW = 1024, 32 * 1024  # bytes that are looked at together

_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*')  # the inside of a JSON string
_SPECIAL = re.compile(rb'["\\\x00-\x1f]')
_NUMBER = re.compile(rb"0|[1-9][0-9]{0,14}")
_PADDING = re.compile(rb'"obfuscation"\s*:\s*"')  # of random length, so that nobody learns from the sizes of packets
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(?=[0-9])')


class PlainRun(NamedTuple):
    """Whole events that follow on each other, up to `end`: `size` in bytes of text, `number` the last sequence number,
    -1 without one."""

    end: int
    size: int
    number: int


class DeltaTemplate:
    """The bytes of an event between its holes: its text, its sequence number and its padding."""

    __slots__ = ("_number_at", "_parts", "_separator", "_tail", "_text_at", "_window")

    def __init__(
        self, parts: list[tuple[bytes, re.Pattern[bytes]]], tail: bytes, text_at: int, number_at: int | None
    ) -> None:
        """`parts`: what stands before each hole, and what may stand in it; `text_at`, `number_at`: which hole has the
        text, and which the number."""
        self._parts = parts
        self._tail = tail
        self._text_at = text_at
        self._number_at = number_at
        self._separator = tail + parts[0][0]  # what stands between the holes of one event and those of the next
        self._window = MIN_WINDOW

    def match(self, data: bytes, at: int = 0) -> PlainRun | None:
        """What stands in the holes of the event at `at`, if all else is the same and its text is not empty (without
        text it says nothing yet)."""
        size, number = 0, -1
        for hole, (literal, pattern) in enumerate(self._parts):
            if not data.startswith(literal, at):
                return None
            start = at + len(literal)
            found = pattern.match(data, start)
            if found is None:
                return None
            at = found.end()
            if hole == self._text_at:
                size = _text_size(found[0])
                if size <= 0:
                    return None
            elif hole == self._number_at:
                number = int(found[0])
        return PlainRun(at + len(self._tail), size, number) if data.startswith(self._tail, at) else None

    def match_run(self, data: bytes, at: int = 0) -> PlainRun | None:
        """As many events from `at` on as `match` takes, one after the other."""
        run = self.match(data, at)
        if run is None or run.end == len(data):
            return run
        end, size, number = run
        while data.startswith(self._parts[0][0], end):
            more = self._match_window(data, end) if len(self._parts) <= 2 else None
            more = more or self.match(data, end)
            if more is None:
                break
            end, size, number = more.end, size + more.size, max(number, more.number)
        return PlainRun(end, size, number)

    def _match_window(self, data: bytes, at: int) -> PlainRun | None:
        """Those of the events within the next bytes, cut at what stands between two; None if the first is another."""
        window = data[at : at + self._window]
        insides = window.split(self._separator)
        begun = insides.pop()
        if begun.endswith(self._tail):
            insides.append(begun[: -len(self._tail)])
        if len(insides) < 2:
            self._window = MIN_WINDOW
            return None
        first = len(self._parts[0][0])
        insides[0] = insides[0][first:]
        count, size = self._count_plain(insides)
        # Events that differ here and there are looked at in smaller steps: a step ends at the first of them.
        self._window = min(2 * self._window, MAX_WINDOW) if count == len(insides) else MIN_WINDOW
        if not count:
            return None
        end = at + sum(map(len, insides[:count])) + count * len(self._separator)
        return PlainRun(end, size, -1)

    def _count_plain(self, insides: list[bytes]) -> tuple[int, int]:
        """How many of these, from the first on, are text (and padding) alone, and how many bytes of text they have."""
        texts, paddings = insides, []
        if len(self._parts) == 2:
            pairs = [inside.split(self._parts[1][0]) for inside in insides]
            if any(len(pair) != 2 for pair in pairs):
                pairs = pairs[: next(n for n, pair in enumerate(pairs) if len(pair) != 2)]
            texts = [pair[self._text_at] for pair in pairs]
            paddings = [pair[1 - self._text_at] for pair in pairs]
        if all(texts) and _SPECIAL.search(b"".join(texts + paddings)) is None:
            return len(texts), sum(map(len, texts))
        total = 0
        for number, text in enumerate(texts):
            size = _text_size(text) if _TEXT.fullmatch(text) is not None else -1
            if size <= 0 or (paddings and _SPECIAL.search(paddings[number]) is not None):
                return number, total
            total += size
        return len(texts), total


def learn_template(event: bytes, key: bytes, text: str) -> DeltaTemplate | None:
    """A template from an event that was parsed, whose only text is `text`, below `key`; None if its bytes do not show
    it plainly."""
    texts = list(re.finditer(rb'"%s"\s*:\s*"' % key, event))
    paddings, numbers = list(_PADDING.finditer(event)), list(_SEQUENCE.finditer(event))
    if len(texts) != 1 or len(paddings) > 1 or len(numbers) > 1 or b"\r" in event:
        return None
    start = texts[0].end()
    shown = _PLAIN.match(event, start)
    if shown is None or shown[0] != text.encode("utf-8", "surrogatepass"):
        return None  # it has escapes
    holes = [(start, _TEXT)] + [(found.end(), _PLAIN) for found in paddings]
    holes += [(found.end(), _NUMBER) for found in numbers]
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


def _text_size(inside: bytes) -> int:
    """Bytes of the text that the inside of a JSON string stands for; -1 if it is none that UTF-8 can encode."""
    if b"\\" not in inside:
        return len(inside)
    try:
        text = parse_json(b'"%s"' % inside)
        return len(text.encode()) if isinstance(text, str) else -1
    except ValueError:  # UnicodeEncodeError is one: half of a surrogate pair
        return -1
