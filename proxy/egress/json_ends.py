"""The first and the last of a JSON object that is too large to be kept: what stands there is read, pictures between
are not. Vendors put `model` at the beginning, `usage` at one end or the other.
"""

from __future__ import annotations

import json
import re
import zlib

KEPT = 64 * 1024  # bytes of either end
LARGEST = 512 * 1024 * 1024  # bytes unpacked; a body that unpacks to more is not read on
STEP = 256 * 1024  # bytes unpacked at once
TRIES = 16  # places that may be where a member of the object itself begins
# What is looked for at the end. Whether it is the object's own, and not within another, shows when it is read.
_NAMED = re.compile(rb'"(?:usage|model|type|service_tier|tool_usage|svg_usage|tools|n|size|quality|user|stream)"\s*:')
_DECODER = json.JSONDecoder()


class Ends:
    """Fed with the bytes as they pass. Takes at most twice KEPT."""

    __slots__ = ("_first", "_inflater", "_last", "_unpacked", "size")

    def __init__(self, encoding: str = "identity") -> None:
        """`encoding`: identity, gzip or deflate (RFC 9110 section 8.4)."""
        self._first = bytearray()
        self._last = bytearray()
        self._inflater = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._unpacked = 0
        self.size = 0  # bytes as they passed

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        if self._inflater is None:
            self._keep(data)
            return
        while data and self._unpacked < LARGEST:
            try:
                plain = self._inflater.decompress(data, STEP)
            except zlib.error:
                self._unpacked = LARGEST
                return
            self._unpacked += len(plain)
            self._keep(plain)
            data = self._inflater.unconsumed_tail

    def members(self) -> dict[str, object]:
        """The object's own members that stand whole at either end."""
        first, last = bytes(self._first), bytes(self._last)
        if not last:
            return _object(first) or _leading(first)
        return {**_leading(first), **_trailing(last)}

    def _keep(self, data: bytes) -> None:
        room = KEPT - len(self._first)
        if room > 0:
            self._first += data[:room]
            data = data[room:]
        if data:
            self._last += data[-KEPT:]
            if len(self._last) > KEPT:
                del self._last[:-KEPT]


def _leading(first: bytes) -> dict[str, object]:
    """Of an object's beginning."""
    text = first.decode("utf-8", "replace")
    found: dict[str, object] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        return found
    try:
        while text[at : at + 1] in ("{", ","):
            key, at = _DECODER.raw_decode(text, _skip(text, at + 1))
            at = _skip(text, at)
            if not isinstance(key, str) or text[at : at + 1] != ":":
                break
            value, at = _DECODER.raw_decode(text, _skip(text, at + 1))
            at = _skip(text, at)
            if at < len(text):  # else a number may go on
                found[key] = value
    except (ValueError, RecursionError):
        pass
    return found


def _trailing(last: bytes) -> dict[str, object]:
    """Of an object's end: what, with a brace before it, is an object. What stands deeper, or in a string, is none."""
    found: dict[str, object] = {}
    for match in [*_NAMED.finditer(last)][-TRIES:]:
        told = _object(b"{" + last[match.start() :])
        if told is not None:
            return told
    return found


def _object(text: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
