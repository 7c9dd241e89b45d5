"""A call's body: whole in memory if it may have to be sent again or read, else passed on as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from proxy.egress.json_ends import JsonEnds
from proxy.egress.multipart import MultipartScanner, parse_boundary
from proxy.http.outgoing_client import SendProgress
from proxy.util.json_bytes import parse_json

MAX_BUFFERED_BODY = 4 * 1024 * 1024  # bytes; what is larger is not parsed, not sent again, only passed
WRITE_SIZE = 256 * 1024
MakeScanner = Callable[[], MultipartScanner | JsonEnds | None]


class BodySource(Protocol):
    """The app's side of a body."""

    async def readany(self) -> bytes: ...


class Body:
    """The body of a call, as often as it is sent.

    Attributes:
        content: all of it; None if the rest still comes from the app. Such a body can be sent once, and what it says is
            read as it passes.
        length: in bytes; None if that is not known beforehand.
        parsed: the members of a JSON object, once `parse` was called; None if it is none.
        started: whether a body that passes has begun to be read.
        progress: whether the attempt under way got so far that a byte of the request was written.
    """

    __slots__ = ("_first", "_scan", "_source", "content", "length", "parsed", "progress", "started")

    def __init__(
        self,
        whole: bytes | None,
        first: bytes,
        source: BodySource | None,
        length: int | None,
        sending: SendProgress | None = None,
        scan: MultipartScanner | JsonEnds | None = None,
    ) -> None:
        self.content = whole
        self.length = length if whole is None else len(whole)
        self.parsed: Mapping[str, object] | None = None
        self.started = False
        self._first = first
        self._source = source
        self.progress = sending or SendProgress()
        self._scan = scan
        if scan is not None and first:
            scan.feed(first)

    @property
    def sent(self) -> bool:
        """Whether the attempt under way got so far that a byte of the body was written."""
        return self.progress.begun

    @sent.setter
    def sent(self, begun: bool) -> None:
        self.progress.begun = begun

    @property
    def can_resend(self) -> bool:
        return self.content is not None or not self.started

    def payload(self) -> bytes | AsyncIterator[bytes] | None:
        """Returns what the HTTP client is given, once for each attempt."""
        if self.content is None:
            return self._stream_rest()
        if not self.content:
            return None
        # Plain bytes are written in one go, which holds the loop up if they are very many.
        return self.content if len(self.content) <= WRITE_SIZE else self._stream_slices(self.content)

    def with_content(self, whole: bytes) -> Body:
        """The same body with another text, as a fallback to another model needs it."""
        # With the same progress: whether bytes are on their way is asked of the body that it replaces.
        body = Body(whole, b"", None, None, self.progress)
        body.parsed = self.parsed
        return body

    def members(self) -> Mapping[str, object]:
        """The members or fields of what was asked; of a body that passes, those that have passed so far."""
        if self.parsed is not None:
            return self.parsed
        scan = self._scan
        if isinstance(scan, MultipartScanner):
            return {name: _typed_field(text) for name, text in scan.fields.items() if name not in scan.repeated}
        return scan.members() if scan is not None else {}

    @property
    def scanned_bytes(self) -> int:
        """How many bytes of a body that passes have passed so far."""
        return self._scan.size if self._scan is not None else 0

    @property
    def is_scanned(self) -> bool:
        return self._scan is not None

    def parse(self) -> None:
        """Set `parsed`, if the body is a JSON object."""
        if not self.content or self.content.lstrip()[:1] != b"{":
            return
        try:
            found = parse_json(self.content)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict):
            self.parsed = found

    async def _stream_rest(self) -> AsyncIterator[bytes]:
        self.started = True
        if self._first:
            yield self._first
        assert self._source is not None
        while data := await self._source.readany():
            if self._scan is not None:
                self._scan.feed(data)
            yield data
        if self._scan is not None:
            self.length = self.length or self._scan.size

    async def _stream_slices(self, whole: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(whole), WRITE_SIZE):
            yield whole[at : at + WRITE_SIZE]


def make_scanner(headers: Mapping[str, str]) -> MultipartScanner | JsonEnds | None:
    """Returns what reads a body of that kind while it passes; None if nothing here can."""
    content_type = headers.get("Content-Type", "")
    kind = content_type.partition(";")[0].strip().lower()
    coded = headers.get("Content-Encoding", "").strip().lower() or "identity"
    if kind.startswith("multipart/"):
        boundary = parse_boundary(content_type)
        return MultipartScanner(boundary) if boundary is not None and coded == "identity" else None
    return JsonEnds(coded) if kind.endswith("json") and coded in ("identity", "gzip", "deflate") else None


async def read_body(
    source: BodySource | None, length: int | None, *, pass_on: bool, scan: MakeScanner | None = None
) -> Body:
    """The body of a call; with `pass_on` nothing of it is kept (uploads). `scan` makes what reads one that passes."""
    if source is None:
        return Body(b"", b"", None, None)
    if pass_on or (length is not None and length > MAX_BUFFERED_BODY):
        return Body(None, await source.readany(), source, length, scan=scan() if scan is not None else None)
    parts: list[bytes] = []
    size = 0
    while data := await source.readany():
        parts.append(data)
        size += len(data)
        if size == length:
            break
        if size > MAX_BUFFERED_BODY:
            return Body(None, b"".join(parts), source, length, scan=scan() if scan is not None else None)
    return Body(parts[0] if len(parts) == 1 else b"".join(parts), b"", None, None)


def _typed_field(text: str) -> object:
    """A field as JSON would have it: a form knows text alone."""
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return int(text)
    return {"true": True, "false": False}.get(text, text)
