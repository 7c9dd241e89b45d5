"""Writing an answer that is kept to a client: its own condition, its range, its coding, its age."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from proxy.http.messages import HeaderList
from proxy.ingress.cache.conditions import is_not_modified, wanted_range
from proxy.ingress.cache.lookup import KeptResponse, NotModifiedHead
from proxy.ingress.cache.stored_response import PLAIN, StoredResponse
from proxy.ingress.compression.compressed_response import (
    choose_response_coding,
    coded_head,
    edit_not_modified,
    vary_by_accept_encoding,
)
from proxy.ingress.compression.encoders import Encoders
from proxy.ingress.detached_client import ResponseClient
from proxy.ingress.exchange import Exchange
from proxy.ingress.headers import add_exchange_lines, dropped_response_fields
from proxy.ingress.message_head import EditedHead, without_fields
from proxy.ingress.response_writer import ResponseWriter, connection_line
from proxy.util.compression_steps import GZIP, PIECE, compress

THREAD_SIZE = 256 * 1024  # bytes of a body that is coded or undone in a thread, since it takes more than 3 ms
LARGE = 64 * 1024  # bytes of a plain text that is kept compressed

Decoders = Mapping[str, Callable[[bytes], bytes]]


class StoredHead:
    """The head of an answer out of the cache (`ResponseHead`)."""

    __slots__ = ("bodyless", "content_length", "headers", "reason", "status")

    def __init__(self, entry: StoredResponse, headers: HeaderList, *, bodyless: bool) -> None:
        self.status = entry.status
        self.reason = entry.reason
        self.headers = headers
        self.content_length: int | None = None
        self.bodyless = bodyless

    @property
    def trailers(self) -> HeaderList:
        return []


class KeptResponseWriter:
    """Writes kept answers. `encoders` are those of the routes that compress; `on_resize` is called with an entry that
    got another coding."""

    def __init__(self, encoders: Encoders, on_resize: Callable[[StoredResponse], None]) -> None:
        self.encoders = encoders
        self._on_resize = on_resize

    async def write(self, connection: ResponseClient, x: Exchange, kept: KeptResponse, now: float) -> bool:
        """Answer a request. True if its connection may serve another one."""
        entry = kept.entry
        # The usual case, a whole answer that is there as the client takes it, is written without being put together.
        if (coding := self._ready_coding(x, kept)) is not None:
            return await self._write_ready(connection, x, entry, coding, now)
        headers = [*entry.headers, *kept.more_fields, (b"Age", b"%d" % entry.age(now))]
        compresses = entry.is_text and x.route.compress == "auto"
        stored = StoredHead(entry, headers, bodyless=x.method == "HEAD" or entry.status in (204, 304))
        head: StoredHead | EditedHead = stored
        body = b""
        if entry.status == 200 and is_not_modified(x, entry.headers, now):
            head = NotModifiedHead(stored)
            if compresses:
                head.headers = edit_not_modified(x, head.headers)
        elif not entry.bodies or entry.status == 204:
            pass  # only the head was ever asked for, with the length that it states, or there is none
        else:
            head, body = await self._choose_body(x, entry, stored, now, compresses=compresses)
            if compresses:
                head.headers = vary_by_accept_encoding(head.headers)
        writer = ResponseWriter(connection, x, head)
        writer.write_head()
        if not head.bodyless:
            for at in range(0, len(body), PIECE):
                writer.write_body(body[at : at + PIECE] if len(body) > PIECE else body)
                if connection.writing_paused:
                    await connection.drain()
        writer.finish()
        return writer.keep_alive

    def _ready_coding(self, x: Exchange, kept: KeptResponse) -> str | None:
        """The coding in which this client gets the whole answer, if the body is kept in it and nothing of the request
        asks for less."""
        entry, headers = kept.entry, x.headers
        if x.method != "GET" or entry.status in (204, 304) or kept.more_fields:
            return None
        if "If-None-Match" in headers or "If-Modified-Since" in headers or "Range" in headers:
            return None
        coding = PLAIN
        if entry.is_text and x.route.compress == "auto":
            coding = self._choose_coding(x, entry) or PLAIN
        return coding if coding in entry.bodies else None

    def _choose_coding(self, x: Exchange, entry: StoredResponse) -> str | None:
        # A coding that is there already is as good as any that the client likes as much.
        there = tuple(name for name in entry.bodies if name != PLAIN)
        return choose_response_coding(x, (*there, *(name for name in self.encoders.whole if name not in there)))

    async def _write_ready(
        self, connection: ResponseClient, x: Exchange, entry: StoredResponse, coding: str, now: float
    ) -> bool:
        body = entry.bodies[coding]
        begin = entry.heads.get((coding, x.dropped_from_response))
        if begin is None:
            begin = entry.heads[coding, x.dropped_from_response] = self._render_head(x, entry, coding, len(body))
        keep_alive = not (x.should_close or connection.draining or connection.body_incomplete)
        lines = add_exchange_lines(x, [begin, b"Age: %d\r\n" % entry.age(now)], has_id=False)
        lines.append(connection_line(x, keep_alive=keep_alive))
        lines.append(b"\r\n")
        lines.append(body if len(body) <= PIECE else body[:PIECE])
        connection.write(b"".join(lines))
        x.status, x.bytes_out = entry.status, len(body)
        x.response_started = connection.response_started = True
        for at in range(PIECE, len(body), PIECE):
            if connection.writing_paused:
                await connection.drain()
            connection.write(body[at : at + PIECE])
        if connection.writing_paused:
            await connection.drain()
        return keep_alive

    def _render_head(self, x: Exchange, entry: StoredResponse, coding: str, length: int) -> bytes:
        """The beginning of the head of a whole answer, without what is this exchange's own."""
        stored = StoredHead(entry, entry.headers, bodyless=False)
        headers = entry.headers if coding == PLAIN else coded_head(stored, coding).headers
        if entry.is_text and x.route.compress == "auto":
            headers = vary_by_accept_encoding(headers)
        names = [name.lower() for name, _ in headers]
        dropped = dropped_response_fields(x, names, headers)
        lines = [b"%s: %s\r\n" % pair for name, pair in zip(names, headers, strict=True) if name not in dropped]
        first = b"HTTP/1.1 %d %s\r\n" % (entry.status, entry.reason)
        return b"".join((first, *lines, b"Content-Length: %d\r\n" % length))

    async def _choose_body(
        self, x: Exchange, entry: StoredResponse, stored: StoredHead, now: float, *, compresses: bool
    ) -> tuple[StoredHead | EditedHead, bytes]:
        """The head and the body in the coding that this client gets, or the part of it that it asked for."""
        coding = None
        if compresses and "Range" not in x.headers:
            coding = self._choose_coding(x, entry)
        if coding is not None:
            body = await self._coded_body(entry, coding)
            head = coded_head(stored, coding)
            return _with_length(head, len(body)), body
        body = await self._plain_body(entry)
        part = wanted_range(x, entry.headers, len(body), now) if entry.status == 200 else None
        if part is None:
            return _with_length(EditedHead(stored, stored.headers), len(body)), body
        return _partial(stored, part, len(body)), body[part.start : part.stop]

    async def _plain_body(self, entry: StoredResponse) -> bytes:
        if (body := entry.bodies.get(PLAIN)) is not None:
            return body
        coding, coded = next(iter(entry.bodies.items()))
        decode = self.encoders.decoders[coding]
        return decode(coded) if len(coded) < THREAD_SIZE else await asyncio.to_thread(decode, coded)

    async def _coded_body(self, entry: StoredResponse, coding: str) -> bytes:
        """The body in a coding, which is made once and kept."""
        if (body := entry.bodies.get(coding)) is not None:
            return body
        plain = await self._plain_body(entry)

        def encode() -> bytes:
            encoder = self.encoders.make(coding, stream=False)
            return encoder.compress(plain) + encoder.finish()

        body = encode() if len(plain) < THREAD_SIZE else await asyncio.to_thread(encode)
        entry.bodies[coding] = body
        entry.heads.clear()
        # The plain one can be made of any other, and is the largest.
        entry.bodies.pop(PLAIN, None)
        self._on_resize(entry)
        return body


