"""Heads of messages: the client's request, and the response on its way there, the app's own or one that was edited."""

from __future__ import annotations

from typing import Protocol

from multidict import CIMultiDictProxy

from proxy.http.messages import HeaderList, RawHeaders

# Media types of responses that go on until somebody ends them.
STREAM_TYPES = frozenset(
    (
        b"text/event-stream",
        b"application/x-ndjson",
        b"application/jsonl",
        b"application/json-seq",
        b"multipart/x-mixed-replace",
    )
)


class RequestHead(Protocol):
    """What filters and the cache look at of a request."""

    @property
    def method(self) -> str: ...
    @property
    def http10(self) -> bool: ...
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    @property
    def raw_headers(self) -> RawHeaders: ...
    def joined_header(self, name: str) -> str | None:
        """All lines of a list-valued field as one (RFC 9110 section 5.3), or None."""


class ResponseHead(Protocol):
    """What whoever writes a response needs to know of it. A connection to the app is one, too.

    - `content_length`: bytes of the body, None if it is not known beforehand.
    - `bodyless`: no body follows: of HEAD, 204, 304 (RFC 9112 section 6.3).
    - `trailers`: known only behind the body.
    """

    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> bytes: ...
    @property
    def headers(self) -> HeaderList: ...
    @property
    def content_length(self) -> int | None: ...
    @property
    def bodyless(self) -> bool: ...
    @property
    def trailers(self) -> HeaderList: ...


class EditedHead:
    """A head with other fields, and perhaps another length, than the one that it was made from."""

    __slots__ = ("_source", "bodyless", "content_length", "headers", "reason", "status")

    def __init__(self, source: ResponseHead, headers: HeaderList) -> None:
        self._source = source
        self.status = source.status
        self.reason = source.reason
        self.headers = headers
        self.content_length = source.content_length
        self.bodyless = source.bodyless

    @property
    def trailers(self) -> HeaderList:
        return self._source.trailers


def field_value(headers: HeaderList, name: bytes) -> bytes | None:
    """The value of a field, its name in lower case: its lines joined (RFC 9110 section 5.3), or None."""
    values = [value for key, value in headers if key.lower() == name]
    return b", ".join(values) if values else None


def without_fields(headers: HeaderList, names: frozenset[bytes]) -> HeaderList:
    """The fields without those of these names, which are in lower case."""
    return [pair for pair in headers if pair[0].lower() not in names]
