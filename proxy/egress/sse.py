"""Server-sent events as bytes: split into whole events without changing one (WHATWG HTML section 9.2).

Lines end with LF, CRLF or CR; an empty line ends an event. What is split here is put together again
unchanged, so that a stream passes byte for byte.
"""

from __future__ import annotations

import re

MAX_EVENT = 48 * 1024 * 1024  # bytes of one event: those that show pictures have tens of megabytes

# Two line endings in a row; a lone CR at the end of what is there may be half a CRLF, so it waits.
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)(?=[\s\S]))(?:\r\n|\n|\r(?!\n)(?=[\s\S]))+")
_LINE = re.compile(r"\r\n|\n|\r")


class EventTooLarge(ValueError):
    """One event is larger than anybody should hold."""


class EventSplitter:
    """Feed bytes as they come; whole events come out, each with the blank line that ends it."""

    __slots__ = ("_carriage", "_held", "_limit")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._held = bytearray()  # an event's beginning, in which there is no end
        self._carriage = False  # whether that, or what came with it, has a CR
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes. Raises EventTooLarge."""
        # What was searched is not searched again: an event may come in a thousand pieces.
        held = self._held
        seen = len(held)
        if not seen and b"\r" not in data and data.find(b"\n\n") == len(data) - 2 >= 0:
            return [data]  # the usual case: one event, whole
        if seen:
            held += data
        buffer = held if seen else data
        self._carriage = b"\r" in data or (seen > 0 and self._carriage)
        found: list[bytes] = []
        at = 0
        if not self._carriage:  # the usual case
            search = max(0, seen - 1)
            while (end := buffer.find(b"\n\n", search)) >= 0:
                end += 2
                while buffer[end : end + 1] == b"\n":
                    end += 1
                found.append(bytes(buffer[at:end]))
                at = search = end
        else:
            for match in _END.finditer(buffer, max(0, seen - 4)):
                found.append(bytes(buffer[at : match.end()]))
                at = match.end()
        if seen:
            del held[:at]
        else:
            held += data[at:] if at else data
        if len(held) > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit} bytes")
        return found

    @property
    def is_between_events(self) -> bool:
        """Whether no event has begun that has yet to end."""
        return not self._held

    def flush(self) -> bytes:
        """The bytes that are left at the end of the stream: an event whose blank line never came."""
        rest = bytes(self._held)
        self._held.clear()
        return rest


class ServerSentEvent:
    """`data` is None if there is no data line: a comment."""

    __slots__ = ("data", "name")

    def __init__(self, name: str, data: str | None) -> None:
        self.name = name
        self.data = data


def parse_event(event: bytes) -> ServerSentEvent:
    """The name and the data of one whole event; other fields are left out."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2:
        if b"\r" not in event:
            return ServerSentEvent("", event[6:-2].decode("utf-8", "replace"))
    name, data = "", None
    for line in _LINE.split(event.decode("utf-8", "replace").removeprefix("\ufeff")):
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data = value if data is None else f"{data}\n{value}"
        elif key == "event":
            name = value
    return ServerSentEvent(name, data)


def format_event(data: bytes, name: str = "") -> bytes:
    """The bytes of one event; `data` is a single line."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"
