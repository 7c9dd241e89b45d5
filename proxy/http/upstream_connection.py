"""The client's side of HTTP/1.1 (RFC 9112) towards a server, the app or a vendor, over one connection.

    state       event                                   next state
    idle        send_request()                          waiting
    idle        bytes come                              closed: nobody asked for them
    waiting     head of a 1xx response                  waiting: it is passed on at once
    waiting     head of a final response                body; idle if it has no body
    waiting     head of a 101, which was asked for      upgraded
    body        last byte, as its framing says          idle, or closed if it says that the connection ends
    body        end of file, framed by nothing else     closed: the response is complete
    upgraded    switch_protocol()                       none of these: a tunnel has the transport
    any         end of file, a reset, fail()            closed: the exchange fails with PeerUnreachable or the error
    any         framing that is not HTTP/1.1            closed: the exchange fails with PeerMisframed

A call that a state does not allow is a programming error.

Theory: a response on a connection that is used again has no end but the one that its framing states, and RFC 9112
section 6.3 gives the order in which to look for it: no body for HEAD, 1xx, 204 and 304; then Transfer-Encoding; then
Content-Length; then the end of the connection. If a proxy and its peer disagree about that end, the rest of one
response becomes the beginning of the next one, which belongs to somebody else (response splitting). So the framing is
judged strictly, by llhttp: anything that two readers could read differently is an `PeerMisframed`, and nothing that
comes after it is taken for a response.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from proxy.errors import PeerMisframed, PeerUnreachable
from proxy.http.messages import HeaderList

MAX_HEAD = 256 * 1024  # bytes of a response's head; apps with long cookies stay far below
DUPLICATE_LENGTH = "Duplicate Content-Length"  # the text of llhttp's error
QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # only Linux has it
READ_SIZE = 64 * 1024  # bytes of a read by the loop; if one is full, more is on its way
MAX_BUFFERED_BODY = 256 * 1024  # bytes of a body that are kept until `stream_body`; above it reading pauses

OnInformational = Callable[[int, bytes, HeaderList], None]


class BodySink(Protocol):
    """Takes the body of a response as it arrives."""

    def write_body(self, data: bytes) -> bool:
        """False asks for a pause in reading."""


class HeadBuffer:
    """A head that comes in pieces, kept in case it has to be parsed again with its lengths merged.

    - `data`: all of it that has come.
    - `reparsing`: it is parsed from its beginning each time that a piece comes.
    - `reparsed`: it has been parsed again, and may not be once more.
    """

    __slots__ = ("data", "reparsed", "reparsing")

    def __init__(self, data: bytes, *, reparsed: bool = False) -> None:
        self.data = data
        self.reparsed = reparsed
        self.reparsing = False

    def append(self, piece: bytes) -> bytes:
        """Add a piece; the bytes that are to be parsed now."""
        self.data += piece
        return self.data if self.reparsing else piece


class FramingError(ValueError):
    """What is wrong with a response's framing, as a clause; raised within the parser."""


