"""Compressing an answer on its way to the client (RFC 9110 section 8.4): which ones, what their fields say, the bytes.

What is sent coded is another representation of the same resource. So its fields say so: Content-Encoding; Vary, since
the next client may get it plain; a weak ETag, since a strong one would name other bytes; no Content-Length, and no
Accept-Ranges, since ranges of it would be ranges of bytes that nobody has. RFC 9110 section 7.7 lets a proxy do this
unless the answer says no-transform.

Pieces are compressed as they come, at most one read (256 KiB) at a time, which takes 1 ms to 3 ms: no answer holds up
the others for long, however large it is. What the encoder holds back is flushed in the next turn of the event loop, so
every event of a stream goes out when it came, and events that came together go out together.
"""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

from proxy.http.messages import HeaderList
from proxy.ingress.compression.encoders import Encoder, choose_coding
from proxy.ingress.entity_tags import weaken_tag
from proxy.ingress.message_head import EditedHead, RequestHead, ResponseHead, field_value, without_fields

MIN_SIZE = 512  # bytes; below it the fields that are added weigh as much as what is saved

_TEXT_TYPES = re.compile(
    rb"text/[\w.+-]+"
    rb"|application/(?:[\w.-]+\+)?(?:json|xml|yaml|javascript|ecmascript|x-javascript|x-ndjson|jsonl|json-seq|graphql"
    rb"|wasm|rtf|x-www-form-urlencoded|toml|sql|x-yaml|vnd\.ms-fontobject)"
    rb"|image/(?:svg\+xml|bmp|x-icon|vnd\.microsoft\.icon)"
    rb"|font/(?:ttf|otf)"
)
_NO_TRANSFORM = re.compile(rb"(?:^|,)\s*no-transform\s*(?:,|$)", re.IGNORECASE)
# Digests of the bytes that the app sent (RFC 9530, RFC 3230): of coded ones they would be wrong.
_DIGESTS = frozenset((b"content-digest", b"repr-digest", b"digest", b"content-md5"))
_REPLACED = frozenset((b"content-length", b"content-encoding", b"accept-ranges", b"etag", b"vary"))


class ResponseSink(Protocol):
    """Takes a response's body on its way to the client, and its end."""

    def write_body(self, data: bytes) -> bool:
        """False asks for a pause in reading."""

    def flush(self) -> bool:
        """Send what is held back. False if the client does not keep up."""

    def finish(self) -> None:
        """The response is complete."""


def is_compressible(head: ResponseHead, size: int | None) -> bool:
    """Whether this answer may be compressed for a client that takes it. `size` is that of the whole body in bytes, None
    if it is not known yet."""
    if head.status < 200 or head.status in (204, 206, 304):
        return False
    if size is not None and size < MIN_SIZE:
        return False
    kind, cache_control = b"", b""
    for name, value in head.headers:
        lower = name.lower()
        if lower == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif lower == b"cache-control":
            cache_control += b"," + value
        elif (lower == b"content-encoding" and value.strip().lower() not in (b"", b"identity")) or lower in _DIGESTS:
            return False
    return _TEXT_TYPES.fullmatch(kind) is not None and _NO_TRANSFORM.search(cache_control) is None


def vary_by_accept_encoding(headers: HeaderList) -> HeaderList:
    """The fields with a Vary that names Accept-Encoding beside what it named already."""
    vary = field_value(headers, b"vary")
    if vary is not None and any(name.strip().lower() in (b"accept-encoding", b"*") for name in vary.split(b",")):
        return headers
    value = b"Accept-Encoding" if vary is None else vary + b", Accept-Encoding"
    return [*without_fields(headers, frozenset((b"vary",))), (b"Vary", value)]


def coded_head(head: ResponseHead, coding: str) -> EditedHead:
    """The head of the same answer in a coding; its length is not known beforehand."""
    kept = without_fields(head.headers, _REPLACED)
    tag = field_value(head.headers, b"etag")
    if tag is not None:
        kept.append((b"ETag", weaken_tag(tag)))
    vary = vary_by_accept_encoding([pair for pair in head.headers if pair[0].lower() == b"vary"])
    edited = EditedHead(head, [*kept, *vary, (b"Content-Encoding", coding.encode())])
    edited.content_length = None
    return edited


def choose_response_coding(x: RequestHead, offered: tuple[str, ...]) -> str | None:
    """The coding of those offered in which this client gets a compressible answer, or None for plain."""
    # HTTP/1.0 has no chunks, so a body of unknown length would cost the connection.
    return None if x.http10 else choose_coding(x.joined_header("Accept-Encoding"), offered)


def edit_not_modified(x: RequestHead, headers: HeaderList) -> HeaderList:
    """A 304 has the tag and the Vary that the answer itself would have (RFC 9110 section 15.4.5)."""
    headers = vary_by_accept_encoding(headers)
    tag = field_value(headers, b"etag")
    sent = x.joined_header("If-None-Match")
    # The client was given the weak form of this tag if that is what it came with.
    if tag is not None and tag.startswith(b'"') and sent is not None and f"W/{tag.decode('latin-1')}" in sent:
        headers = [*without_fields(headers, frozenset((b"etag",))), (b"ETag", weaken_tag(tag))]
    return headers


class CompressedBody:
    """A `ResponseSink` that compresses what it gets, and hands it on."""

    def __init__(self, encoder: Encoder, sink: ResponseSink, loop: asyncio.AbstractEventLoop) -> None:
        self._encoder = encoder
        self._sink = sink
        self._loop = loop
        self._flush_scheduled: asyncio.Handle | None = None

    def write_body(self, data: bytes) -> bool:
        coded = self._encoder.compress(data)
        # All pieces that one read brought are flushed together.
        if self._flush_scheduled is None:
            self._flush_scheduled = self._loop.call_soon(self._flush_encoder)
        return self._sink.write_body(coded) if coded else True

    def flush(self) -> bool:
        if self._flush_scheduled is not None:
            self._flush_encoder()
        return self._sink.flush()

    def finish(self) -> None:
        self.cancel()
        if tail := self._encoder.finish():
            self._sink.write_body(tail)
        self._sink.finish()

    def cancel(self) -> None:
        """Flush nothing any more: the response is complete, or broke off."""
        if self._flush_scheduled is not None:
            self._flush_scheduled.cancel()
            self._flush_scheduled = None

    def _flush_encoder(self) -> None:
        self.cancel()
        if coded := self._encoder.flush():
            self._sink.write_body(coded)
