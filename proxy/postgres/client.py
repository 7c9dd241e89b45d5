"""A connection of the app: what it sends goes through its session to whichever server it gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from proxy.postgres import wire
from proxy.postgres.auth.login import Login, LoginPolicy
from proxy.postgres.auth.startup import PoolKey, Startup
from proxy.postgres.frontend import ProtocolError
from proxy.postgres.pins import no_slot
from proxy.postgres.session import Session
from proxy.postgres.wire import HEADER_SIZE, read_header

if TYPE_CHECKING:
    from proxy.postgres.server import ServerConnection


_DISCARDED_KINDS = frozenset((wire.FLUSH, wire.COPY_DATA, wire.COPY_DONE, wire.COPY_FAIL))
_READY_FOR_QUERY = wire.ready_for_query()


class ServerlessReplies:
    """`skip` takes off what needs no server: a Sync is answered; a Flush, and what is left of a COPY that failed,
    goes nowhere. After `refuse` the rest of an extended batch goes nowhere either, up to its Sync, which alone is
    answered by ReadyForQuery (as PostgreSQL does after an error)."""

    __slots__ = ("_after", "_sink", "_to_sync", "ended")

    def __init__(self) -> None:
        self._sink = 0  # bytes that are still to come and go nowhere
        self._after = b""  # what is said when they have come
        self._to_sync = False
        self.ended = False

    @property
    def busy(self) -> bool:
        """Whether something of before has not come to its end."""
        return self._to_sync or self._sink > 0

    def skip(self, data: bytes) -> tuple[bytes, bytes]:
        """What the client gets, and what of `data` needs a server. Raises ProtocolError."""
        return self._walk(data, b"")

    def refuse(self, data: bytes, error: bytes) -> tuple[bytes, bytes]:
        """The same where there is no server to be had: each message, or batch of them, gets the error."""
        return self._walk(data, error)

    def _walk(self, data: bytes, error: bytes) -> tuple[bytes, bytes]:
        said = b""
        pos, size = 0, len(data)
        if self._sink:
            pos = min(self._sink, size)
            self._sink -= pos
            if not self._sink:
                said, self._after = self._after, b""
        while pos + HEADER_SIZE <= size:
            kind, length = read_header(data, pos)
            if length < 4 or kind not in wire.FRONTEND_KINDS:
                raise ProtocolError(f"invalid frontend message type {kind}")
            after = b""
            if kind == wire.TERMINATE:
                self.ended = True
                break
            if kind == wire.SYNC:
                self._to_sync = False
                after = _READY_FOR_QUERY
            elif kind not in _DISCARDED_KINDS and not self._to_sync:
                if not error:
                    break
                self._to_sync = kind not in (wire.QUERY, wire.FUNCTION_CALL)
                after = error if self._to_sync else error + _READY_FOR_QUERY
            pos += 1 + length
            if pos > size:
                self._sink, self._after = pos - size, after
                return said, b""
            said += after
        return said, data[pos:]


class ClientHost(Protocol):
    """Where clients go."""

    login_policy: LoginPolicy

    @property
    def always(self) -> bool:
        """Whether a server is reset at every change of clients."""

    def is_full(self) -> bool: ...
    def on_login(self, client: ClientConnection) -> None: ...
    def on_client_left(self, client: ClientConnection) -> None: ...
    def cancel(self, key: tuple[int, int]) -> None: ...
    def start_tls(self, client: ClientConnection, transport: asyncio.Transport) -> None: ...
    def acquire_server(self, client: ClientConnection) -> ServerConnection | None: ...


SERVER_KINDS = frozenset((b"Q", b"P", b"B"))  # never without a server
MAX_BACKLOG = 256 * 1024  # bytes that are read from a client which has to wait; the rest waits in its socket


class ClientConnection(asyncio.Protocol):
    """`session` is there when it is in; `since` is when it began to wait. `listener` takes its messages where it
    is no session of the database (the console)."""

    def __init__(self, desk: ClientHost, clock: Callable[[], float], number: int) -> None:
        self._desk = desk
        self._clock = clock
        self.number = number
        self.login: Login | None = None
        self.startup: Startup | None = None
        self.pool_key: PoolKey = ()  # what its server must have been opened with
        self.session: Session | None = None
        self.listener: Callable[[bytes], None] | None = None
        self.server: ServerConnection | None = None
        self.waiting = False
        self.since = clock()
        self.cancel_key = (0, 0)
        self.port = 0
        self.closing = False
        self.route = ""  # of the request that it works for, where that is known
        self.login_timer: asyncio.TimerHandle | None = None  # how long it may take to log in
        self.end_request: Callable[[], None] = no_request  # it works no more for the request it worked for
        self._welcome: Callable[[int], bytes] | None = None  # what it is told once it has a server, where it waits so
        self._between = ServerlessReplies()
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self._paused: set[str] = set()
        self._full = False

    def __repr__(self) -> str:
        return f"<Client {self.number} {self.state}>"

    @property
    def state(self) -> str:
        """One of login, console, idle, waiting, active, idle_in_transaction, pinned."""
        if self.session is None:
            return "login" if self.listener is None else "console"
        if self.waiting or self.session.frontend.awaits_pin:
            return "waiting"
        return "idle" if self.server is None else self.server.state

    @property
    def said_goodbye(self) -> bool:
        return self.session is not None and self.session.frontend.terminated

    @property
    def paused_by_server(self) -> bool:
        """Whether it is not read because its server had enough."""
        return "server" in self._paused

    @property
    def has_pending(self) -> bool:
        """Whether there are messages that it sent and no server has."""
        return bool(self._data) and not self.waiting

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def end(self, error: bytes = b"") -> None:
        """Hang up, after a last word."""
        self.closing = True
        self._data = b""
        if self._transport is not None:
            if error:
                self._transport.write(error)
            self._transport.close()
        self._desk.on_client_left(self)

    # ── what the transport says ──────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        if self._desk.is_full():
            self._transport.abort()
            return
        peer = transport.get_extra_info("peername")
        self.port = peer[1] if isinstance(peer, tuple) and len(peer) > 1 else 0
        self.login = Login(self._desk.login_policy)

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        if self.session is not None:
            self._data = self._data + data if self._data else data
            self.advance()
        elif self.login is not None:
            self._log_in(self.login, data)
        elif self.listener is not None:
            self.listener(data)
        else:
            self._data += data  # it is in, and its welcome is under way

    def _log_in(self, login: Login, data: bytes) -> None:
        reply = login.feed(data)
        transport = self._transport
        assert transport is not None
        if login.wants_tls:
            transport.pause_reading()
            transport.write(reply)
            self._desk.start_tls(self, transport)
            return
        if reply:
            transport.write(reply)
        if login.cancel_key is not None:
            self._desk.cancel(login.cancel_key)
        if login.closing:
            self.end()
        elif login.accepted is not None:
            self.startup, self._data = login.accepted, login.remainder
            self.login = None
            self.pool_key = login.accepted.key
            self._desk.on_login(self)

    def encrypted(self, transport: asyncio.Transport) -> None:
        """TLS has begun."""
        self._transport = transport
        if self.login is not None:
            self.login.on_tls_started()

    def begin(self, session: Session, welcome: bytes) -> None:
        """It is in: from now on its messages count."""
        self.write(welcome)
        self.session = session
        if self._data:
            self.advance()

    def begin_with_server(self, session: Session, welcome: Callable[[int], bytes]) -> None:
        """It is in as soon as it has a server, which it keeps (`mode: session`): so it is told that one's number."""
        self.session, self._welcome = session, welcome
        server = self._desk.acquire_server(self)
        if server is not None:
            self._admit(session, server)

    def _admit(self, session: Session, server: ServerConnection | None) -> None:
        """Let in who waited for a server, which may have been in vain."""
        welcome, self._welcome = self._welcome, None
        assert welcome is not None
        if server is not None:
            session.announced_pid = server.backend.pid
        self.write(welcome(session.announced_pid))
        if server is not None:
            self._link(server, session)
        if self._data:
            self.advance()

    def pop_early_data(self) -> bytes:
        """What it sent before it was in."""
        data, self._data = self._data, b""
        return data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._desk.on_client_left(self)
        self._transport = None

    # ── messages ─────────────────────────────────────────────────────────────────────────────

    def advance(self) -> None:
        """Send on what may be sent."""
        session = self.session
        assert session is not None
        try:
            if session.frontend.awaits_pin or (self.server is None and not self._want(session)) or session.blocked:
                self._limit()
                return
            self._forward(session)
        except ProtocolError as error:
            self.end(wire.fatal_response("08P01", str(error)))

    def _want(self, session: Session) -> bool:
        """Get a server, if there is anything to do for one."""
        if self.waiting:
            return False
        if self._between.busy or self._data[:1] not in SERVER_KINDS:
            said, self._data = self._between.skip(self._data)
            if said:
                self.write(said)
            if self._between.ended:
                self.end()
                return False
        if not session.frontend.can_forward(self._data):
            return False
        server = self._desk.acquire_server(self)
        if server is None:
            return False
        self._link(server, session)
        return True

    def granted(self, server: ServerConnection) -> None:
        """Its turn has come."""
        self.waiting = False
        session = self.session
        assert session is not None
        if self._welcome is not None:
            self._admit(session, server)
            return
        self._link(server, session)
        self.advance()

    def refused(self, error: bytes) -> None:
        """It has waited in vain; it may go on, since it is in no transaction."""
        self.waiting = False
        if self._welcome is not None and self.session is not None:
            self._admit(self.session, None)
            return
        try:
            said, self._data = self._between.refuse(self._data, error)
        except ProtocolError as wrong:
            self.end(wire.fatal_response("08P01", str(wrong)))
            return
        self.write(said)
        self._limit()

    def cancelled(self, error: bytes) -> None:
        """Whoever it waits for, it waits no more."""
        session = self.session
        assert session is not None
        if session.frontend.awaits_pin:
            session.frontend.resolve_pin(error)
            self.advance()
        else:
            self.refused(error)

    def slot(self, *, granted: bool) -> None:
        """What a text of its that pins has waited for."""
        session = self.session
        assert session is not None
        session.frontend.resolve_pin(b"" if granted else no_slot(session.frontend.wanted_pins))
        self.advance()

    def _link(self, server: ServerConnection, session: Session) -> None:
        self.server, server.client, server.session = server, self, session
        ahead, told = session.attach_server(server.backend, always=self._desk.always)
        if told:
            self.write(told)
        if ahead:
            server.write(ahead)
        if "out" in self._paused:
            server.pause_reading()

    def _forward(self, session: Session) -> None:
        server = self.server
        assert server is not None
        frontend = session.frontend
        if not session.outstanding.queue:
            server.since = self._clock()
        out = session.process_requests(self._data)
        self._data = frontend.remainder
        if out:
            server.write(out)
        if frontend.unsynced and (fakes := session.outstanding.pop_local_replies()):
            self.write(fakes)
        if frontend.terminated:
            self.end()
            return
        if session.needs_attention:
            server.settle(session)
        if self._full:
            self._limit()

    def _limit(self) -> None:
        """Read no more from a client that is far ahead."""
        full = len(self._data) > MAX_BACKLOG and (self.waiting or self.session is None or self.session.blocked)
        if full is not self._full:
            self._full = full
            (self.pause_reading if full else self.resume_reading)("full")

    # ── one side slower than the other ───────────────────────────────────────────────────────

    def pause_writing(self) -> None:
        self._paused.add("out")
        if self.server is not None:
            self.server.pause_reading()

    def resume_writing(self) -> None:
        self._paused.discard("out")
        if self.server is not None:
            self.server.resume_reading()

    def pause_reading(self, why: str = "server") -> None:
        self._paused.add(why)
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self, why: str = "server") -> None:
        self._paused.discard(why)
        if self._transport is not None and not self._paused & {"server", "full"}:
            self._transport.resume_reading()


def no_request() -> None:
    pass
