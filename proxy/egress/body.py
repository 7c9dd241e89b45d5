"""A call's body: whole in memory where it may have to be sent again or read, else passed on as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from aiohttp import BytesPayload
from aiohttp.abc import AbstractStreamWriter

LARGEST = 4 * 1024 * 1024  # bytes; what is larger is not parsed, not sent again, only passed
SLICE = 256 * 1024


_MODEL = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([!-~]{1,200})\r\n')


class Source(Protocol):
    """The app's side of a body."""

    async def readany(self) -> bytes: ...


class Body:
    """`whole` is None where the rest still comes from the app; such a body can be sent once."""

    __slots__ = ("_first", "_sending", "_source", "length", "parsed", "started", "whole")

    def __init__(
        self,
        whole: bytes | None,
        first: bytes,
        source: Source | None,
        length: int | None,
        sending: Sending | None = None,
    ) -> None:
        self.whole = whole
        self.length = length if whole is None else len(whole)  # None: not known beforehand
        self.parsed: Mapping[str, object] | None = None
        self.started = False
        self._first = first
        self._source = source
        self._sending = sending or Sending()

    @property
    def sent(self) -> bool:
        """Whether the attempt under way got so far that a byte of the body was written."""
        return self._sending.begun

    @sent.setter
    def sent(self, begun: bool) -> None:
        self._sending.begun = begun

    @property
    def repeatable(self) -> bool:
        return self.whole is not None or not self.started

    def payload(self) -> BytesPayload | AsyncIterator[bytes] | None:
        """What the HTTP client is given, once an attempt."""
        if self.whole is None:
            return self._rest()
        if not self.whole:
            return None
        # aiohttp writes plain bytes in one go, which is right for all but the largest.
        return _Whole(self.whole, self._sending) if len(self.whole) <= SLICE else self._slices(self.whole)

    def replaced(self, whole: bytes) -> Body:
        """The same body with another text, as a fallback to another model needs it."""
        body = Body(whole, b"", None, None, self._sending)
        body.parsed = self.parsed
        return body

    @property
    def form_model(self) -> str | None:
        """The `model` of an upload, where it stands before the file, as the SDKs write it."""
        found = _MODEL.search(self._first)
        return found[1].decode() if found is not None else None

    def parse(self) -> None:
        if not self.whole or self.whole.lstrip()[:1] != b"{":
            return
        try:
            found = json.loads(self.whole)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict):
            self.parsed = found

    async def _rest(self) -> AsyncIterator[bytes]:
        self.started = self.sent = True
        if self._first:
            yield self._first
        assert self._source is not None
        while data := await self._source.readany():
            yield data

    async def _slices(self, whole: bytes) -> AsyncIterator[bytes]:
        self.sent = True
        for at in range(0, len(whole), SLICE):
            yield whole[at : at + SLICE]


class Sending:
    """Shared by a body and what it was replaced by: whether bytes are on their way."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False


class _Whole(BytesPayload):
    """Bytes that tell when they are written: from then on nobody knows what an upstream made of them."""

    def __init__(self, whole: bytes, sending: Sending) -> None:
        super().__init__(whole)
        self._sending = sending

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._sending.begun = True
        await super().write_with_length(writer, content_length)


async def read(source: Source | None, length: int | None, *, pass_on: bool) -> Body:
    """The body of a call; with `pass_on` nothing of it is kept (uploads)."""
    if source is None:
        return Body(b"", b"", None, None)
    if pass_on or (length is not None and length > LARGEST):
        return Body(None, await source.readany(), source, length)
    parts: list[bytes] = []
    size = 0
    while data := await source.readany():
        parts.append(data)
        size += len(data)
        if size > LARGEST:
            return Body(None, b"".join(parts), source, length)
    return Body(b"".join(parts), b"", None, None)
