"""Streams of images and sound (OpenAI's `image_generation.…`, `image_edit.…`, `transcript.text.…`, `speech.audio.…`).

Their events may be pictures of many megabytes, so none is held: the bytes pass as they come, and of each event only
its two ends are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from proxy.egress.dialects.base import Json, Usage, as_text
from proxy.egress.dialects.output_size import OutputSize
from proxy.egress.json_ends import JsonEnds

MAX_FIELD_NAME = 16  # bytes that a field's name may have


class MediaStream:
    """Fed with the bytes as they pass.

    usage: the sum of what its events report, since each image reports its own
    image_count: finished images and previews
    failed: the stream had an error event of its own
    """

    def __init__(self, read: Callable[[Json], Usage | None]) -> None:
        self.usage: Usage | None = None
        self.output_size = OutputSize()
        self.image_count = 0  # images, previews too
        self.failed = False  # it had an error event of its own
        self._read_usage = read
        self._event: JsonEnds | None = None  # the data of the event under way
        self._line = b""  # the beginning of a line, until its field is known
        self._in_data = self._in_other = False  # within a line whose field is known

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            # Lines are split by hand: an event may be a picture of many megabytes, and must not be joined in memory.
            end = data.find(b"\n", at)
            stop = len(data) if end < 0 else end
            self._feed_line_part(data[at:stop])
            if end < 0:
                return
            self._end_line()
            at = end + 1

    def close(self) -> None:
        """End the stream: an event whose blank line never came counts too."""
        self._end_line()
        self._end_event()

    def _feed_line_part(self, piece: bytes) -> None:
        if self._in_data and self._event is not None:
            self._event.feed(piece)
        elif not self._in_other:
            self._line += piece
            if self._line.startswith(b"data:"):
                self._event = self._event or JsonEnds()
                self._event.feed(self._line[5:])
                self._line, self._in_data = b"", True
            # No field that matters has such a long name: the rest of the line need not be kept.
            elif len(self._line) > MAX_FIELD_NAME:
                self._line, self._in_other = b"", True

    def _end_line(self) -> None:
        blank = not (self._in_data or self._in_other) and not self._line.strip(b"\r")
        if self._in_data and self._event is not None:
            self._event.feed(b"\n")
        self._line, self._in_data, self._in_other = b"", False, False
        if blank:
            self._end_event()

    def _end_event(self) -> None:
        event, self._event = self._event, None
        if event is None:
            return
        said = event.members()
        kind = as_text(said.get("type")) or ""
        self.failed = self.failed or kind == "error" or said.get("error") is not None
        self.image_count += kind.endswith((".partial_image", ".completed"))
        if kind == "transcript.text.delta":
            self.output_size.add_text(said.get("delta"))
        # Each finished image reports its own usage, so they are added up.
        found = self._read_usage(said)
        if found is not None:
            self.usage = found if self.usage is None else _add_usage(self.usage, found)


def _add_usage(one: Usage, other: Usage) -> Usage:
    return replace(
        one,
        input=one.input + other.input,
        cached_input=one.cached_input + other.cached_input,
        output=one.output + other.output,
        reasoning=one.reasoning + other.reasoning,
        details=_add_details(one.details, other.details),
        parts=(*(one.parts or (one,)), *(other.parts or (other,))) if one.parts or other.parts else (),
    )


def _add_details(one: Json, other: Json) -> dict[str, object]:
    found = dict(one)
    for key, value in other.items():
        had = found.get(key)
        if isinstance(value, Mapping) and isinstance(had, Mapping):
            found[key] = _add_details(had, value)
        elif isinstance(value, int | float) and isinstance(had, int | float) and not isinstance(value, bool):
            found[key] = had + value
        else:
            found[key] = value
    return found
