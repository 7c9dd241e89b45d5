"""The public listener: it accepts, watches over slow and silent clients, and drains."""

from __future__ import annotations

import asyncio
import heapq
import socket
from collections.abc import Callable
from dataclasses import dataclass

from proxy.errors import Refusal
from proxy.ingress.acceptor import Acceptor
from proxy.ingress.client_address import client_network
from proxy.ingress.client_connection import ClientConnection, RefusalWriter, RequestHandler
from proxy.ingress.connection_limits import DESCRIPTORS, PER_ADDRESS, TOTAL, ConnectionLimits
from proxy.ingress.request_errors import body_below_rate, request_too_slow
from proxy.policy.schema.server import Listen

EVICTABLE_AFTER = 1.0  # seconds after which an idle connection may be closed to make room for another
SILENT_EVICTABLE_AFTER = (
    0.25  # the same for one that has not said a thing yet: a client's first bytes come with its connection
)
EVICTION_INTERVAL = 0.1  # seconds between two looks for one, while somebody waits
FLUSH_SECONDS = 0.5  # seconds for the last bytes to a connection that is being cut


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """How long a client may take, in seconds. nginx waits 60 s in each of these places."""

    head: float = 20.0  # from a head's first byte to its last
    body: float = 60.0  # between two reads of a body, until the app answers
    rate: float = 10.0  # for a body to reach `listen.body.min_rate`
    stall: float = 60.0  # for a client that takes nothing of what it is sent
    place: float = 1.0  # in the backlog, for a place; who waits longer is told that there is none
    drain: float = 1.0  # for a request already under way on a connection that a drain finds idle
    sweep: float = 1.0  # between two looks


