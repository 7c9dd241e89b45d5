"""The public listener: it accepts clients, ends slow and silent ones, makes room when it is full, and drains.

One sweep a second looks at all connections. Timers for each would cost more than the whole sweep at some hundred
connections, and a timeout that comes up to a second late is none the worse.
"""

from __future__ import annotations

import asyncio
import heapq
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.errors import Refusal
from proxy.http.acceptor import Acceptor
from proxy.http.client_connection import ClientConnection, RefusalWriter
from proxy.http.known_heads import KnownHeads
from proxy.http.request_errors import body_below_rate, request_too_slow
from proxy.ingress.client_address import client_network
from proxy.ingress.connection_limits import DESCRIPTORS, PER_ADDRESS, TOTAL, ConnectionLimits
from proxy.ingress.exchange import Exchange
from proxy.policy.schema import Listen

EVICTABLE_AFTER = 1.0  # seconds after which an idle connection may be closed to make room for another
# The same for one that has not sent a byte yet: a client's first bytes come right behind its connection.
SILENT_EVICTABLE_AFTER = 0.25
EVICTION_INTERVAL = 0.1  # seconds between two searches for idle connections, while somebody waits
FLUSH_SECONDS = 0.5  # for the last bytes to a connection that is about to be aborted


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """How long a client may take, in seconds. nginx waits 60 s for each of head, body and response."""

    head: float = 20.0  # from a head's first byte to its last
    body: float = 60.0  # between two reads of a body, until the app answers
    rate_window: float = 10.0  # for a body to reach `listen.body.min_rate`
    stall: float = 60.0  # for a client that reads nothing of what it is sent
    backlog: float = 1.0  # in the kernel's backlog; who waits longer for a place is told that there is none
    drain: float = 1.0  # for a request that may be on its way when a drain finds its connection idle
    sweep: float = 1.0  # between two sweeps


