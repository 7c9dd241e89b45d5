"""A connection to the database: asyncpg has opened it and proved who we are, then this protocol takes over its
transport.

=============  ==========================================  =======================================================
state          meaning                                     goes on to
=============  ==========================================  =======================================================
idle           nobody has borrowed it                      active (borrowed), checking (idle too long), closed
checking       it was asked whether it still lives         idle (it answered), closed (it did not)
active         it owes replies to its client               idle_in_transaction, pinned, idle, leaving
idle_in_...    its client has a transaction open           active, leaving
pinned         its client's state is on no other           active, leaving
leaving        its client has gone; it is made clean       idle, closed
cancelling     a cancel for it is under way, so that it    idle (the cancel has arrived)
               serves nobody: a late one hits nobody
=============  ==========================================  =======================================================

Whoever has borrowed it (`link`) knows the last of them apart; see `proxy.postgres.link`.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Protocol

from proxy.postgres import wire
from proxy.postgres.server_state import ServerState

NETWORK_DEAD_SECONDS = 30  # without a sign of life until a network counts as gone
CLOSE_SECONDS = 2.0  # until a server that was told goodbye is left without its own
CHECK_QUERY = wire.query_message(b"")


class Borrower(Protocol):
    """Who has borrowed a server. `client_number` is None once its client has left."""

    @property
    def server_state(self) -> str: ...
    @property
    def client_number(self) -> int | None: ...
    @property
    def route(self) -> str: ...
    def pump(self, replies: bytes = b"") -> None: ...
    def pause_client(self) -> None: ...
    def resume_client(self) -> None: ...
    def replace_cancel_error(self, error: bytes) -> None: ...
    def end_client(self, error: bytes) -> None: ...
    def on_server_lost(self) -> str: ...


class ServerOwner(Protocol):
    """Who owns the servers: the pool."""

    def on_server_lost(self, server: ServerConnection) -> None: ...
    def on_check_passed(self, server: ServerConnection) -> None: ...


class ServerConnection(asyncio.Protocol):
    """`backend` is what is known of the server; `link` has borrowed it; `since` is when it began what it does now, and
    `retire_at` when it has served long enough (both by `clock`); `cancelling` cancels are under way;
    `query_timed_out`: its query was cancelled for taking too long; `paused`: it is not read, because its client had
    enough; `transactions` it has served."""

    def __init__(
        self, backend: ServerState, owner: ServerOwner, clock: Callable[[], float], *, retire_at: float
    ) -> None:
        self.backend = backend
        self.link: Borrower | None = None
        self.retire_at = retire_at
        self.since = clock()
        self.cancelling = 0
        self.checking = False
        self.closed = False
        self.query_timed_out = False
        self.transactions = 0
        self._owner = owner
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = write_nothing  # the transport's own while there is one: one call less
        self._previous_protocol: asyncio.BaseProtocol | None = None
        self._kept_alive: object = None
        self._fd = -1
        self._poll = select.poll()
        self.paused = False
        self._partial = b""  # the begin of a message that came while nobody had borrowed it

    def __repr__(self) -> str:
        return f"<ServerConnection pid {self.backend.pid} {self.state}>"

    @property
    def state(self) -> str:
        """One of the table above; `connecting` is the pool's, for servers that are not here yet."""
        if self.link is not None:
            return self.link.server_state
        return "checking" if self.checking else "cancelling" if self.cancelling else "idle"

    def take_over(
        self,
        transport: asyncio.Transport,
        previous_protocol: asyncio.BaseProtocol | None = None,
        kept_alive: object = None,
    ) -> None:
        """`kept_alive` must live as long as the connection: asyncpg closes what is collected."""
        self._transport, self._previous_protocol, self._kept_alive = transport, previous_protocol, kept_alive
        self.write = transport.write
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # Polled before it is lent again: the loop may not have read the end of file yet.
            self._fd = sock.fileno()
            self._poll.register(self._fd, select.POLLIN)
            if sock.family != socket.AF_UNIX:
                _enable_keepalive(sock)
        transport.set_protocol(self)

    def send_check(self) -> None:
        """Ask whether it still lives; the owner hears that it does, or that it was lost."""
        self.checking = True
        self.since = self._clock()
        self.write(CHECK_QUERY)

    def has_unread_input(self) -> bool:
        """Whether something came from a server that serves nobody: most likely its end."""
        return self._fd >= 0 and bool(self._poll.poll(0))

    def close(self) -> None:
        """Say goodbye. It counts as a connection until the server is gone, so that its successor is never one too
        many."""
        if not self.closed and self._transport is not None:
            # PostgreSQL closes the connection at a Terminate; if it does not, the connection is dropped.
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
        link = self.link
        if link is not None:
            link.pump(data)
        else:
            self._process_unborrowed(data)

    def _process_unborrowed(self, data: bytes) -> None:
        # Between two clients a server may report a changed setting (a reload of its configuration) or its own end.
        data = self._partial + data
        whole = 0
        for kind, body in wire.split_messages(data):
            whole += wire.HEADER_SIZE + len(body)
            if kind == wire.PARAMETER_STATUS:
                name, _, value = body[:-1].partition(b"\0")
                self.backend.record_reported(name, value)
            elif kind == wire.ERROR:
                self.closed = True  # it says why it is about to go
            elif kind == wire.READY_FOR_QUERY and self.checking:
                self.checking = False
                self._partial = b""
                self._owner.on_check_passed(self)
                return
        self._partial = data[whole:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        # asyncpg's own protocol still owns what it has made, and has to hear that the connection has ended.
        transport, self._transport, self.write = self._transport, None, write_nothing
        previous, self._previous_protocol = self._previous_protocol, None
        if previous is not None and transport is not None:
            previous.connection_lost(exc)
        self._owner.on_server_lost(self)
        self._kept_alive = None

    def eof_received(self) -> bool:
        return False

    # ── one side slower than the other ───────────────────────────────────────────────────────

    def pause_writing(self) -> None:
        if self.link is not None:
            self.link.pause_client()

    def resume_writing(self) -> None:
        if self.link is not None:
            self.link.resume_client()

    def pause_reading(self) -> None:
        if not self.paused and self._transport is not None:
            self.paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.paused and self._transport is not None:
            self.paused = False
            self._transport.resume_reading()


def write_nothing(_: bytes) -> None:
    """The `write` of a connection that is not there yet, or no more."""


def _enable_keepalive(sock: socket.socket) -> None:
    """Have the kernel notice a network that is gone, idle or with bytes under way (RFC 5482), if it can."""
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
