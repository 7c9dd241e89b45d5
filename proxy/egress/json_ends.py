"""The first and the last of a JSON object that is too large to be kept: what stands there is read, pictures between
are not. Vendors put `model` at the beginning, `usage` at one end or the other.
"""

from __future__ import annotations

import json
import re
import zlib

KEPT_BYTES = 64 * 1024  # bytes of either end
MAX_UNPACKED = 512 * 1024 * 1024  # bytes unpacked; a body that unpacks to more is not read on
UNPACK_STEP = 256 * 1024  # bytes unpacked at once
MAX_TRIES = 16  # places that may be where a member of the object itself begins
# What is looked for at the end. Whether it is the object's own, and not within another, shows when it is read.
_LAST_MEMBERS = re.compile(
    rb'"(?:usage|model|type|service_tier|tool_usage|svg_usage|tools|n|size|quality|user|stream)"\s*:'
)
_DECODER = json.JSONDecoder()


class JsonEnds:
    """Fed with the bytes as they pass; keeps twice KEPT_BYTES of them at most."""

    __slots__ = ("_first", "_inflater", "_last", "_unpacked", "size")

    def __init__(self, encoding: str = "identity") -> None:
        """`encoding`: identity, gzip or deflate (RFC 9110 section 8.4)."""
        self._first = bytearray()
        self._last = bytearray()
        self._inflater = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._unpacked = 0
        self.size = 0  # bytes as they passed

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body, which may be encoded."""
        self.size += len(data)
        if self._inflater is None:
            self._keep_ends(data)
            return
        # In steps, so that a small body which unpacks to gigabytes takes no memory.
        while data and self._unpacked < MAX_UNPACKED:
            try:
                plain = self._inflater.decompress(data, UNPACK_STEP)
            except zlib.error:
                self._unpacked = MAX_UNPACKED
                return
            self._unpacked += len(plain)
            self._keep_ends(plain)
            data = self._inflater.unconsumed_tail

    def members(self) -> dict[str, object]:
        """The object's own members that stand whole at either end."""
        first, last = bytes(self._first), bytes(self._last)
        if not last:
            return _parse_object(first) or _leading_members(first)
        return {**_leading_members(first), **_trailing_members(last)}

    def _keep_ends(self, data: bytes) -> None:
        room = KEPT_BYTES - len(self._first)
        if room > 0:
            self._first += data[:room]
            data = data[room:]
        if data:
            self._last += data[-KEPT_BYTES:]
            if len(self._last) > KEPT_BYTES:
                del self._last[:-KEPT_BYTES]


def _leading_members(first: bytes) -> dict[str, object]:
    """The members that stand whole in an object's beginning."""
    text = first.decode("utf-8", "replace")
    found: dict[str, object] = {}
    at = _skip_space(text, 0)
    if text[at : at + 1] != "{":
        return found
    try:
        while text[at : at + 1] in ("{", ","):
            key, at = _DECODER.raw_decode(text, _skip_space(text, at + 1))
            at = _skip_space(text, at)
            if not isinstance(key, str) or text[at : at + 1] != ":":
                break
            value, at = _DECODER.raw_decode(text, _skip_space(text, at + 1))
            at = _skip_space(text, at)
            if at < len(text):  # else a number may go on
                found[key] = value
    except (ValueError, RecursionError):
        pass
    return found


def _trailing_members(last: bytes) -> dict[str, object]:
    """The members that stand whole in an object's end: text that is an object once a brace stands before it.

    Text that begins within a deeper object, or in a string, is none.
    """
    found: dict[str, object] = {}
    for match in [*_LAST_MEMBERS.finditer(last)][-MAX_TRIES:]:
        told = _parse_object(b"{" + last[match.start() :])
        if told is not None:
            return told
    return found


def _parse_object(text: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
