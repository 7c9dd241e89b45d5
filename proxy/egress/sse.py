"""Server-sent events as bytes: split into whole events without changing one (WHATWG HTML section 9.2).

Lines end with LF, CRLF or CR; an empty line ends an event. What is split here is put together again
unchanged, so that a stream passes byte for byte.
"""

from __future__ import annotations

import re

LARGEST = 8 * 1024 * 1024  # bytes of one event

# Two line endings in a row; a lone CR at the end of what is there may be half a CRLF, so it waits.
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)(?=[\s\S]))(?:\r\n|\n|\r(?!\n)(?=[\s\S]))+")
_LINE = re.compile(r"\r\n|\n|\r")


class EventTooLarge(ValueError):
    """One event is larger than anybody should hold."""


class Splitter:
    """Feed bytes as they come; whole events come out, each with the blank line that ends it."""

    __slots__ = ("_buffer", "_limit", "_seen")

    def __init__(self, limit: int = LARGEST) -> None:
        self._buffer = b""
        self._seen = 0  # bytes known to hold no end
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """Raises EventTooLarge."""
        buffer = self._buffer + data if self._buffer else data
        found: list[bytes] = []
        at = 0
        if b"\r" not in buffer:  # the usual case
            search = max(0, self._seen - 1)
            while (end := buffer.find(b"\n\n", search)) >= 0:
                end += 2
                while buffer[end : end + 1] == b"\n":
                    end += 1
                found.append(buffer[at:end])
                at = search = end
        else:
            for match in _END.finditer(buffer, 0):
                found.append(buffer[at : match.end()])
                at = match.end()
        self._buffer = buffer[at:]
        self._seen = len(self._buffer)
        if self._seen > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit} bytes")
        return found

    def rest(self) -> bytes:
        """What is left at the end of the stream: an event whose blank line never came."""
        rest, self._buffer, self._seen = self._buffer, b"", 0
        return rest


class Event:
    """`data` is None where there is no data line: a comment."""

    __slots__ = ("data", "name")

    def __init__(self, name: str, data: str | None) -> None:
        self.name = name
        self.data = data


def fields(event: bytes) -> Event:
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2:
        if b"\r" not in event:
            return Event("", event[6:-2].decode("utf-8", "replace"))
    name, data = "", None
    for line in _LINE.split(event.decode("utf-8", "replace").removeprefix("\ufeff")):
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data = value if data is None else f"{data}\n{value}"
        elif key == "event":
            name = value
    return Event(name, data)


def message(data: bytes, name: str = "") -> bytes:
    """One event with this data, which is a line."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"