class UpstreamConnection(asyncio.Protocol):
    """A connection to the app or to a vendor. The module's docstring has its states.

    Of the present exchange, or the one before it:
    - `status`, `reason`, `headers`, `trailers`: of the response; status 0 before its head has come.
    - `content_length`, `chunked`, `bodyless`, `delimited_by_close`: how its body is framed.
    - `complete`: all of the response has come. `keep_alive`: the app keeps the connection open behind it.
    - `head_received_at`, `last_read`: on the loop's clock.
    - `nothing_received`: not a byte of a response has come.
    - `upgraded`: the app has switched to another protocol (101).

    Of the connection:
    - `is_closed`: it has ended, in order or not.
    - `idle_since`, `idle_iteration`: for the pool.
    """

    # 1 µs of 40 a request: past thirty attributes, instances no longer share the keys of their dicts.
    __slots__ = (
        "_body_future",
        "_buffered_bytes",
        "_head_buffer",
        "_head_bytes",
        "_head_future",
        "_in_exchange",
        "_joins_chunks",
        "_lenient",
        "_max_head",
        "_method",
        "_on_informational",
        "_parser",
        "_peer_name",
        "_pieces",
        "_reading_paused",
        "_requested_upgrade",
        "_sink",
        "_sock",
        "_write_resumed",
        "_writing_paused",
        "bodyless",
        "buffered",
        "chunked",
        "complete",
        "content_length",
        "delimited_by_close",
        "head_received_at",
        "headers",
        "idle_iteration",
        "idle_since",
        "is_closed",
        "keep_alive",
        "last_read",
        "loop",
        "nothing_received",
        "on_body",
        "reason",
        "status",
        "trailers",
        "transport",
        "upgraded",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket | None = None,
        *,
        peer_name: str = "The app",
        max_head: int = MAX_HEAD,
        lenient: bool = False,
        joins_chunks: bool = False,
    ) -> None:
        """`sock` is the transport's own, for TCP_QUICKACK; `peer_name` begins the sentences of errors. A response's
        head may have `max_head` bytes. If `lenient`, lines may end without CR, and spaces may stand behind a chunk's
        size: some vendors' servers write both. `joins_chunks`: the chunks of a body that come in one read are handed on
        as one."""
        self.loop = loop
        self._sock = sock
        self._peer_name = peer_name
        self._max_head = max_head
        self._lenient = lenient
        self._joins_chunks = joins_chunks
        # The parser's callback for a piece of a body. A list takes it without a Python frame: if chunks are joined, a
        # stream of many small ones costs 0.1 µs a chunk here, and not 0.7.
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self.transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self.idle_iteration = 0  # of the loop, in which it became idle
        self.last_read = 0.0
        self.is_closed = False
        self._parser: httptools.HttpResponseParser | None = self._new_parser()
        self._write_resumed: asyncio.Future[None] | None = None
        self._writing_paused = False
        self._in_exchange = False  # a request is out, and its response is not complete
        self._begin_exchange("GET", None)

    def __repr__(self) -> str:
        state = "ended" if self.is_closed else "busy" if self._in_exchange else "idle"
        return f"<UpstreamConnection {state}{', answered ' + str(self.status) if self.status else ''}>"

    def _new_parser(self) -> httptools.HttpResponseParser:
        parser = httptools.HttpResponseParser(self)
        if self._lenient:
            # Neither makes a header field or the end of a body ambiguous; other leniencies of llhttp's would.
            parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        return parser

    def _begin_exchange(self, method: str, upgrade: str | None) -> None:
        self._method = method
        self._requested_upgrade = upgrade
        self.status = 0
        self.reason = b""
        self.headers: HeaderList = []
        self.trailers: HeaderList = []
        self.content_length: int | None = None
        self.chunked = False
        self.bodyless = False
        self.delimited_by_close = False
        self.keep_alive = False
        self.head_received_at = 0.0
        self.complete = False
        self.upgraded = False
        self.nothing_received = True
        self.buffered: list[bytes] = []
        self._buffered_bytes = 0
        self._head_bytes = 0
        self._head_buffer: HeadBuffer | None = None  # if the head does not come whole, or cannot be parsed as it is
        self._sink: BodySink | None = None
        self._reading_paused = False
        self._head_future: asyncio.Future[None] | None = None
        self._body_future: asyncio.Future[None] | None = None
        self._on_informational: OnInformational | None = None

    # ── what the relay calls ─────────────────────────────────────────────────────────────────

    @property
    def reusable(self) -> bool:
        return self.complete and self.keep_alive and not self.is_closed and not self.upgraded

    @property
    def known_size(self) -> int | None:
        """Bytes of the whole body, if they are known: announced, or all here."""
        if self.content_length is None and self.complete and not self.bodyless:
            return self._buffered_bytes
        return self.content_length

    def send_request(
        self, head: bytes, method: str, upgrade: str | None, on_informational: OnInformational | None
    ) -> asyncio.Future[None]:
        """Write the head of a request, with as much of its body as is there. The future is done when the head of the
        response has come.

        It fails with PeerUnreachable if the connection ends first, with PeerMisframed if the framing is bad.
        """
        assert not self._in_exchange, "one request at a time"
        self._begin_exchange(method, upgrade)
        self._in_exchange = True
        self._on_informational = on_informational
        self._head_future = self.loop.create_future()
        if self.is_closed or self.transport is None:
            # It ended between the pool's check and now: nothing of the request was sent.
            self._fail_exchange(PeerUnreachable(f"{self._peer_name} closed the connection.", sent=False))
        else:
            self.transport.write(head)
        return self._head_future

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def write_chunk(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))

    async def drain(self) -> None:
        """Wait until the app reads on. Raises PeerUnreachable if the connection has ended."""
        if self.is_closed:
            raise PeerUnreachable(f"{self._peer_name} closed the connection while it was sent a body.", sent=True)
        if self._writing_paused:
            if self._write_resumed is None:
                self._write_resumed = self.loop.create_future()
            await asyncio.shield(self._write_resumed)  # others may wait for the same future

    @property
    def reading_paused(self) -> bool:
        """Whether the gateway has stopped reading, because the client does not keep up."""
        return self._reading_paused

    @property
    def writing_paused(self) -> bool:
        return self._writing_paused

    def stream_body(self, sink: BodySink) -> asyncio.Future[None] | None:
        """Send the body to `sink`, from its beginning. The future is its end, or fails with PeerUnreachable; None if
        all of it had come already."""
        self._sink = sink
        buffered, self.buffered = self.buffered, []
        self._buffered_bytes = 0
        flowing = True
        for data in [b"".join(buffered)] if len(buffered) > 1 and self._joins_chunks else buffered:
            flowing = sink.write_body(data)
        if self.complete:
            return None
        finished = self._body_future = self.loop.create_future()
        if self.is_closed:
            # It ended while its body was buffered here, when nobody waited for it yet.
            finished.set_exception(self._incomplete_error())
        elif flowing:
            self.resume_reading()
        else:
            self.pause_reading()
        return finished

    def take_body(self) -> bytes:
        """All of a body of which all has come."""
        assert self.complete
        buffered, self.buffered = self.buffered, []
        self._buffered_bytes = 0
        return buffered[0] if len(buffered) == 1 else b"".join(buffered)

    def switch_protocol(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Hand the transport over to another protocol; the bytes that have already come for it go with it."""
        assert self.upgraded
        assert self.transport is not None
        transport, received = self.transport, b"".join(self.buffered)
        transport.set_protocol(protocol)
        self._parser = None
        self.buffered = []
        self._in_exchange = False
        self.resume_reading()
        return transport, received

    def fail(self, error: Exception) -> None:
        """End the exchange with an error of the caller's, for example because a deadline has passed."""
        self._fail_exchange(error)
        self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None:
            self._reading_paused = False
            self.transport.resume_reading()

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.last_read = self.loop.time()
        self.nothing_received = False
        if self.upgraded:
            self._buffer_body(data)
            return
        # RFC 9112 section 9.2: a response without a request in flight belongs to nobody.
        if not self._in_exchange:  # nobody asked: a second response, or noise
            self.abort()
            return
        if not self.status:
            # Until the head is complete, its bytes are counted and, if it comes in pieces, kept.
            self._head_bytes += len(data)
            # A head that comes in a single read may have its body behind it: it is measured once it is parsed.
            if self._head_bytes > self._max_head and len(data) < self._head_bytes:
                self._fail_misframed(self._head_too_long())
                return
            if self._head_buffer is not None:
                data = self._head_buffer.append(data)
        parser = self._parser
        assert parser is not None
        self._parse(parser, data)
        # The head goes on: its beginning is kept, in case its lengths have to be merged.
        if not (self.status or self._head_buffer):
            self._head_buffer = HeadBuffer(data)
        # A read that is not full means that the app has sent all it could: it may be waiting for an acknowledgement.
        elif self._in_exchange and len(data) < READ_SIZE:
            self._acknowledge_now()

    def _parse(self, parser: httptools.HttpResponseParser, data: bytes) -> None:
        try:
            parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as stop:
            self._deliver_body()
            self._on_parser_stop(data, stop)
        else:
            if self._pieces:
                self._deliver_body()

    def _acknowledge_now(self) -> None:
        """Acknowledge what has come at once, since more of the response is to come.

        A server that has Nagle's algorithm on waits with the rest for an acknowledgement, which the kernel delays by
        40 ms on long-lived connections. The option is not sticky: see tcp(7), TCP_QUICKACK.
        """
        if QUICKACK is not None and self._sock is not None:
            try:
                self._sock.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
            except OSError:  # the connection has just ended
                pass

    def _on_parser_stop(self, data: bytes, stop: httptools.HttpParserUpgrade | httptools.HttpParserError) -> None:
        """The parser stopped within these bytes, by an upgrade or an error."""
        if isinstance(stop, httptools.HttpParserUpgrade):
            if rest := data[stop.args[0] :]:
                self._buffer_body(rest)
        elif str(stop) == DUPLICATE_LENGTH and not self.status:
            self._reparse_head(data)
        elif not self.complete:
            # httptools wraps errors of its callbacks; what those raised says better what was wrong.
            cause = stop.__context__
            self._fail_misframed(str(cause if isinstance(cause, FramingError) else stop))
        else:
            self.keep_alive = False

    def _reparse_head(self, data: bytes) -> None:
        """A length that is stated twice stopped the parser: parse the head again with one of them, once it is whole.

        Some frameworks behind some servers state it twice. `merge_lengths` says when that is harmless.
        """
        # llhttp's state cannot be turned back, so a fresh parser gets the head from its beginning.
        pieces = self._head_buffer = self._head_buffer or HeadBuffer(data)
        merged = merge_lengths(pieces.data)
        # Once only. An interim response that was passed on cannot be taken back, and lengths that differ stay wrong.
        if pieces.reparsed or (merged is None and b"\r\n\r\n" in pieces.data):
            self._fail_misframed(DUPLICATE_LENGTH)
            return
        self.reason, self.headers = b"", []
        parser = self._parser = self._new_parser()
        # Until the head is complete, each piece that comes is parsed together with all those before it.
        pieces.reparsing = True
        if merged is None:
            return
        pieces.reparsed = True
        self._parse(parser, merged)

    def eof_received(self) -> bool:
        if self.upgraded:
            return False
        self._on_end_of_input(None)
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._on_end_of_input(exc)
        self.is_closed = True
        self.transport = None
        self._parser = None
        self._writing_paused = False
        # An upload that waits for the app to read on would wait for ever.
        if self._write_resumed is not None and not self._write_resumed.done():
            self._write_resumed.set_exception(self._incomplete_error())
            self._write_resumed.exception()  # the upload's task may be gone, and nobody else would retrieve it
        self._write_resumed = None
        self._fail_exchange(self._incomplete_error())

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._write_resumed is not None and not self._write_resumed.done():
            self._write_resumed.set_result(None)
        self._write_resumed = None

    # ── httptools ────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False
            # llhttp begins a second response behind the first one, which nobody has asked for.
            raise FramingError("more bytes than its framing allows")

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        (self.trailers if self.status else self.headers).append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        status, version = parser.get_status_code(), parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise FramingError("it does not speak HTTP/1")
        if 100 <= status < 200 and status != 101:
            return  # an interim response: on_message_complete passes it on
        # A client that did not ask for it would take the other protocol's bytes for HTTP.
        if status == 101 and self._requested_upgrade is None:
            raise FramingError("it switched protocols without being asked to")
        if status < 100 or status > 999:
            raise FramingError("its status is no status")
        if self._head_bytes > self._max_head:
            size = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._max_head:
                raise FramingError(self._head_too_long())
        self._read_framing(parser, status, version)
        self.status = status
        self.head_received_at = self.loop.time()
        self.upgraded = status == 101
        if self._head_future is not None and not self._head_future.done():
            self._head_future.set_result(None)
        if self._method == "HEAD" and not self.complete:
            # llhttp cannot be told that this response has no body. So it counts as complete, and a fresh parser reads
            # the next one.
            self._parser = self._new_parser()
            self._complete_response()

    def _read_framing(self, parser: httptools.HttpResponseParser, status: int, version: str) -> None:
        """How the body is framed (RFC 9112 section 6.3). Raises FramingError."""
        for name, value in self.headers:
            lower = name.lower()
            if lower == b"content-length":
                self.content_length = int(value)
            elif lower == b"transfer-encoding":
                # Other codings would need decoding to find the end, and two of them invite two readings (RFC 9112
                # section 6.1).
                if value.lower() != b"chunked" or self.chunked:
                    raise FramingError("its only transfer coding may be `chunked`")
                self.chunked = True
        if self.chunked and version == "1.0":
            raise FramingError("HTTP/1.0 knows no transfer coding")
        # RFC 9112 section 6.3 in its order: no body, chunked, a length, the end of the connection.
        self.bodyless = self._method == "HEAD" or status in (204, 304) or status == 101
        self.delimited_by_close = not (self.bodyless or self.chunked or self.content_length is not None)
        self.keep_alive = parser.should_keep_alive() and not self.delimited_by_close

    def _deliver_body(self) -> None:
        """Hand on the pieces of the body that the parser has found."""
        pieces = self._pieces.copy() if len(self._pieces) < 2 or not self._joins_chunks else [b"".join(self._pieces)]
        self._pieces.clear()
        for data in pieces:
            if self.complete:  # a body behind the head of a response to HEAD
                self.keep_alive = False
            elif self._sink is None:
                self._buffer_body(data)
            # Straight into the client's transport, without a task in between: a stream costs no switch for each piece.
            elif not self._sink.write_body(data):
                self.pause_reading()

    def on_message_complete(self) -> None:
        if not self.status:  # of an interim response (1xx)
            parser = self._parser
            assert parser is not None
            reason, headers = self.reason, self.headers
            self.reason, self.headers, self._head_bytes = b"", [], 0
            self._head_buffer = HeadBuffer(b"", reparsed=True)  # what was passed on already cannot be parsed again
            if self._on_informational is not None:
                self._on_informational(parser.get_status_code(), reason, headers)
        elif not self.upgraded:
            if self._pieces:
                self._deliver_body()
            self._complete_response()

    # ── endings ──────────────────────────────────────────────────────────────────────────────

    def _buffer_body(self, data: bytes) -> None:
        self.buffered.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > MAX_BUFFERED_BODY:
            self.pause_reading()

    def _complete_response(self) -> None:
        self.complete = True
        self._in_exchange = False
        if self._reading_paused:  # its last bytes may have asked for a pause, and the next response must be read
            self.resume_reading()
        if self._body_future is not None and not self._body_future.done():
            self._body_future.set_result(None)

    def _on_end_of_input(self, exc: BaseException | None) -> None:
        # Only a response that nothing else frames ends with its connection, and a reset is no end (RFC 9112 section 8).
        if self._in_exchange and self.status and self.delimited_by_close and exc is None and not self.complete:
            self._complete_response()

    def _incomplete_error(self) -> PeerUnreachable:
        return PeerUnreachable(f"{self._peer_name} closed the connection before its answer was whole.", sent=True)

    def _head_too_long(self) -> str:
        return f"its head is longer than {self._max_head // 1024} KiB"

    def _fail_misframed(self, why: str) -> None:
        self._fail_exchange(PeerMisframed(f"{self._peer_name}'s answer cannot be read: {why}.", why=why))
        self.abort()

    def _fail_exchange(self, error: Exception) -> None:
        if self.complete:
            return
        self._in_exchange = False
        # Whoever waits, waits for one of the two: first for the head, then for the body.
        for future in (self._head_future, self._body_future):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # retrieved, since whoever waited may be gone
                break


def merge_lengths(data: bytes) -> bytes | None:
    """The same bytes, with one Content-Length field in place of several equal ones. None if the head is not whole, or
    the lengths differ.

    RFC 9110 section 8.6 allows a recipient to do so, and browsers and curl do: the length is beyond doubt.
    """
    head, blank_line, body = data.partition(b"\r\n\r\n")
    kept: list[bytes] = []
    lengths: list[bytes] = []
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() != b"content-length":
            kept.append(line)
        else:
            lengths.append(value.strip(b" \t"))
    if not blank_line or len(lengths) < 2 or len(set(lengths)) > 1 or not lengths[0].isdigit():
        return None
    return b"\r\n".join((*kept, b"Content-Length: " + lengths[0])) + blank_line + body