class Listener:
    """Connections by the hundred, one sweep a second over all of them instead of timers for each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handle: RequestHandler,
        refuse: RefusalWriter,
        *,
        listen: Listen,
        capacity: ConnectionLimits,
        legs: Callable[[], int] = lambda: 0,
        believes: Callable[[str], bool] = lambda peer: False,
        apology: Callable[[Refusal], bytes] = lambda refusal: b"",
        patience: ClientTimeouts = ClientTimeouts(),
    ) -> None:
        """`legs` counts the connections to the app, `believes` says of a peer whether it may name another client,
        `apology` what is written to one for whom there is not even a descriptor."""
        self._capacity = capacity
        self._legs = legs
        self._believes = believes
        self._apology = apology
        self.refusing = 0
        self._full_since = 0.0
        self._found_none = float("-inf")
        self._looking: asyncio.TimerHandle | None = None
        self._patience = patience
        self._loop = loop
        self._handle = handle
        self._refuse = refuse
        self.listen = listen
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self._acceptor: Acceptor | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        busy = sum(connection.busy for connection in self.connections)
        return f"<Server {len(self.connections)} connections, {busy} busy{', draining' if self.draining else ''}>"

    async def open(self, sock: socket.socket) -> None:
        """Accept on a bound socket from now on. Raises OSError where it cannot listen."""
        self._acceptor = Acceptor(
            self._loop,
            sock,
            self._accept,
            is_full=self._is_full,
            on_full=self._make_way,
            on_exhausted=lambda _: self.make_room(),
            apology=lambda: self._apology(self._capacity.refusal(DESCRIPTORS)),
        )
        self._sweeper = self._loop.call_later(self._patience.sweep, self._sweep)

    # ── accepting ────────────────────────────────────────────────────────────────────────────

    def _accept(self, sock: socket.socket, peer: str) -> None:
        capacity, connection = self._capacity, self._connection()
        self.connections.add(connection)
        if capacity.per_address is not None:
            address = client_network(peer)
            if capacity.take(address):
                connection.place = address
            elif not self._believes(peer):  # a proxy's first request says for whom it is
                self._turn_away(connection, capacity.refusal(PER_ADDRESS), sock, peer)
                return
        connection.open(sock, peer)

    def _connection(self) -> ClientConnection:
        connection = ClientConnection(
            self._loop, self._handle, self._refuse, self._lost, max_header=self.listen.max_header
        )
        connection.draining = self.draining
        return connection

    def _turn_away(self, connection: ClientConnection, refusal: Refusal, sock: socket.socket, peer: str) -> None:
        if self.refusing >= self._capacity.refusing:  # a flood of these: no word for each
            self.connections.discard(connection)
            sock.close()
            return
        self.refusing += 1
        self.connections.add(connection)
        connection.turn_away(refusal)
        connection.open(sock, peer)

    def _lost(self, connection: ClientConnection) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            if connection.place is not None:
                self._capacity.give(connection.place)
                connection.place = None
            if connection.turned_away:
                self.refusing -= 1
            if self._acceptor is not None and self._acceptor.paused:
                self._acceptor.resume()
        self._check_quiet()

    def _make_way(self) -> None:
        """Somebody waits, and all places are taken."""
        if not self._evict():
            self._full_since = self._loop.time()
            self._look_later()

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_later(EVICTION_INTERVAL, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        if self._acceptor is None or not self._acceptor.paused:
            return
        if not self._is_full():
            self._acceptor.resume()
        elif not self._evict():
            self._look_later()

    def _is_full(self) -> bool:
        there, capacity = len(self.connections) - self.refusing, self._capacity
        return there >= capacity.total or there + self._legs() >= capacity.room

    def make_room(self) -> bool:
        """No descriptor is left: close idle connections; whether there were any."""
        self._capacity.exhausted()
        return self._evict()

    def _evict(self) -> bool:
        """Close the connections that are idle the longest, a hundredth of all at once: looking for them takes time."""
        now = self._loop.time()
        if now - self._found_none < EVICTION_INTERVAL:
            return False
        settled, silent = now - EVICTABLE_AFTER, now - SILENT_EVICTABLE_AFTER
        idle = [c for c in self.connections if c.idle and c.idle_since < (settled if c.served else silent)]
        oldest = heapq.nsmallest(max(1, self._capacity.total // 100), idle, key=lambda found: found.idle_since)
        for connection in oldest:
            connection.close()
        self._capacity.evicted(len(oldest))
        if not oldest:
            self._found_none = now
        return bool(oldest)

    def _turn_away_waiting(self) -> None:
        """All places are taken, nobody is idle, and none has left for a while: who waits in the backlog is told."""
        acceptor = self._acceptor
        if acceptor is None or not acceptor.paused:
            return
        if not self._is_full() or self._loop.time() - self._full_since < self._patience.place:
            return
        try:
            while self.refusing < self._capacity.refusing and (found := acceptor.next()) is not None:
                self._turn_away(self._connection(), self._capacity.refusal(TOTAL), *found)
        except OSError:
            acceptor.resume()  # it knows what to do without descriptors

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def _check_quiet(self) -> None:
        if self._quiet is not None and not self._quiet.done() and self._is_quiet():
            self._quiet.set_result(None)

    def _is_quiet(self) -> bool:
        return not any(c.tunnel is None for c in self.connections)

    async def drain(self, patience: float) -> bool:
        """Accept nobody, finish what is in flight; tunnels are not waited for.

        True: everything was answered. False: after `patience` seconds some was not.
        """
        self.draining = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in self.connections:
            connection.begin_drain()
        await asyncio.sleep(0)  # one that was accepted in this turn of the loop has yet to be known
        if self._is_quiet():
            return True
        self._quiet = self._loop.create_future()
        done, _ = await asyncio.wait((self._quiet,), timeout=patience)
        self._quiet.cancel()
        return bool(done)

    async def cut(self) -> None:
        """End every connection that is no tunnel, once what was last written to it had a moment to go out."""
        deadline = self._loop.time() + FLUSH_SECONDS
        while not self._is_quiet() and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            if connection.tunnel is None:
                connection.abort()

    def close(self) -> None:
        """End every connection now."""
        if self._acceptor is not None:
            self._acceptor.close()
        for timer in (self._sweeper, self._looking):
            if timer is not None:
                timer.cancel()
        for connection in list(self.connections):
            if connection.tunnel is not None:
                connection.tunnel.abort()
            connection.abort()

    # ── patience ─────────────────────────────────────────────────────────────────────────────

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self.connections):
            if connection.tunnel is None:
                self._look_at(connection, now)
        self._turn_away_waiting()
        self._check_quiet()  # a connection that became a tunnel is waited for no longer
        self._sweeper = self._loop.call_later(self._patience.sweep, self._sweep)

    def _look_at(self, connection: ClientConnection, now: float) -> None:
        if connection.stalled_since:
            if connection.unsent < connection.stalled_bytes:
                connection.stalled_since, connection.stalled_bytes = now, connection.unsent
            elif now - connection.stalled_since > self._patience.stall:
                connection.abort()
        elif connection.busy:
            if connection.answered or connection.reading_held or connection.expecting or not connection.body_missing:
                connection.rate_since = 0.0
            elif now - connection.last_read > self._patience.body:
                connection.end_input(request_too_slow("body"))
            elif self.listen.body.min_rate is not None:
                self._look_at_rate(connection, now, self.listen.body.min_rate)
        elif connection.head_since:
            if now - connection.head_since > self._patience.head:
                connection.end_input(request_too_slow("head"))
        elif now - connection.idle_since > self._idle_patience(connection):
            connection.close()

    def _idle_patience(self, connection: ClientConnection) -> float:
        if self.draining:
            return self._patience.drain
        listen = self.listen
        return listen.keepalive if connection.served else min(listen.first_byte, listen.keepalive)

    def _look_at_rate(self, connection: ClientConnection, now: float, least: int) -> None:
        """Waiting for a body, and it is the client whom we wait for."""
        took = now - connection.rate_since
        if not connection.rate_since or took >= self._patience.rate:
            if connection.rate_since and connection.body_bytes - connection.rate_bytes < least * took:
                connection.end_input(body_below_rate(least))
            connection.rate_since, connection.rate_bytes = now, connection.body_bytes
