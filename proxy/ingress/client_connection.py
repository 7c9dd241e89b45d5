"""One client's connection: requests come off it one at a time, answers are written to it.

aiohttp's C parser and streams face the network; what is ours is the loop around them. aiohttp's own
request handler would do, but for what a proxy needs and it cannot give: it drops the rest of an upload
when a drain begins, waits for ever for the end of a head, answers bad input in its own words, knows no
upgrade but WebSocket's, and makes two tasks and a response object a request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tcp_helpers import tcp_keepalive

from proxy.errors import Refusal
from proxy.ingress.exchange import Body, Exchange
from proxy.ingress.headers import requested_upgrade
from proxy.ingress.protocol_upgrade import UpgradeRequest
from proxy.ingress.request_errors import bad_request, head_too_long, unreadable_request

READ_BUFFER = 64 * 1024  # bytes of a body held for the app, a connection
MAX_PIPELINED = 16  # requests read ahead of the one being answered
MAX_UPGRADE_TAIL = 64 * 1024  # bytes kept for a protocol that is being switched to
LINGER_SECONDS = 5.0  # seconds to go on reading behind a last answer, so that a reset does not eat it
REJECTED_LINGER_SECONDS = 0.5  # the same for one that only had to be told that there is no place
MAX_LINGER_BYTES = 8 * 1024 * 1024

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset

RequestHandler = Callable[["ClientConnection", Exchange], Awaitable[bool]]
RefusalWriter = Callable[["ClientConnection", Refusal], None]


class ClientConnection(BaseProtocol):
    """A client. `handle` answers an exchange and says whether the connection may go on;
    `refuse` answers what never became one."""

    __slots__ = (
        "_body",
        "_discarded",
        "_discarding",
        "_handle",
        "_head_bytes",
        "_ignores_input",
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
        handle: RequestHandler,
        refuse: RefusalWriter,
        on_lost: Callable[[ClientConnection], None],
        *,
        max_header: int,
    ) -> None:
        parser = HttpRequestParser(
            self,
            loop,
            READ_BUFFER,
            max_line_size=max_header,
            max_field_size=max_header,
            max_headers=max(128, max_header // 16),
            auto_decompress=False,
        )
        super().__init__(loop, parser)
        self._max_header = max_header
        self._handle = handle
        self._refuse = refuse
        self._on_lost = on_lost
        self._messages: deque[tuple[Any, Body] | Refusal] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._body: Body | None = None  # of the newest request
        self._head_bytes = 0
        self._partial_head = b""  # of a head that is not whole yet
        self._upgrade_request: UpgradeRequest | None = None  # a request whose body goes on
        self._upgrade_pending = False
        self._ignores_input = False
        self._opening = False
        self._upgrade_tail = b""
        self._discarding = False
        self._discarded = 0
        self.peer = ""
        self.busy = False
        self.response_started = False  # the answer to the present request has begun
        self.draining = False
        self.tunnel: Any = None
        self.rejected = False
        self.counted_address: str | None = None  # the address whose place it has, where they are bounded
        self.behind_proxy = False  # a request of it named another client than its peer
        self.on_writable: Callable[[], None] | None = None
        # what the sweep looks at
        self.idle_since = self.last_read = loop.time()
        self.has_served = False  # at least one request
        self.head_started_at = 0.0  # 0: no head has begun
        self.body_bytes = 0  # of bodies, but for what came with their heads
        self.rate_measured_since = 0.0  # since when they are measured, 0: they are not
        self.rate_start_bytes = 0  # how many there were then
        self.awaits_continue = False  # it waits for a word before it sends its body (100-continue)
        self.stalled_since = 0.0  # 0: the client reads what it is sent
        self.stalled_bytes = 0

    def __repr__(self) -> str:
        state = "closed" if self.transport is None else "busy" if self.busy else "idle"
        return f"<Connection {self.peer or 'unknown'} {state}>"

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        tcp_keepalive(self.transport)

    def open(self, sock: socket.socket, peer: str) -> None:
        """Serve the one who is at the other end of an accepted socket."""
        self.peer = peer
        self._opening = True
        self._task = self._loop.create_task(self._serve_requests(sock))

    def reject(self, refusal: Refusal) -> None:
        """Before `open`: tell it this and nothing else."""
        self.rejected = True
        self._discarding = True
        self._messages.append(refusal)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > MAX_LINGER_BYTES:
                self.abort()
            return
        if self._upgrade_pending and data:
            self._append_upgrade_tail(data)
            return
        if self._upgrade_request is not None and (end := self._upgrade_request.find_end(data)) is not None:
            self._upgrade_request = None
            self._parse_input(data[:end])
            self._hold_for_upgrade(data[end:])
        else:
            self._parse_input(data)

    def _parse_input(self, data: bytes) -> None:
        fresh = False  # whether no body goes on with this
        if data:  # there is none when the parser is asked to go on with what it has
            self.last_read = self._loop.time()
            if self._body is None or self._body.is_eof():
                fresh = True
                if self._head_bytes == 0:
                    self.head_started_at = self.last_read
                self._head_bytes += len(data)
            else:
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
            begun, self._partial_head = self._partial_head, b""
            self._enqueue_messages(messages)
            if upgraded:
                self._upgraded = True
                self._hold_for_upgrade(tail)
            elif messages[-1][0].upgrade and not self._discarding:
                self._prepare_upgrade(begun + data if fresh else b"")
        elif upgraded:
            self._upgraded = True
            self._hold_for_upgrade(tail)
        elif self._body is None or self._body.is_eof():
            if fresh:
                self._partial_head += data
            if self._head_bytes > self._max_header:
                self.reject_input(head_too_long(self._max_header))

    def _prepare_upgrade(self, begun: bytes) -> None:
        """A request for a protocol that the parser knows nothing of: what is behind it waits for its answer."""
        upgrading = UpgradeRequest(begun)
        if upgrading.end is not None:
            self._hold_for_upgrade(begun[upgrading.end :])
        elif begun and self.body_incomplete:
            self._upgrade_request = upgrading
        else:
            self._ignores_input = (
                True  # where it ends is not known: it is answered, and nothing behind it taken for a request
            )

    def _hold_for_upgrade(self, tail: bytes) -> None:
        """What comes from here on may be another protocol's: kept until the answer says so."""
        self._upgrade_pending = True
        if tail:
            self._append_upgrade_tail(tail)

    def _enqueue_messages(self, messages: Any) -> None:
        if self._ignores_input:
            return
        for message, body in messages:
            if self._head_bytes > self._max_header and head_size(message) > self._max_header:
                self.reject_input(head_too_long(self._max_header))
                return
            self._messages.append((message, body))
            self._body = body
        self._head_bytes = 0
        self.head_started_at = 0.0
        self._wake_serving_task()
        if len(self._messages) > MAX_PIPELINED:
            self._pause_reading(True)

    def eof_received(self) -> bool:
        return False  # a client that half-closes is gone: nobody could tell it from one that left

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._parser = None
        if self._body is not None and not self._body.is_eof():
            self._fail_body(ConnectionResetError("The client left."))
        if self._task is not None:
            self._task.cancel()
        self.on_writable = None
        self._on_lost(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = self._loop.time()
        self.stalled_bytes = self.unsent_bytes

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = 0.0
        if self.on_writable is not None:
            self.on_writable()

    # ── bad input ────────────────────────────────────────────────────────────────────────────

    def reject_input(self, refusal: Refusal) -> None:
        """Nothing that follows on this connection can be trusted to be a request."""
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
        try:
            await self._loop.connect_accepted_socket(lambda: self, sock)
            self._opening = False
        except BaseException as error:
            sock.close()
            if self.transport is None:  # it was gone already, or we are closing
                self._on_lost(self)
            if isinstance(error, OSError):
                return
            raise
        try:
            while self.transport is not None:
                if not self._messages:
                    if (
                        self.draining and self.has_served
                    ):  # a first request may be on its way: the sweep gives it a moment
                        break
                    self._waiter = self._loop.create_future()
                    await self._waiter
                    self._waiter = None
                    continue
                self.busy = True
                self.response_started = False
                keep = await self._handle_message(self._messages.popleft())
                self.busy = False
                self.has_served = True
                self.idle_since = self._loop.time()
                if not keep:
                    break
                self._resume_input()
            await self._close_gracefully()
        except ConnectionError:
            self.abort()  # the client left while it was written to
        except Exception:
            self.abort()  # a fault of ours must not leave a client waiting; the loop's handler tells of it
            raise
        finally:
            self.busy = False
            self._task = None

    async def _handle_message(self, item: tuple[Any, Body] | Refusal) -> bool:
        if isinstance(item, Refusal):
            self._refuse(self, item)
            return False
        message, body = item
        if message.version not in (HttpVersion11, HttpVersion10):
            self._refuse(self, bad_request("Only HTTP/1.1 and HTTP/1.0 are spoken here."))
            return False
        if message.method == "CONNECT":
            self._refuse(self, bad_request("This is not a proxy that CONNECT could use."))
            return False
        headers = message.headers
        if not body.is_eof() and "Expect" in headers:
            self.awaits_continue = "100-continue" in headers["Expect"].lower() and not body.total_bytes
        x = Exchange(
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
            await self._handle(self, x)
            and body.is_eof()
            and not (self._discarding or (self._ignores_input and not self._messages))
        )

    def _resume_input(self) -> None:
        if self._upgrade_pending and self._parser is not None:  # asked for, not granted: plain HTTP goes on
            self._parser.set_upgraded(False)
            self._upgraded = self._upgrade_pending = False
            tail, self._upgrade_tail = self._upgrade_tail, b""
            if tail:
                self.data_received(tail)
            self._pause_reading(False)
        elif len(self._messages) == MAX_PIPELINED:
            self._pause_reading(False)

    async def _close_gracefully(self) -> None:
        """Close so that the client can still read the last answer: half-close, read on a while."""
        transport = self.transport
        if transport is None or self.tunnel is not None:
            return
        if self._body is None or self._body.is_eof():
            if not self._discarding:
                transport.close()
                return
        self._discarding = True
        self._pause_reading(False)
        if transport.can_write_eof() and not transport.is_closing():
            try:
                transport.write_eof()
            except OSError:  # reset by the client, which the loop is about to tell
                self.abort()
                return
        self._loop.call_later(REJECTED_LINGER_SECONDS if self.rejected else LINGER_SECONDS, self.abort)

    def _append_upgrade_tail(self, data: bytes) -> None:
        self._upgrade_tail += data
        if len(self._upgrade_tail) > MAX_UPGRADE_TAIL:
            self._pause_reading(True)

    def _pause_reading(self, hold: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if hold and transport.is_reading():
            transport.pause_reading()
        elif not hold and not transport.is_reading():
            transport.resume_reading()

    # ── what the pipeline calls ──────────────────────────────────────────────────────────────

    @property
    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def is_idle(self) -> bool:
        """Nothing was asked that is not answered; its last answer may be behind it, and it is read from a while."""
        asked = self.busy or self.head_started_at or self._messages or self.tunnel or self.rejected
        return not (asked or self.is_gone or self.unsent_bytes)

    @property
    def is_gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def reading_paused(self) -> bool:
        """We, not the client, are why no byte of its body comes."""
        return self._reading_paused

    @property
    def body_incomplete(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def write_continue(self, data: bytes) -> None:
        """An interim answer of 100: from here on it is the client who is waited for."""
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
        """Wait until the client reads on. Raises ConnectionError when it left."""
        await self._drain_helper()

    def local_authority(self) -> str:
        name = self.transport.get_extra_info("sockname") if self.transport is not None else None
        return f"{name[0]}:{name[1]}" if name else "localhost"

    def switch_protocol(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Hand the transport to another protocol, with the bytes that already came for it."""
        assert self.transport is not None
        transport, tail = self.transport, self._upgrade_tail
        self._upgrade_tail = b""
        transport.set_protocol(protocol)
        return transport, tail

    def detach(self) -> None:
        """The transport lives on elsewhere, or ended there."""
        self.transport = None
        self._on_lost(self)

    def begin_drain(self) -> None:
        """Answer what was asked, then close; a connection that is idle gets a moment by the sweep."""
        self.draining = True

    def abort_response(self, *, framed: bool) -> None:
        """End an answer so that nobody takes it for whole.

        Where its framing tells (`framed`), what was written still goes out; an answer that its
        connection's end delimits can only be told broken by a reset.
        """
        transport = self.transport
        if transport is None:
            return
        if framed:
            transport.close()
            return
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
        elif self._opening and self._task is not None:
            self._task.cancel()


def head_size(message: Any) -> int:
    """Bytes of a request's line and fields, as aiohttp's parser has read them."""
    fields = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return fields + len(message.method) + len(message.path) + 12