def _with_length(head: StoredHead | EditedHead, length: int) -> StoredHead | EditedHead:
    head.content_length = length
    head.headers = [*head.headers, (b"Content-Length", b"%d" % length)]
    return head


def _partial(stored: StoredHead, part: range, length: int) -> EditedHead:
    """206 with a part of the answer, or 416 if there is no such part (RFC 9110 sections 15.3.7 and 15.5.17)."""
    head = EditedHead(stored, without_fields(stored.headers, frozenset((b"content-length", b"content-range"))))
    if part:
        head.status, head.reason = 206, b"Partial Content"
        head.headers.append((b"Content-Range", b"bytes %d-%d/%d" % (part.start, part.stop - 1, length)))
    else:
        head.status, head.reason = 416, b"Range Not Satisfiable"
        head.headers.append((b"Content-Range", b"bytes */%d" % length))
    head.content_length = len(part)
    head.headers.append((b"Content-Length", b"%d" % len(part)))
    return head


async def compress_large_body(entry: StoredResponse) -> bool:
    """Keep a long plain text compressed, a piece at a time. False if that is not worth it."""
    plain = entry.bodies.get(PLAIN)
    if plain is None or len(entry.bodies) > 1:
        return False
    coded = await compress(plain, GZIP)
    # Another coding may have come meanwhile, which is as good.
    if len(coded) > len(plain) * 0.8 or entry.bodies.get(PLAIN) is not plain or len(entry.bodies) > 1:
        return False
    entry.length = len(plain)
    entry.bodies = {"gzip": coded}
    return True