class Listener:
    """The clients' connections, from accepting to closing them.

    - `listen`: the policy's `listen`, which a reload replaces.
    - `connections`: all that are open; `rejecting` of them only get a refusal, and do not count against the limits.
    - `known_heads`: heads of requests that came before, and what follows from them under the rules in force.
    - `draining`: nobody is accepted any more, and each connection closes after its present request.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handle: Callable[[ClientConnection, Exchange], Awaitable[bool]],
        refuse: RefusalWriter,
        *,
        listen: Listen,
        limits: ConnectionLimits,
        app_descriptors: Callable[[], int] = lambda: 0,
        is_trusted_proxy: Callable[[str], bool] = lambda peer: False,
        overload_response: Callable[[Refusal], bytes] = lambda refusal: b"",
        timeouts: ClientTimeouts = ClientTimeouts(),
    ) -> None:
        """`app_descriptors` counts the connections to the app, which share the process's descriptors.
        `is_trusted_proxy` says whether a peer may name another client. `overload_response` renders what is sent to a
        client for which there is not even a descriptor."""
        self._limits = limits
        self._app_descriptors = app_descriptors
        self._is_trusted_proxy = is_trusted_proxy
        self._overload_response = overload_response
        self.rejecting = 0
        self._full_since = 0.0
        self._found_none_at = float("-inf")
        self._eviction_timer: asyncio.TimerHandle | None = None
        self._timeouts = timeouts
        self._loop = loop
        self._handle = handle
        self._refuse = refuse
        self.listen = listen
        self.connections: set[ClientConnection] = set()
        self.known_heads = KnownHeads()
        self.draining = False
        self._acceptor: Acceptor | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        busy = sum(connection.busy for connection in self.connections)
        return f"<Server {len(self.connections)} connections, {busy} busy{', draining' if self.draining else ''}>"

    async def open(self, sock: socket.socket) -> None:
        """Accept clients on a bound socket. Raises OSError if it cannot listen."""
        self._acceptor = Acceptor(
            self._loop,
            sock,
            self._on_accept,
            is_full=self._is_full,
            on_full=self._on_full,
            on_exhausted=lambda _: self.free_descriptors(),
            overload_response=lambda: self._overload_response(self._limits.refusal(DESCRIPTORS)),
        )
        self._sweeper = self._loop.call_later(self._timeouts.sweep, self._sweep)

    # ── accepting ────────────────────────────────────────────────────────────────────────────

    def _on_accept(self, sock: socket.socket, peer: str) -> None:
        limits, connection = self._limits, self._make_connection()
        # Known before its transport exists: the limits count it, and a drain waits for it.
        self.connections.add(connection)
        if limits.per_address is not None:
            address = client_network(peer)
            if limits.acquire(address):
                connection.counted_address = address
            elif not self._is_trusted_proxy(peer):  # a proxy's requests are counted by the clients that they name
                self._reject(connection, limits.refusal(PER_ADDRESS), sock, peer)
                return
        connection.open(sock, peer)

    def _make_connection(self) -> ClientConnection:
        connection = ClientConnection(
            self._loop,
            Exchange,
            self._handle,
            self._refuse,
            self._on_connection_lost,
            max_header=self.listen.max_header,
            known_heads=self.known_heads,
        )
        connection.draining = self.draining
        return connection

    def _reject(self, connection: ClientConnection, refusal: Refusal, sock: socket.socket, peer: str) -> None:
        if self.rejecting >= self._limits.max_rejecting:  # in a flood of them not each is answered
            self.connections.discard(connection)
            sock.close()
            return
        self.rejecting += 1
        self.connections.add(connection)
        connection.reject(refusal)
        connection.open(sock, peer)

    def _on_connection_lost(self, connection: ClientConnection) -> None:
        # It may be reported twice, and counts once.
        if connection in self.connections:
            self.connections.discard(connection)
            if connection.counted_address is not None:
                self._limits.release(connection.counted_address)
                connection.counted_address = None
            if connection.rejected:
                self.rejecting -= 1
            # A place is free: whoever waits in the backlog gets it.
            if self._acceptor is not None and self._acceptor.paused:
                self._acceptor.resume()
        self._check_drained()

    def _on_full(self) -> None:
        """A client waits, and all places are taken: close idle connections, now or as soon as there are any."""
        if not self._evict_idle():
            self._full_since = self._loop.time()
            self._schedule_eviction()

    def _schedule_eviction(self) -> None:
        if self._eviction_timer is None:
            self._eviction_timer = self._loop.call_later(EVICTION_INTERVAL, self._retry_eviction)

    def _retry_eviction(self) -> None:
        self._eviction_timer = None
        if self._acceptor is None or not self._acceptor.paused:
            return
        if not self._is_full():
            self._acceptor.resume()
        elif not self._evict_idle():
            self._schedule_eviction()

    def _is_full(self) -> bool:
        there, limits = len(self.connections) - self.rejecting, self._limits
        return there >= limits.total or there + self._app_descriptors() >= limits.descriptor_room

    def free_descriptors(self) -> bool:
        """Called if no descriptor is left: close idle connections. True if there were any."""
        self._limits.note_exhaustion()
        return self._evict_idle()

    def _evict_idle(self) -> bool:
        """Close the connections that have been idle for the longest time. True if there were any.

        A hundredth of all are closed at once, and a search that found none is not repeated at once, since each search
        looks at every connection.
        """
        now = self._loop.time()
        if now - self._found_none_at < EVICTION_INTERVAL:
            return False
        # A new connection's first request is on its way, so it is spared for a moment.
        settled, silent = now - EVICTABLE_AFTER, now - SILENT_EVICTABLE_AFTER
        idle = [c for c in self.connections if c.is_idle and c.idle_since < (settled if c.has_served else silent)]
        oldest = heapq.nsmallest(max(1, self._limits.total // 100), idle, key=lambda found: found.idle_since)
        for connection in oldest:
            connection.close()
        self._limits.count_evicted(len(oldest))
        if not oldest:
            self._found_none_at = now
        return bool(oldest)

    def _reject_backlog(self) -> None:
        """Answer 503 to the clients in the backlog if all places have been taken for `ClientTimeouts.backlog`."""
        acceptor = self._acceptor
        if acceptor is None or not acceptor.paused:
            return
        if not self._is_full() or self._loop.time() - self._full_since < self._timeouts.backlog:
            return
        try:
            while self.rejecting < self._limits.max_rejecting and (found := acceptor.accept_one()) is not None:
                self._reject(self._make_connection(), self._limits.refusal(TOTAL), *found)
        except OSError:
            acceptor.resume()  # it handles the lack of descriptors

    # ── draining and closing ──────────────────────────────────────────────────────────────────────────────

    def _check_drained(self) -> None:
        if self._drained is not None and not self._drained.done() and self._is_drained():
            self._drained.set_result(None)

    def _is_drained(self) -> bool:
        return not any(c.tunnel is None for c in self.connections)

    async def drain(self, timeout: float) -> bool:
        """Accept nobody any more, and finish what is in flight. Tunnels are not waited for.

        True if everything was answered, False if something was not within `timeout` seconds.
        """
        self.draining = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in self.connections:
            # Idle connections are closed by the sweep, after a moment for a request that may be on its way.
            connection.begin_drain()
        await asyncio.sleep(0)  # a connection that was accepted in this iteration of the loop is not known before
        if self._is_drained():
            return True
        self._drained = self._loop.create_future()
        done, _ = await asyncio.wait((self._drained,), timeout=timeout)
        self._drained.cancel()
        return bool(done)

    async def abort_requests(self) -> None:
        """Abort every connection but tunnels, after a moment for what was last written to go out."""
        deadline = self._loop.time() + FLUSH_SECONDS
        while not self._is_drained() and self._loop.time() < deadline:
            # Polled: a transport does not tell when the last of its bytes has gone out.
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            if connection.tunnel is None:
                connection.abort()

    def close(self) -> None:
        """Abort every connection now, tunnels included."""
        if self._acceptor is not None:
            self._acceptor.close()
        for timer in (self._sweeper, self._eviction_timer):
            if timer is not None:
                timer.cancel()
        for connection in list(self.connections):
            if connection.tunnel is not None:
                connection.tunnel.abort()
            connection.abort()

    # ── the sweep ─────────────────────────────────────────────────────────────────────────────

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self.connections):
            if connection.tunnel is None:
                self._check_timeouts(connection, now)
        self._reject_backlog()
        self._check_drained()  # a drain does not wait for a connection that has become a tunnel
        self._sweeper = self._loop.call_later(self._timeouts.sweep, self._sweep)

    def _check_timeouts(self, connection: ClientConnection, now: float) -> None:
        """End a connection that has used up its time in the state in which it is.

            stalled        the client does not read          abort
            busy           its body does not come            408
            in a head      the head does not come            408
            idle           no request comes                  close

        A busy connection is only timed while it is the client that the gateway waits for: not while the response is
        sent, not while reading is paused for the app's sake, not before a 100 was sent to one that expects it.
        """
        if connection.stalled_since:
            # The client has read something: its time starts again.
            if connection.unsent_bytes < connection.stalled_bytes:
                connection.stalled_since, connection.stalled_bytes = now, connection.unsent_bytes
            elif now - connection.stalled_since > self._timeouts.stall:
                connection.abort()
        elif connection.busy:
            # It is not the client that is waited for: see above.
            if (
                connection.response_started
                or connection.reading_paused
                or connection.awaits_continue
                or not connection.body_incomplete
            ):
                connection.rate_measured_since = 0.0
            elif now - connection.last_read > self._timeouts.body:
                connection.reject_input(request_too_slow("body"))
            elif self.listen.body.min_rate is not None:
                self._check_body_rate(connection, now, self.listen.body.min_rate)
        elif connection.head_started_at:
            if now - connection.head_started_at > self._timeouts.head:
                connection.reject_input(request_too_slow("head"))
        elif now - connection.idle_since > self._idle_timeout(connection):
            connection.close()

    def _idle_timeout(self, connection: ClientConnection) -> float:
        if self.draining:
            return self._timeouts.drain
        listen = self.listen
        return listen.keepalive if connection.has_served else min(listen.first_byte, listen.keepalive)

    def _check_body_rate(self, connection: ClientConnection, now: float, min_rate: int) -> None:
        """Compare the bytes of a body with `listen.body.min_rate`, in windows of `ClientTimeouts.rate_window`."""
        took = now - connection.rate_measured_since
        if not connection.rate_measured_since or took >= self._timeouts.rate_window:
            # The first window only starts the measurement.
            if connection.rate_measured_since and connection.body_bytes - connection.rate_start_bytes < min_rate * took:
                connection.reject_input(body_below_rate(min_rate))
            connection.rate_measured_since, connection.rate_start_bytes = now, connection.body_bytes
