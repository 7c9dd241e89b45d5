"""A connection to the database: asyncpg has opened it and proved who we are, then our relay sits on its
transport."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from proxy.postgres import wire
from proxy.postgres.server_state import ServerState
from proxy.postgres.session import Session

if TYPE_CHECKING:
    from proxy.postgres.client import ClientConnection

NETWORK_DEAD_SECONDS = 30  # seconds without a sign of life until a network counts as gone
CLOSE_SECONDS = 2.0  # seconds until a server that was told goodbye is left without its own
CHECK_QUERY = wire.query_message(b"")


class ServerOwner(Protocol):
    """Who owns the servers."""

    def released(self, server: ServerConnection) -> None: ...
    def lost(self, server: ServerConnection) -> None: ...
    def checked(self, server: ServerConnection) -> None: ...


class ServerConnection(asyncio.Protocol):
    """`since` is when it began what it does now. `session` outlives `client` where that one left in the middle."""

    def __init__(self, backend: ServerState, owner: ServerOwner, clock: Callable[[], float], *, retire: float) -> None:
        self.backend = backend
        self.client: ClientConnection | None = None
        self.session: Session | None = None
        self.retire = retire  # when it has served long enough
        self.since = clock()
        self.cancelling = 0
        self.checking = False
        self.closed = False
        self.expired = False  # its query was cancelled for taking too long
        self.transactions = 0
        self._owner = owner
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._before: asyncio.BaseProtocol | None = None
        self._keep: object = None
        self._fd = -1
        self._poll = select.poll()
        self._paused = False
        self._part = b""  # the begin of a message that came while it served nobody

    def __repr__(self) -> str:
        return f"<Server pid {self.backend.pid} {self.state}>"

    @property
    def state(self) -> str:
        """One of idle, active, idle_in_transaction, pinned, checking, cancelling, leaving."""
        if self.session is None:
            return "checking" if self.checking else "cancelling" if self.cancelling else "idle"
        if self.client is None:
            return "leaving"
        if self.session.busy:
            return "active"
        if self.session.outstanding.idle and self.session.outstanding.status == wire.STATUS_IDLE:
            return "pinned"
        return "idle_in_transaction"

    def sit(
        self, transport: asyncio.Transport, before: asyncio.BaseProtocol | None = None, keep: object = None
    ) -> None:
        """Take over a connection; `keep` is what must live as long as it does."""
        self._transport, self._before, self._keep = transport, before, keep
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._fd = sock.fileno()
            self._poll.register(self._fd, select.POLLIN)
            if sock.family != socket.AF_UNIX:
                _enable_keepalive(sock)
        transport.set_protocol(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None and data:
            self._transport.write(data)

    def check(self) -> None:
        """Ask whether it still lives; the owner hears of it by `checked` or `lost`."""
        self.checking = True
        self.since = self._clock()
        self.write(CHECK_QUERY)

    def stirs(self) -> bool:
        """Whether something came from a server that serves nobody: most likely its end."""
        return self._fd >= 0 and bool(self._poll.poll(0))

    def close(self) -> None:
        """Say goodbye; `lost` follows when the server is gone, so that its successor is never one too many."""
        if not self.closed and self._transport is not None:
            self._transport.write(wire.message(wire.TERMINATE))
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)
        self.closed = True
        self.resume_reading()

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # ── what the transport says ──────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        session = self.session
        if session is None:
            self._alone(data)
            return
        try:
            out = session.process_replies(data)
        except ValueError:
            self.abort()
            return
        client = self.client
        if out and client is not None:
            client.write(out)
        if session.needs_attention:
            self.settle(session)
        if client is not None and self.client is client:
            if not session.outstanding.queue:
                self.since = self._clock()
            if client.has_pending:
                client.advance()

    def settle(self, session: Session) -> None:
        """See what the session wants of its server now."""
        behind = session.pop_injected()
        if behind:
            self.write(behind)
        if session.fatal_error:
            client = self.client
            self.close()
            if client is not None:
                client.end(session.fatal_error)
        elif session.releasable:
            self._owner.released(self)

    def _alone(self, data: bytes) -> None:
        data = self._part + data
        whole = 0
        for kind, body in wire.split_messages(data):
            whole += wire.HEADER_SIZE + len(body)
            if kind == wire.PARAMETER_STATUS:
                name, _, value = body[:-1].partition(b"\0")
                self.backend.reported = {**self.backend.reported, name: value}
            elif kind == wire.ERROR:
                self.closed = True  # it says why it is about to go
            elif kind == wire.READY_FOR_QUERY and self.checking:
                self.checking = False
                self._part = b""
                self._owner.checked(self)
                return
        self._part = data[whole:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        transport, self._transport = self._transport, None
        before, self._before = self._before, None
        if before is not None and transport is not None:
            before.connection_lost(exc)
        self._owner.lost(self)
        self._keep = None

    def eof_received(self) -> bool:
        return False

    # ── one side slower than the other ───────────────────────────────────────────────────────

    def pause_writing(self) -> None:
        if self.client is not None:
            self.client.pause_reading()

    def resume_writing(self) -> None:
        if self.client is not None:
            self.client.resume_reading()

    def pause_reading(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()


def _enable_keepalive(sock: socket.socket) -> None:
    """Have the kernel notice a network that is gone, idle or with bytes under way (RFC 5482), where it can."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", NETWORK_DEAD_SECONDS // 2),
        ("TCP_KEEPINTVL", NETWORK_DEAD_SECONDS // 6),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", NETWORK_DEAD_SECONDS * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
