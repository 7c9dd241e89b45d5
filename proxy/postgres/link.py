"""A client, its session and the server that it has borrowed, bound together: the life of its transactions.

A client borrows a server with the first message that needs one, and gives it back with the ReadyForQuery that says
that no transaction is open and nothing is owed (PostgreSQL documentation, 54.2 Message Flow). What either side gets,
and when the server may go, is decided by the session, which does no I/O; what it decided is carried out here.

=========  =============================================  =============================================================
state      meaning                                        goes on to
=========  =============================================  =============================================================
idle       no server, nothing to send                     waiting (none is free), active (one was)
waiting    for a server, or for a slot to pin one         active (it was granted), idle (refused, or cancelled)
active     the server owes replies                        idle_in_transaction, pinned, idle (given back)
idle_in_   a transaction is open, and nothing is owed     active
pinned     no transaction, but its state is on no other   active
           server, or `postgres.mode` is session
leaving    the client has gone in the middle; its server  (the server is idle, or was closed)
           is made clean before it is given back
=========  =============================================  =============================================================

From every state the client may go (`on_client_left`) and the server may be lost (`on_server_lost`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from proxy.postgres import pg_errors, wire
from proxy.postgres.auth.startup import StartupMessage
from proxy.postgres.client import ClientConnection
from proxy.postgres.frontend import ProtocolError
from proxy.postgres.pool import Pool
from proxy.postgres.server import ServerConnection
from proxy.postgres.session import NOTHING_TO_SET, Session
from proxy.postgres.statement_registry import StatementRegistry
from proxy.postgres.wire import HEADER_SIZE, STATUS_IDLE, read_header

MAX_BACKLOG = 256 * 1024  # bytes that are read from a client which has to wait; the rest waits in its socket
CANCEL_INTERVAL = 0.25  # seconds from one cancel of what a client left behind to the next
GOODBYE_GRACE = 3.0  # seconds until what was sent before a goodbye is cancelled
CLEANUP_SECONDS = 2.0  # that a server has to be rid of a client which left in the middle

_SERVER_KINDS = frozenset(b"QPB")  # Query, Parse and Bind always need a server
_DISCARDED_KINDS = frozenset((wire.FLUSH, wire.COPY_DATA, wire.COPY_DONE, wire.COPY_FAIL))
_READY_FOR_QUERY = wire.ready_for_query()


class Link:
    """`client` is None once it has left, `server` while none is borrowed; `waiting` in the pool's queue, `since` when
    it began to."""

    __slots__ = (
        "_backlogged",
        "_now",
        "_pending",
        "_pool",
        "_serverless",
        "_welcome",
        "application_name",
        "client",
        "pool_key",
        "server",
        "session",
        "since",
        "terminated",
        "waiting",
    )

    def __init__(
        self,
        client: ClientConnection,
        startup: StartupMessage,
        shown: Mapping[bytes, bytes],
        registry: StatementRegistry,
        pool: Pool,
        *,
        keeps_server: bool = False,
    ) -> None:
        self.client: ClientConnection | None = client
        self.server: ServerConnection | None = None
        self.session = Session(
            client.number,
            startup,
            shown,
            registry,
            request_pin=partial(pool.request_pin, self),
            release_pin=pool.release_pin,
            keeps_server=keeps_server,
        )
        self.pool_key = startup.pool_key
        self.application_name = startup.application_name
        self.waiting = False
        self.since = client.since
        self.terminated = False  # the client has said goodbye
        self._pool = pool
        self._now = pool.now
        self._pending = b""  # messages of the client that no server has
        self._serverless = ServerlessReplies()
        self._welcome: Callable[[int], bytes] | None = None
        self._backlogged = False

    def __repr__(self) -> str:
        return f"<Link {self.session.number} {self.server_state if self.client is None else self.client_state}>"

    @property
    def client_state(self) -> str:
        if self.waiting or self.session.frontend.awaits_pin:
            return "waiting"
        return "idle" if self.server is None else self.server.state

    @property
    def server_state(self) -> str:
        if self.client is None:
            return "leaving"
        outstanding = self.session.outstanding
        if outstanding.queue:
            return "active"
        if outstanding.idle and outstanding.status == STATUS_IDLE:
            return "pinned"
        return "idle_in_transaction"

    @property
    def client_number(self) -> int | None:
        return self.client.number if self.client is not None else None

    @property
    def route(self) -> str:
        return self.client.route if self.client is not None else ""

    # ── the life of a transaction ────────────────────────────────────────────────────────────

    # It has two halves, one for each side from which something may come. Both ask first whether it is what nearly all
    # send: of 1,186 bytecodes for a `select 1` and its answer, which were 5.6 µs, 774 are left, which are 4.1.

    def on_client_data(self, data: bytes = b"") -> None:
        """The client has sent `data`, or what it sent before (`_pending`) may go on: a server is borrowed with the
        first message, and gets what the session makes of it all."""
        data = self._pending = self._pending + data if self._pending else data
        session = self.session
        frontend = session.frontend
        try:
            while data and not self.waiting and not frontend.awaits_pin:
                size = len(data)
                kind, length = read_header(data) if size >= HEADER_SIZE else (data[0], size)
                server = self.server
                if server is None:
                    # A Sync or a Flush between transactions needs no server, and would take one from somebody else.
                    if kind not in _SERVER_KINDS or self._serverless.busy:
                        if not self._answer_alone():
                            break
                        data = self._pending
                        length = size = len(data)  # what is left is read by the session
                    if length >= size and not frontend.can_forward(data):
                        break
                    server = self._pool.acquire(self)
                    if server is None:
                        break
                    self._attach(server)
                elif not session.outstanding.queue:
                    server.since = self._now()
                if frontend.blocked:  # its settings are being restored there
                    break
                # The usual request first: nothing else is asked about it.
                if length < size and (requests := frontend.forward_plain(data, kind, length)):
                    self._pending = b""
                    server.write(requests)
                    break
                requests = session.process_requests(data)
                data = self._pending = frontend.remainder
                if requests:
                    server.write(requests)
                # What is answered without the server is written now if nothing of the server's comes before it.
                if frontend.unsynced and (local := session.outstanding.pop_local_replies()):
                    self._write_client(local)
                if frontend.terminated:
                    self._end_terminated()
                    return
                if session.needs_attention:
                    self._settle(server)
                if self.server is not None:  # the transaction goes on when its server has answered
                    break
        except ProtocolError as error:
            self.end_client(pg_errors.protocol_violation(str(error)))
            return
        if self._backlogged or len(self._pending) > MAX_BACKLOG:
            self._limit_backlog()

    def pump(self, replies: bytes = b"") -> None:
        """The server has sent `replies`, or something else has happened that was waited for: the client gets what the
        session makes of them, the server is given back if the session says so, and what the client has sent beyond
        that goes on, or begins the next transaction."""
        server = self.server
        if replies and server is not None:
            session, client = self.session, self.client
            # The usual answer first: nothing else is asked about it.
            if session.ordinary and client is not None and (status := session.outstanding.pass_plain_answer(replies)):
                client.write(replies)
                if status == STATUS_IDLE:
                    self._give_back(server, "ok")
                else:
                    server.since = self._now()
            else:
                try:
                    shown = session.process_replies(replies)
                except ValueError:
                    server.abort()
                    return
                if shown and client is not None:
                    client.write(shown)
                # Only after the replies are written: what is settled may end the client or lend the server to another.
                if session.needs_attention:
                    self._settle(server)
                elif not session.outstanding.queue:
                    server.since = self._now()
        if self._pending or self._backlogged:
            self.on_client_data()

    def _answer_alone(self) -> bool:
        """Answer what needs no server; whether there is something left that does. Raises ProtocolError."""
        replies, self._pending = self._serverless.answer(self._pending)
        if replies:
            self._write_client(replies)
        if self._serverless.terminated:
            self._end_terminated()
            return False
        return bool(self._pending)

    def _attach(self, server: ServerConnection) -> None:
        client = self.client
        assert client is not None
        # Bound before the session says what to send: a reply may only ever come to who is bound.
        self.server, server.link = server, self
        setting = self.session.attach_server(server.backend, always=self._pool.resets_always)
        if setting is not NOTHING_TO_SET:
            ahead, shown = setting
            if shown:
                client.write(shown)
            if ahead:
                server.write(ahead)
        if client.is_slow:
            server.pause_reading()

    def _settle(self, server: ServerConnection) -> None:
        """Carry out what the session has decided about its server."""
        session = self.session
        if injected := session.pop_injected():
            server.write(injected)
        # A server that is in nobody knows what state serves nobody again.
        if session.fatal_error:
            server.close()
            self.end_client(session.fatal_error)
        elif session.releasable:
            self._give_back(server, "abandoned" if self.client is None else "error" if session.failed else "ok")

    def _give_back(self, server: ServerConnection, outcome: str) -> None:
        client, pool = self.client, self._pool
        # Unbound on both sides before the pool hears of it: it may lend the server to the next waiter right away.
        self.session.detach_server()
        self.server = server.link = None
        if client is not None and client.paused_by_server:
            client.resume_reading()
        pool.release(server, outcome)
        if pool.draining:
            self.end_client(pg_errors.POOL_DRAINED)

    def _limit_backlog(self) -> None:
        """Read no more from a client that is far ahead of its server."""
        client = self.client
        if client is None:
            return
        # While messages flow, `_pending` is at most one message that is not whole; only a wait lets it grow.
        full = len(self._pending) > MAX_BACKLOG and (self.waiting or self.session.blocked)
        if full is not self._backlogged:
            self._backlogged = full
            client.limit_backlog(full=full)

    # ── waiting ──────────────────────────────────────────────────────────────────────────────

    def begin(self, welcome: Callable[[int], bytes], *, with_server: bool) -> None:
        """The client is in: `welcome` makes what it is told, from the number of the process that serves it. It is told
        at once, or `with_server`, when it has the server that it keeps (`postgres.mode: session`): so the number is
        that one's own."""
        client = self.client
        assert client is not None
        client.link = self
        self._pending = client.pop_early_data()
        self._welcome = welcome
        server = None
        if with_server:
            server = self._pool.acquire(self)
            if server is None:
                return  # the welcome follows when it is granted, or refused
        self._let_in(server)

    def _let_in(self, server: ServerConnection | None) -> None:
        """Tell the client that it is in; a server that it waited for may not have been had."""
        # Without a server it is in all the same: its first query waits anew, and gets the error if there still is none.
        welcome, self._welcome = self._welcome, None
        assert welcome is not None
        if server is not None:
            self.session.announced_pid = server.backend.pid
        self._write_client(welcome(self.session.announced_pid))
        if server is not None:
            self._attach(server)
        self.pump()

    def on_server_granted(self, server: ServerConnection) -> None:
        if self._welcome is not None:
            self._let_in(server)
        else:
            self._attach(server)
            self.on_client_data()

    def on_server_refused(self, error: bytes) -> None:
        """It has waited in vain; it may go on, since it is in no transaction."""
        if self._welcome is not None:
            self._let_in(None)
            return
        try:
            replies, self._pending = self._serverless.refuse(self._pending, error)
        except ProtocolError as wrong:
            self.end_client(pg_errors.protocol_violation(str(wrong)))
            return
        self._write_client(replies)
        self._limit_backlog()

    def on_pin_decided(self, *, granted: bool) -> None:
        """What a text that pins its connection has waited for."""
        frontend = self.session.frontend
        frontend.resolve_pin(b"" if granted else pg_errors.pin_limit_reached(frontend.wanted_pins))
        self.pump()

    def cancel_work(self) -> None:
        """The client has asked for it, or the request that it works for was abandoned."""
        if self.client_state == "waiting":
            self._pool.forget_waiter(self)
            if self.session.frontend.awaits_pin:
                self.session.frontend.resolve_pin(pg_errors.CANCELED_BY_CLIENT)
                self.pump()
            else:
                self.on_server_refused(pg_errors.CANCELED_BY_CLIENT)
        # A query of ours is not cancelled: its answer is what the next client relies on.
        elif self.server is not None and self.session.has_client_work:
            self._pool.cancel_query(self.server)

    def replace_cancel_error(self, error: bytes) -> None:
        """A cancel of ours is about to arrive: the client gets `error` in place of the server's."""
        self.session.outstanding.cancel_error = error

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def _write_client(self, data: bytes) -> None:
        if self.client is not None:
            self.client.write(data)

    def end_client(self, error: bytes = b"") -> None:
        """Hang up on the client, after a last message; it has left then."""
        if self.client is not None:
            self.client.end(error)

    def _end_terminated(self) -> None:
        self.terminated = True
        self.end_client()

    def on_client_left(self) -> None:
        """Its server is to be clean before it serves another. What a client that said goodbye had sent before is done,
        as PostgreSQL would, if that does not take long; what another left in the middle is cancelled."""
        # The link outlives its client until the server is clean: replies still come for the session.
        self.client = None
        self._pending = b""
        self._pool.forget_waiter(self)
        server, session = self.server, self.session
        if server is None:
            session.release_pins()  # it may have had a slot, and waited for a server
            return
        server.resume_reading()
        cleanup = session.begin_cleanup()
        if cleanup is None:
            server.close()
            return
        server.write(cleanup)
        if session.releasable:
            self._settle(server)
        else:
            self._cancel_leftover(-GOODBYE_GRACE if self.terminated else 0.0)

    def _cancel_leftover(self, elapsed: float) -> None:
        """Cancel what the client left behind, again if the cancel came before the query did; in the end the connection
        is dropped without a word."""
        server = self.server
        if server is None or server.closed:
            return
        if elapsed >= CLEANUP_SECONDS:
            server.abort()
            return
        # A cancel under way is waited for; one that came before its query has done nothing, so it is sent again.
        if elapsed >= 0 and self.session.has_client_work and not server.cancelling:
            self._pool.cancel_query(server)
        asyncio.get_running_loop().call_later(CANCEL_INTERVAL, self._cancel_leftover, elapsed + CANCEL_INTERVAL)

    def on_server_lost(self) -> str:
        """How the transaction has ended with it; the client ends too, since its state is gone."""
        session, client = self.session, self.client
        # Unbound first: ending the client must not try to clean a server that is gone.
        self.server = None
        mid_message = session.outstanding.mid_message
        session.release_pins()
        session.detach_server()
        if client is None:
            return "abandoned"
        # Whoever has had the server's last words, or is in the middle of a message, gets none of ours.
        client.end(b"" if session.outstanding.server_ended or mid_message else pg_errors.SERVER_CLOSED)
        return "error"

    # ── one side slower than the other ───────────────────────────────────────────────────────

    def pause_client(self) -> None:
        if self.client is not None:
            self.client.pause_reading()

    def resume_client(self) -> None:
        if self.client is not None:
            self.client.resume_reading()

    def pause_server(self) -> None:
        if self.server is not None:
            self.server.pause_reading()

    def resume_server(self) -> None:
        if self.server is not None:
            self.server.resume_reading()


