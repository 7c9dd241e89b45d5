"""The database connections, and who gets one: the last one used first, the client that waits longest first."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING

from proxy.observe.emit import Emit
from proxy.policy.schema.stores import Postgres
from proxy.postgres import wire
from proxy.postgres.auth.startup import Key
from proxy.postgres.connector import Connected
from proxy.postgres.janitor import Upkeep
from proxy.postgres.launcher import Supply
from proxy.postgres.pins import Slots
from proxy.postgres.server import Server
from proxy.units import format_duration

if TYPE_CHECKING:
    from proxy.postgres.client import Client
    from proxy.postgres.session import Session

AGAIN = 0.25  # seconds from one cancel of what a client left behind to the next
POLITE = 3.0  # seconds until what was sent before a goodbye is cancelled
LEAVE = 2.0  # seconds that a server has to be rid of a client which left in the middle


class Pool:
    """`waited` is called with how long a client waited."""

    def __init__(
        self,
        policy: Postgres,
        connect: Callable[[Key, str], Awaitable[Connected]],
        *,
        emit: Emit,
        waited: Callable[[float], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock if clock is not None else self._loop.time
        self.emit = emit
        self._waited = waited
        self.policy = policy
        self.servers: dict[Server, Connected] = {}
        self.idle: list[Server] = []
        self.waiters: deque[Client] = deque()
        self.outcomes: Counter[str] = Counter(ok=0, error=0, abandoned=0, refused=0)
        self.draining = False
        self.guests: Counter[str] = Counter()  # clients of other databases than the policy's, by database
        self._told = float("-inf")  # when it was last said that there are too few
        self.supply = Supply(self, connect)
        self.slots = Slots(self)
        self.upkeep = Upkeep(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Pool {len(self.servers)} of {self.policy.pool.max}, {len(self.idle)} idle, {self.slots.held} pinned,"
            f" {len(self.waiters)} waiting>"
        )

    def now(self) -> float:
        return self._clock()

    def longest_wait(self) -> float:
        """Seconds that the client at the head of the queue has waited."""
        return self._clock() - self.waiters[0].since if self.waiters else 0.0

    # ── borrowing ────────────────────────────────────────────────────────────────────────────

    def take(self, client: Client) -> Server | None:
        """A server at once, or None: the client waits, and is `granted` one or `refused`."""
        key = client.kind
        if not self.waiters:
            server = self._idle(key)
            if server is not None:
                self._waited(0.0)
                return server
        client.waiting = True
        client.since = self._clock()
        self.waiters.append(client)
        if self._timer is None:
            self._timer = self._loop.call_later(self.policy.pool.wait, self._expire)
        if self.idle or len(self.servers) < self.policy.pool.max:
            self.supply.fill()
        return None

    def room(self) -> bool:
        """Whether a connection is free, or may be opened."""
        return not self.waiters and (
            bool(self.idle) or len(self.servers) + len(self.supply.opening) < self.policy.pool.max
        )

    def _idle(self, key: Key) -> Server | None:
        now, idle = self._clock(), self.idle
        for index in range(len(idle) - 1, -1, -1):
            server = idle[index]
            if server.backend.key == key and not server.closed:
                del idle[index]
                if now - server.since <= self.policy.check and not server.stirs():
                    return server
                server.check()
        return None

    def released(self, server: Server) -> None:
        """Its session is done with it."""
        session, client = server.session, server.client
        assert session is not None
        self.outcomes["abandoned" if client is None else "error" if session.failed else "ok"] += 1
        server.transactions += 1
        session.unlink()
        server.session = server.client = None
        server.since = self._clock()
        server.expired = False
        server.resume_reading()
        if client is not None:
            client.server = None
            if client.held_back:
                client.resume_reading()
        if not server.cancelling:
            self._hand(server)
        if client is not None:
            if self.draining:
                client.end(wire.fatal("57P01", "the pool is stopping"))
            elif client.waits_for_server:
                client.advance()

    def checked(self, server: Server) -> None:
        server.since = self._clock()
        self._hand(server)

    def _hand(self, server: Server) -> None:
        """To the client that waits longest; where that one needs another kind, this one makes room."""
        if server.closed:
            return
        if self.draining or self._clock() >= server.retire or len(self.servers) > self.policy.pool.max:
            server.close()
            return
        if server.backend.elsewhere and server.backend.elsewhere not in self.guests:
            server.close()
            return
        waiters = self.waiters
        coming = Counter(self.supply.opening.under_way) if waiters and waiters[0].kind != server.backend.key else None
        for client in waiters:
            key = client.kind
            if key == server.backend.key:
                if client is waiters[0]:
                    waiters.popleft()
                else:
                    waiters.remove(client)
                self._waited(self._clock() - client.since)
                client.granted(server)
                return
            assert coming is not None
            if coming[key] > 0:
                coming[key] -= 1
            elif not self.supply.opening.failures:
                server.close()
                return
        self.idle.append(server)

    def forget(self, client: Client) -> None:
        """A client that waits has left."""
        if client.waiting:
            client.waiting = False
            self.waiters.remove(client)
        self.slots.forget(client)

    def _expire(self) -> None:
        self._timer = None
        now, wait = self._clock(), self.policy.pool.wait
        while self.waiters and self.waiters[0].since + wait <= now + 0.001:
            client = self.waiters.popleft()
            self._waited(now - client.since)
            self.outcomes["refused"] += 1
            client.refused(self.exhausted())
        if self.waiters and self._timer is None:
            self._timer = self._loop.call_at(self.waiters[0].since + wait, self._expire)

    def exhausted(self, severity: str = "ERROR") -> bytes:
        """Why there was no connection: the database is away, or others hold what there is."""
        wait = format_duration(self.policy.pool.wait)
        if self.supply.opening.failures and not self.servers:
            text = f"the database cannot be reached, for {wait} of waiting: {self.supply.opening.reason}"
            return wire.error("57P03", text, severity=severity)
        states = Counter(server.state for server in self.servers)
        states.update({"connecting": len(self.supply.opening)} if len(self.supply.opening) else {})
        held = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.most_common())
        text = f"query_wait_timeout: no database connection was free within {wait}; of {self.policy.pool.max}: {held}"
        idle = (each.client for each in self.servers if each.state == "idle_in_transaction")
        routes = ", ".join(sorted({client.route for client in idle if client is not None and client.route}))
        text += f" (idle in transactions of {routes})" if routes else ""
        if self._clock() - self._told >= 1.0:
            self._told = self._clock()
            self.emit("postgres.exhausted", text, level="warning", waiting=len(self.waiters) + 1, **states)
        return wire.error("53300", text, severity=severity, hint="Raise postgres.pool.max or shorten transactions.")

    # ── connections that come and go ─────────────────────────────────────────────────────────

    def seat(self, found: Connected) -> None:
        """A connection was opened. They retire staggered, so not all at once."""
        life = self.policy.pool.lifetime * random.uniform(0.9, 1.0)  # noqa: S311 no secret rests on it
        server = Server(found.backend, self, self._clock, retire=self._clock() + life)
        self.servers[server] = found
        server.sit(found.transport, found.protocol, found)
        self._hand(server)

    def lost(self, server: Server) -> None:
        """Its connection has ended."""
        if self.servers.pop(server, None) is None:
            return
        if server in self.idle:
            self.idle.remove(server)
        session, client = server.session, server.client
        server.session = server.client = None
        if session is not None:
            session.unpin()
            session.unlink()
            self.outcomes["abandoned" if client is None else "error"] += 1
        if client is not None:
            client.server = None
            said = session is not None and session.pipeline.ended
            client.end(
                b""
                if said or (session is not None and session.pipeline.inside)
                else wire.fatal("08006", "the database closed the connection")
            )
        self.supply.fill()

    def guest_left(self, database: str) -> None:
        """With the last client of a database that is not the policy's, its connections go: they would keep it from
        being dropped."""
        self.guests[database] -= 1
        if self.guests[database]:
            return
        del self.guests[database]
        self.supply.forget(database)
        for server in [each for each in self.idle if each.backend.elsewhere == database]:
            self.idle.remove(server)
            server.close()

    # ── cancelling and leaving ───────────────────────────────────────────────────────────────

    def left(self, server: Server, *, politely: bool = False) -> None:
        """The client of a server has gone: it is to be clean before it serves another. What one that said goodbye
        had sent before is done, as PostgreSQL would, if that does not take long."""
        session = server.session
        assert session is not None
        server.client = None
        server.resume_reading()
        sent = session.leave()
        if sent is None:
            server.close()
            return
        server.write(sent)
        if session.free:
            self.released(server)
            return
        self._chase(server, session, -POLITE if politely else 0.0)

    def _chase(self, server: Server, session: Session, after: float) -> None:
        """Cancel what a client left behind, again where that came before the query did; in the end without a word."""
        if server.session is not session or server.client is not None or server.closed:
            return
        if after >= LEAVE:
            server.abort()
            return
        if after >= 0 and session.works and not server.cancelling:
            self.cancel(server)
        self._loop.call_later(AGAIN, self._chase, server, session, after + AGAIN)

    def cancel(self, server: Server) -> None:
        """Cancel what a server does. It serves nobody else until that has arrived: a late one hits nobody."""
        server.cancelling += 1
        self.spawn(self._cancel(server, self.servers[server]))

    async def _cancel(self, server: Server, found: Connected) -> None:
        try:
            async with asyncio.timeout(5.0):
                await found.cancel()
        except (OSError, TimeoutError) as error:
            self.emit("postgres.cancel", f"A query could not be cancelled: {error}.", level="warning")
        finally:
            server.cancelling -= 1
        if not server.cancelling and server.session is None and not server.checking and not server.closed:
            self._hand(server)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        self.draining = True
        self.upkeep.stop()
        self.supply.stop()
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in list(self.servers):
            server.close()
        deadline = self._clock() + 1.0
        while self.servers and self._clock() < deadline:
            await asyncio.sleep(0.01)
        for server in list(self.servers):
            server.abort()
