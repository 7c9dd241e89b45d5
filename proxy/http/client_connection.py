"""The server's side of HTTP/1.1 (RFC 9112) towards a client, over one connection.

    state       event                                       next state
    opening     the loop has taken the socket               idle
    idle        bytes of a head                             in a head
    in a head   the head is whole                           busy
    in a head   it is malformed, too long or too late       discarding, after a refusal
    busy        handled; may go on                          idle, or busy with the next pipelined request
    busy        handled; may not go on                      lingering
    busy        101 was relayed                             tunnel: another protocol has the transport
    busy        the body is malformed or too late           discarding; whoever reads the body gets the error
    discarding  the refusal is written                      lingering
    lingering   the client closes, or LINGER_SECONDS pass   closed
    any         the client leaves                           closed; the serving task is cancelled

One task a connection, `_serve_requests`, handles requests one at a time, in the order in which they came (RFC 9112
section 9.3.2). Input goes on meanwhile in `data_received`: the body of the present request, and up to MAX_PIPELINED
requests behind it.

Theory: nothing but the framing of a request says where the next one begins. If two readers on the way disagree about
it, a client can hide a request in another one's body (request smuggling, RFC 9112 section 11.2). So after the first
byte that cannot be read for certain everything is discarded, and the connection ends with the answer. It ends slowly:
closing a socket that has unread data sends a reset, which can destroy the response before the client has read it
(RFC 9112 section 9.6). So the writing half is closed first, and what the client still sends is read for a while.

An upgrade makes the end of a request uncertain too: until its response is known, what comes behind it is either the
next request or the other protocol's. `_upgrade_tail` holds it back.

aiohttp's C parser and streams face the network; the loop around them is the gateway's own. aiohttp's own request
handler lacks what a proxy needs: it drops the rest of an upload when a drain begins, waits for ever for the end of a
head, answers bad input in its own words, knows no upgrade but WebSocket's, and makes two tasks and a response object
for each request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.tcp_helpers import tcp_keepalive

from proxy.errors import Refusal
from proxy.http.known_heads import KnownHead, KnownHeads
from proxy.http.messages import Body, IncomingRequest
from proxy.http.protocol_upgrade import UpgradeRequest, requested_upgrade
from proxy.http.request_errors import bad_request, head_too_long, unreadable_request

READ_BUFFER = 64 * 1024  # bytes of a body that are read ahead of the app
MAX_PIPELINED = 16  # requests read ahead of the one being answered
MAX_UPGRADE_TAIL = 64 * 1024  # bytes held back behind an upgrade; above it reading pauses
LINGER_SECONDS = 5.0  # for which input is read behind the last response, so that no reset destroys it
REJECTED_LINGER_SECONDS = 0.5  # the same for a client that was only told that there is no place
MAX_LINGER_BYTES = 8 * 1024 * 1024  # read meanwhile; a client that sends more is reset

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends a reset

R = TypeVar("R", bound=IncomingRequest)
RefusalWriter = Callable[["ClientConnection", Refusal], None]


class ClientConnection(BaseProtocol):
    """A client's connection. The module's docstring has its states.

    Each request is made by `make_request`, whose arguments are those of `IncomingRequest`. `handle` serves it, and
    returns whether the connection may go on; `refuse` answers input that is no request; `on_lost` is called once, when
    the connection has ended or has become a tunnel that has ended. CONNECT is a request only if `accepts_connect`.
    `known_heads` saves reading a head again that came before; without it each is read.

    - `peer`: the address of the other end, which may be a proxy's. `tunnel` is set once a protocol was switched to.
    - `busy`: a request is being served; `response_started`: the head of its response has been written.
    - `draining`: the connection closes after the present request. `rejected`: it only gets a refusal.
    - `counted_address`: the address that this connection counts for, if connections by address are limited;
      `behind_proxy`: a request of it named a client other than its peer.
    - `on_writable` is called when the client reads again, after it did not keep up.

    The listener's sweep reads the rest; times are the loop's clock, and 0 means that a measurement is not running.
    """

    __slots__ = (
        "_accepts_connect",
        "_between_requests",
        "_body",
        "_discarded",
        "_discarding",
        "_handle",
        "_head_bytes",
        "_ignores_input",
        "_known_heads",
        "_make_request",
        "_max_header",
        "_messages",
        "_on_lost",
        "_opening",
        "_partial_head",
        "_refuse",
        "_task",
        "_upgrade_pending",
        "_upgrade_request",
        "_upgrade_tail",
        "_waiter",
        "awaits_continue",
        "behind_proxy",
        "body_bytes",
        "busy",
        "counted_address",
        "draining",
        "has_served",
        "head_started_at",
        "idle_since",
        "last_read",
        "on_writable",
        "peer",
        "rate_measured_since",
        "rate_start_bytes",
        "rejected",
        "response_started",
        "stalled_bytes",
        "stalled_since",
        "tunnel",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make_request: Callable[..., R],
        handle: Callable[[ClientConnection, R], Awaitable[bool]],
        refuse: RefusalWriter,
        on_lost: Callable[[ClientConnection], None],
        *,
        max_header: int,
        accepts_connect: bool = False,
        known_heads: KnownHeads | None = None,
    ) -> None:
        parser = HttpRequestParser(
            self,
            loop,
            READ_BUFFER,
            max_line_size=max_header,
            max_field_size=max_header,
            # As many as fit into the limit if each takes 16 bytes: it is the limit in bytes that counts.
            max_headers=max(128, max_header // 16),
            auto_decompress=False,
        )
        super().__init__(loop, parser)
        self._max_header = max_header
        self._make_request: Callable[..., Any] = make_request
        self._handle: Callable[[ClientConnection, Any], Awaitable[bool]] = handle
        self._accepts_connect = accepts_connect
        self._refuse = refuse
        self._on_lost = on_lost
        self._messages: deque[tuple[Any, Body] | KnownHead | Refusal] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._body: Body | None = None  # of the newest request
        self._head_bytes = 0
        self._known_heads = known_heads
        self._between_requests = True  # for certain: the parser has nothing of a request whose end has yet to come
        self._partial_head = b""  # a head that is not whole yet
        self._upgrade_request: UpgradeRequest | None = None  # an upgrade whose body goes on
        self._upgrade_pending = False  # input is held back until a response says whose it is
        self._ignores_input = False  # it is not known where the last request ends
        self._opening = False
        self._upgrade_tail = b""
        self._discarding = False  # input is not parsed any more
        self._discarded = 0  # bytes
        self.peer = ""
        self.busy = False
        self.response_started = False
        self.draining = False
        self.tunnel: Any = None
        self.rejected = False
        self.counted_address: str | None = None
        self.behind_proxy = False
        self.on_writable: Callable[[], None] | None = None
        # For the listener's sweep.
        self.idle_since = self.last_read = loop.time()
        self.has_served = False  # a request, at least
        self.head_started_at = 0.0
        self.body_bytes = 0  # of bodies, without what came together with their heads
        self.rate_measured_since = 0.0
        self.rate_start_bytes = 0  # `body_bytes` at that time
        self.awaits_continue = False  # it waits for a 100 before it sends its body
        self.stalled_since = 0.0  # the client does not read
        self.stalled_bytes = 0  # unsent then

    def __repr__(self) -> str:
        state = "closed" if self.transport is None else "busy" if self.busy else "idle"
        return f"<Connection {self.peer or 'unknown'} {state}>"

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        tcp_keepalive(self.transport)

    def open(self, sock: socket.socket, peer: str) -> None:
        """Serve the client at the other end of an accepted socket."""
        self.peer = peer
        self._opening = True
        self._task = self._loop.create_task(self._serve_requests(sock))

    def reject(self, refusal: Refusal) -> None:
        """Answer with this refusal alone. To be called before `open`."""
        self.rejected = True
        self._discarding = True
        self._messages.append(refusal)

    def data_received(self, data: bytes) -> None:
        # Lingering: what comes is read and dropped, so that closing does not send a reset. Whoever goes on sending is
        # reset.
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > MAX_LINGER_BYTES:
                self.abort()
            return
        if self._upgrade_pending and data:
            self._append_upgrade_tail(data)
            return
        if self._between_requests and self._known_heads is not None:
            known = self._known_heads.find(data)
            if known is not None and len(data) <= self._max_header:
                self._repeat_request(known)
                return
        # The upgrade's own body ends somewhere in these bytes: only that much is HTTP for certain.
        if self._upgrade_request is not None and (end := self._upgrade_request.find_end(data)) is not None:
            self._upgrade_request = None
            self._parse_input(data[:end])
            self._hold_for_upgrade(data[end:])
        else:
            self._parse_input(data)

    def _repeat_request(self, known: KnownHead) -> None:
        """Take a head for what it was before. The parser would make the same of it, and stand where it stands now."""
        self.last_read = self._loop.time()
        self._messages.append(known)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if len(self._messages) > MAX_PIPELINED:
            self._set_reading(False)

    def _note_head(self, data: bytes, message: Any, body: Body) -> None:
        """Remember a head that had `data` to itself."""
        # What has a body, or leaves the connection in another state than before it, is read anew each time.
        if (
            body is EMPTY_PAYLOAD
            and data.find(b"\r\n\r\n") == len(data) - 4
            and not (message.should_close or message.upgrade or message.chunked or self._upgraded)
            and message.version == HttpVersion11
        ):
            self._between_requests = True
            if self._known_heads is not None:
                self._known_heads.note(data, message)

    def _parse_input(self, data: bytes) -> None:
        begins_head = False  # no body goes on with these bytes
        alone = False  # nor does a head
        if data:  # empty if the parser is asked to go on with what it has
            self.last_read = self._loop.time()
            self._between_requests = False
            if self._body is None or self._body.is_eof():
                begins_head = True
                if self._head_bytes == 0:
                    alone = True
                    self.head_started_at = self.last_read
                self._head_bytes += len(data)
            else:
                # A client that sends its body does not wait for a 100 any more.
                self.body_bytes += len(data)
                self.awaits_continue = False
        parser = self._parser
        if parser is None:
            return
        try:
            messages, upgraded, tail = parser.feed_data(data)
        except (HttpProcessingError, ValueError) as error:
            self.reject_input(unreadable_request(error, self._max_header))
            return
        if messages:
            partial_head, self._partial_head = self._partial_head, b""
            self._enqueue_messages(messages)
            if upgraded:
                # WebSocket: the parser stops behind the head, and gives back what came behind it.
                self._upgraded = True
                self._hold_for_upgrade(tail)
            # Any other protocol: the parser takes what follows for HTTP, so the end of the request is looked for here.
            elif messages[-1][0].upgrade and not self._discarding:
                self._prepare_upgrade(partial_head + data if begins_head else b"")
            elif alone and len(messages) == 1 and not (self._discarding or self._ignores_input):
                self._note_head(data, *messages[0])
        elif upgraded:
            self._upgraded = True
            self._hold_for_upgrade(tail)
        # A head is still coming. The parser limits its lines, but not all of them together.
        elif self._body is None or self._body.is_eof():
            if begins_head:
                self._partial_head += data
            if self._head_bytes > self._max_header:
                self.reject_input(head_too_long(self._max_header))

    def _prepare_upgrade(self, received: bytes) -> None:
        """Hold back what comes behind a request for a protocol that the parser does not know.

        `received` is what has come since the beginning of its head; empty if that is not known.
        """
        upgrade_request = UpgradeRequest(received)
        if upgrade_request.end is not None:
            self._hold_for_upgrade(received[upgrade_request.end :])
        elif received and self.body_incomplete:
            self._upgrade_request = upgrade_request
        else:
            # It is not known where the request ends: it is answered, and nothing behind it is taken for a request.
            self._ignores_input = True

    def _hold_for_upgrade(self, tail: bytes) -> None:
        """Hold back what comes from here on: it may be the other protocol's, as the response will tell."""
        self._upgrade_pending = True
        if tail:
            self._append_upgrade_tail(tail)

    def _enqueue_messages(self, messages: Any) -> None:
        if self._ignores_input:
            return
        for message, body in messages:
            # The bytes counted may include what came behind the head, so the exact size decides. It takes a pass over
            # all fields, which few heads need.
            if self._head_bytes > self._max_header and head_size(message) > self._max_header:
                self.reject_input(head_too_long(self._max_header))
                return
            self._messages.append((message, body))
            self._body = body
        self._head_bytes = 0
        self.head_started_at = 0.0
        self._wake_serving_task()
        # TCP's flow control makes the client wait: nobody fills the gateway's memory with requests.
        if len(self._messages) > MAX_PIPELINED:
            self._set_reading(False)

    def eof_received(self) -> bool:
        return False  # a client that half-closes cannot be told from one that has left

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._parser = None
        if self._body is not None and not self._body.is_eof():
            # Whoever reads the body, the pipeline or the upload's task, learns of it from the stream.
            self._fail_body(ConnectionResetError("The client left."))
        if self._task is not None:  # cancels the request that is being served, wherever it waits
            self._task.cancel()
        self.on_writable = None
        self._on_lost(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        # From now on the sweep watches: a client that reads nothing for `ClientTimeouts.stall` is aborted.
        self.stalled_since = self._loop.time()
        self.stalled_bytes = self.unsent_bytes

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = 0.0
        # Reading from the app goes on: backpressure reaches from the client through to the app.
        if self.on_writable is not None:
            self.on_writable()

    # ── bad input ────────────────────────────────────────────────────────────────────────────

    def reject_input(self, refusal: Refusal) -> None:
        """Stop parsing: nothing that follows can be trusted to be a request. Whoever reads the present body gets
        the refusal; if there is none, it is answered in its turn.
        """
        self._discarding = True
        self.head_started_at = 0.0
        if self._body is not None and not self._body.is_eof():
            self._fail_body(refusal)
        else:
            self._messages.append(refusal)
            self._wake_serving_task()

    def _fail_body(self, error: BaseException) -> None:
        body: Any = self._body
        body.set_exception(error)

    # ── serving ──────────────────────────────────────────────────────────────────────────────

    def _wake_serving_task(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _serve_requests(self, sock: socket.socket) -> None:
        """The connection's task: open the transport, serve requests in turn, close."""
        try:
            # The acceptor hands over bare sockets, not transports: see acceptor.py for the reason.
            await self._loop.connect_accepted_socket(lambda: self, sock)
            self._opening = False
        except BaseException as error:
            # Without a transport nobody else would close the socket.
            sock.close()
            if self.transport is None:  # the client was gone already, or the listener is closing
                self._on_lost(self)
            if isinstance(error, OSError):
                return
            raise
        try:
            while self.transport is not None:
                if not self._messages:
                    # A new connection's first request may be on its way: the sweep gives it a moment.
                    if self.draining and self.has_served:
                        break
                    self._waiter = self._loop.create_future()
                    await self._waiter
                    self._waiter = None
                    continue
                self.busy = True
                self.response_started = False
                # Strictly one after another: responses must come in the order of their requests (RFC 9112 section
                # 9.3.2).
                item = self._messages.popleft()
                if isinstance(item, KnownHead):
                    request = self._make_known_request(item)
                    keep_alive = await self._handle(self, request)
                    item.facts = request.facts
                    if self._discarding or (self._ignores_input and not self._messages):
                        keep_alive = False
                else:
                    keep_alive = await self._handle_message(item)
                self.busy = False
                self.has_served = True
                self.idle_since = self._loop.time()
                if not keep_alive:
                    break
                self._resume_input()
            await self._close_gracefully()
        except ConnectionError:
            self.abort()  # the client left while it was written to
        except Exception:
            self.abort()  # a bug must not leave a client waiting; the loop's exception handler logs it
            raise
        finally:
            self.busy = False
            self._task = None

    async def _handle_message(self, item: tuple[Any, Body] | Refusal) -> bool:
        """Serve what the parser, or a fault in the input, has put into the queue. True if the connection may go on."""
        if isinstance(item, Refusal):
            self._refuse(self, item)
            return False
        message, body = item
        # A version that the parser lets through and nobody here knows would be framed by unknown rules.
        if message.version not in (HttpVersion11, HttpVersion10):
            self._refuse(self, bad_request("Only HTTP/1.1 and HTTP/1.0 are spoken here."))
            return False
        # Passed on, it would make a tunnel to wherever the client likes (RFC 9110 section 9.3.6).
        if message.method == "CONNECT" and not self._accepts_connect:
            self._refuse(self, bad_request("This is not a proxy that CONNECT could use."))
            return False
        headers = message.headers
        # A client that expects a 100 holds its body back until then, and its timeout must not run meanwhile.
        if body is not EMPTY_PAYLOAD and not body.is_eof() and "Expect" in headers:
            self.awaits_continue = "100-continue" in headers["Expect"].lower() and not body.total_bytes
        request = self._make_request(
            message.method,
            message.path,
            headers,
            message.raw_headers,
            body,
            peer=self.peer,
            received=self._loop.time(),
            http10=message.version == HttpVersion10,
            chunked=bool(message.chunked),
            should_close=message.should_close or (self._ignores_input and not self._messages),
            upgrade=requested_upgrade(headers.get("Connection"), headers.get("Upgrade")) if message.upgrade else None,
        )
        return (
            # If the body was not read to its end, nobody knows where the next request begins.
            await self._handle(self, request)
            and body.is_eof()
            and not (self._discarding or (self._ignores_input and not self._messages))
        )

    def _make_known_request(self, known: KnownHead) -> Any:
        return self._make_request(
            known.method,
            known.target,
            known.headers,
            known.raw_headers,
            EMPTY_PAYLOAD,
            peer=self.peer,
            received=self._loop.time(),
            should_close=self._ignores_input and not self._messages,
            facts=known.facts,
        )

    def _resume_input(self) -> None:
        """After a response: parse what was held back behind it, and read on if the queue was full."""
        if self._upgrade_pending and self._parser is not None:  # the upgrade was not granted: HTTP goes on
            self._parser.set_upgraded(False)
            self._upgraded = self._upgrade_pending = False
            tail, self._upgrade_tail = self._upgrade_tail, b""
            if tail:
                self.data_received(tail)
            self._set_reading(True)
        # Reading was paused above this number, and goes on when the queue is back at it.
        elif len(self._messages) == MAX_PIPELINED:
            self._set_reading(True)

    async def _close_gracefully(self) -> None:
        """Close so that the client can still read the last response: half-close, and read on for a while."""
        transport = self.transport
        if transport is None or self.tunnel is not None:
            return
        if self._body is None or self._body.is_eof():
            # Nothing is left unread, so closing sends no reset.
            if not self._discarding:
                transport.close()
                return
        self._discarding = True
        self._set_reading(True)
        if transport.can_write_eof() and not transport.is_closing():
            try:
                transport.write_eof()
            except OSError:  # the client has reset the connection, and the loop does not know yet
                self.abort()
                return
        self._loop.call_later(REJECTED_LINGER_SECONDS if self.rejected else LINGER_SECONDS, self.abort)

    def _append_upgrade_tail(self, data: bytes) -> None:
        self._upgrade_tail += data
        if len(self._upgrade_tail) > MAX_UPGRADE_TAIL:
            self._set_reading(False)

    def _set_reading(self, enabled: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if enabled and not transport.is_reading():
            transport.resume_reading()
        elif not enabled and transport.is_reading():
            transport.pause_reading()

    # ── what the pipeline calls ──────────────────────────────────────────────────────────────

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def serving_task(self) -> asyncio.Task[None] | None:
        """The task that serves its requests, until it has ended."""
        return self._task

    @property
    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def is_idle(self) -> bool:
        """Whether the listener may close it to make room: no request is under way, and its last response is sent."""
        # A last response that is still being sent keeps a connection from being idle, even if its request is done.
        in_use = self.busy or self.head_started_at or self._messages or self.tunnel or self.rejected
        return not (in_use or self.is_gone or self.unsent_bytes)

    @property
    def is_gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """The stream of a body has room again. It says so at each read, whether it had paused or not; each time it
        would parse nothing anew (6 µs of a request with a body), and undo a pause of ours."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    @property
    def reading_paused(self) -> bool:
        """Whether it is the gateway, and not the client, that keeps bytes of its body from coming."""
        return self._reading_paused

    @property
    def body_incomplete(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def write_continue(self, data: bytes) -> None:
        """Write an interim response of 100: from here on the client is waited for."""
        self.awaits_continue = False
        self.last_read = self._loop.time()
        self.write(data)

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def writelines(self, data: list[bytes]) -> None:
        if self.transport is not None:
            self.transport.writelines(data)

    async def drain(self) -> None:
        """Wait until the client reads on. Raises ConnectionError if it leaves."""
        await self._drain_helper()

    def local_authority(self) -> str:
        """Host and port of this end, for a request without Host."""
        name = self.transport.get_extra_info("sockname") if self.transport is not None else None
        return f"{name[0]}:{name[1]}" if name else "localhost"

    def switch_protocol(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Hand the transport over to another protocol; the bytes that have already come for it go with it."""
        assert self.transport is not None
        transport, tail = self.transport, self._upgrade_tail
        self._upgrade_tail = b""
        transport.set_protocol(protocol)
        return transport, tail

    def detach(self) -> None:
        """Forget the transport: a tunnel that had it has ended."""
        self.transport = None
        self._on_lost(self)

    def begin_drain(self) -> None:
        """Close after the present request. An idle connection gets a moment, by the listener's sweep."""
        self.draining = True

    def abort_response(self, *, framed: bool) -> None:
        """End a response so that the client does not take it for whole.

        If its framing shows that it is incomplete (`framed`), what was written still goes out. If the end of the
        connection is its framing (RFC 9112 section 6.3, case 8), only a reset can show that it broke off.
        """
        transport = self.transport
        if transport is None:
            return
        if framed:
            transport.close()
            return
        # abort() alone may end with a FIN, which would look like the end of the response.
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        transport.abort()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        # There is no transport yet: the end of the task closes the socket.
        elif self._opening and self._task is not None:
            self._task.cancel()


def head_size(message: Any) -> int:
    """Bytes of a request's line and fields, from what aiohttp's parser has made of them."""
    fields = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return fields + len(message.method) + len(message.path) + 12