class ServerlessReplies:
    """What a client gets while it has no server. A Sync is answered; a Flush, and what is left of a COPY that failed,
    is dropped. After a refusal the rest of an extended batch is dropped too, up to its Sync, which alone is answered
    by ReadyForQuery (as PostgreSQL does after an error). `busy`: something of before has not come to its end;
    `terminated`: the client has said goodbye."""

    __slots__ = ("_bytes_to_drop", "_reply_after_drop", "_to_sync", "busy", "terminated")

    def __init__(self) -> None:
        self.busy = False
        self._bytes_to_drop = 0  # of a message whose begin was dropped
        self._reply_after_drop = b""
        self._to_sync = False
        self.terminated = False

    def answer(self, data: bytes) -> tuple[bytes, bytes]:
        """What the client gets, and what of `data` needs a server. Raises ProtocolError."""
        return self.refuse(data, b"")

    def refuse(self, data: bytes, error: bytes) -> tuple[bytes, bytes]:
        """The same if there is no server to be had: each message, or batch of them, gets the error."""
        found = self._process_messages(data, error)
        self.busy = self._to_sync or self._bytes_to_drop > 0
        return found

    def _process_messages(self, data: bytes, error: bytes) -> tuple[bytes, bytes]:
        replies = b""
        pos, size = 0, len(data)
        if self._bytes_to_drop:
            pos = min(self._bytes_to_drop, size)
            self._bytes_to_drop -= pos
            if not self._bytes_to_drop:
                replies, self._reply_after_drop = self._reply_after_drop, b""
        while pos + HEADER_SIZE <= size:
            kind, length = read_header(data, pos)
            if length < 4 or kind not in wire.FRONTEND_KINDS:
                raise ProtocolError(f"invalid frontend message type {kind}")
            reply = b""
            if kind == wire.TERMINATE:
                self.terminated = True
                break
            if kind == wire.SYNC:
                self._to_sync = False
                reply = _READY_FOR_QUERY
            elif kind not in _DISCARDED_KINDS and not self._to_sync:
                if not error:
                    break
                self._to_sync = kind not in (wire.QUERY, wire.FUNCTION_CALL)
                reply = error if self._to_sync else error + _READY_FOR_QUERY
            pos += 1 + length
            if pos > size:
                self._bytes_to_drop, self._reply_after_drop = pos - size, reply
                return replies, b""
            replies += reply
        return replies, data[pos:]
