"""The public listener: it accepts, watches over slow and silent clients, and drains."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from proxy.ingress.badinput import below_rate, too_slow
from proxy.ingress.connection import Connection, Handler, Refuser
from proxy.policy.model import Listen

BACKLOG = 1024
FLUSH = 0.5  # seconds for the last bytes to a connection that is being cut


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds. nginx waits 60 s in each of these places."""

    head: float = 20.0  # from a head's first byte to its last
    body: float = 60.0  # between two reads of a body, until the app answers
    rate: float = 10.0  # for a body to reach `listen.body.min_rate`
    stall: float = 60.0  # for a client that takes nothing of what it is sent
    drain: float = 1.0  # for a request already under way on a connection that a drain finds idle
    sweep: float = 1.0  # between two looks


class Server:
    """Connections by the hundred, one sweep a second over all of them instead of timers for each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handle: Handler,
        refuse: Refuser,
        *,
        listen: Listen,
        patience: Patience = Patience(),
    ) -> None:
        self._patience = patience
        self._loop = loop
        self._handle = handle
        self._refuse = refuse
        self.listen = listen
        self.connections: set[Connection] = set()
        self.draining = False
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        busy = sum(connection.busy for connection in self.connections)
        return f"<Server {len(self.connections)} connections, {busy} busy{', draining' if self.draining else ''}>"

    async def open(self, sock: socket.socket) -> None:
        """Accept on a bound socket from now on. Raises OSError where it cannot listen."""
        self._listener = await self._loop.create_server(self._accept, sock=sock, backlog=BACKLOG)
        self._sweeper = self._loop.call_later(self._patience.sweep, self._sweep)

    def _accept(self) -> Connection:
        connection = Connection(self._loop, self._handle, self._refuse, self._lost, max_header=self.listen.max_header)
        connection.draining = self.draining
        self.connections.add(connection)
        return connection

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._check_quiet()

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
        if self._listener is not None:
            self._listener.close()
        for connection in self.connections:
            connection.begin_drain()
        if self._is_quiet():
            return True
        self._quiet = self._loop.create_future()
        done, _ = await asyncio.wait((self._quiet,), timeout=patience)
        self._quiet.cancel()
        return bool(done)

    async def cut(self) -> None:
        """End every connection that is no tunnel, once what was last written to it had a moment to go out."""
        deadline = self._loop.time() + FLUSH
        while not self._is_quiet() and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            if connection.tunnel is None:
                connection.abort()

    def close(self) -> None:
        """End every connection now."""
        if self._listener is not None:
            self._listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
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
        self._check_quiet()  # a connection that became a tunnel is waited for no longer
        self._sweeper = self._loop.call_later(self._patience.sweep, self._sweep)

    def _look_at(self, connection: Connection, now: float) -> None:
        if connection.stalled_since:
            if connection.unsent < connection.stalled_bytes:
                connection.stalled_since, connection.stalled_bytes = now, connection.unsent
            elif now - connection.stalled_since > self._patience.stall:
                connection.abort()
        elif connection.busy:
            if connection.answered or connection.reading_held or not connection.body_missing:
                connection.rate_since = 0.0
            elif now - connection.last_read > self._patience.body:
                connection.time_out(too_slow("body"))
            elif self.listen.body.min_rate is not None:
                self._look_at_rate(connection, now, self.listen.body.min_rate)
        elif connection.head_since:
            if now - connection.head_since > self._patience.head:
                connection.time_out(too_slow("head"))
        elif now - connection.idle_since > self._idle_patience(connection):
            connection.close()

    def _idle_patience(self, connection: Connection) -> float:
        if self.draining:
            return self._patience.drain
        listen = self.listen
        return listen.keepalive if connection.served else min(listen.first_byte, listen.keepalive)

    def _look_at_rate(self, connection: Connection, now: float, least: int) -> None:
        """Waiting for a body, and it is the client whom we wait for."""
        took = now - connection.rate_since
        if not connection.rate_since or took >= self._patience.rate:
            if connection.rate_since and connection.body_bytes - connection.rate_bytes < least * took:
                connection.time_out(below_rate(least))
            connection.rate_since, connection.rate_bytes = now, connection.body_bytes
