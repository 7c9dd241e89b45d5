"""The database connections, and who gets one: the last one used first, the client that waits longest first."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING

from proxy.observe.emit import EmitEvent
from proxy.policy.schema.stores import Postgres
from proxy.postgres import wire
from proxy.postgres.auth.startup import PoolKey
from proxy.postgres.connector import AsyncpgConnection
from proxy.postgres.janitor import Janitor
from proxy.postgres.launcher import Launcher
from proxy.postgres.pins import PinSlots
from proxy.postgres.server import ServerConnection
from proxy.units import format_duration
from proxy.util.background_tasks import BackgroundTasks

if TYPE_CHECKING:
    from proxy.postgres.client import ClientConnection
    from proxy.postgres.session import Session

CANCEL_INTERVAL = 0.25  # seconds from one cancel of what a client left behind to the next
GOODBYE_GRACE = 3.0  # seconds until what was sent before a goodbye is cancelled
CLEANUP_SECONDS = 2.0  # seconds that a server has to be rid of a client which left in the middle


class Pool:
    """`waited` is called with how long a client waited."""

    def __init__(
        self,
        policy: Postgres,
        connect: Callable[[PoolKey, str], Awaitable[AsyncpgConnection]],
        *,
        emit: EmitEvent,
        waited: Callable[[float], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock if clock is not None else self._loop.time
        self.emit = emit
        self._observe_wait = waited
        self.policy = policy
        self.servers: dict[ServerConnection, AsyncpgConnection] = {}
        self.idle: list[ServerConnection] = []
        self.waiters: deque[ClientConnection] = deque()
        self.outcomes: Counter[str] = Counter(ok=0, error=0, abandoned=0, refused=0)
        self.draining = False
        self.other_databases: Counter[str] = Counter()  # clients of other databases than the policy's, by database
        self._told = float("-inf")  # when it was last said that there are too few
        self.launcher = Launcher(self, connect)
        self.pins = PinSlots(self)
        self.janitor = Janitor(self)
        self._tasks = BackgroundTasks(self._loop)
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Pool {len(self.servers)} of {self.policy.pool.max}, {len(self.idle)} idle, {self.pins.held} pinned,"
            f" {len(self.waiters)} waiting>"
        )

    def now(self) -> float:
        return self._clock()

    def longest_wait(self) -> float:
        """Seconds that the client at the head of the queue has waited."""
        return self._clock() - self.waiters[0].since if self.waiters else 0.0

    # ── borrowing ────────────────────────────────────────────────────────────────────────────

    def acquire(self, client: ClientConnection) -> ServerConnection | None:
        """A server at once, or None: the client waits, and is `granted` one or `refused`."""
        key = client.pool_key
        if not self.waiters:
            server = self._idle(key)
            if server is not None:
                self._observe_wait(0.0)
                return server
        client.waiting = True
        client.since = self._clock()
        self.waiters.append(client)
        if self._timer is None:
            self._timer = self._loop.call_later(self.policy.pool.wait, self._expire)
        if self.idle or len(self.servers) < self.policy.pool.max:
            self.launcher.fill()
        return None

    def has_room(self) -> bool:
        """Whether a connection is free, or may be opened."""
        return not self.waiters and (
            bool(self.idle) or len(self.servers) + len(self.launcher.attempts) < self.policy.pool.max
        )

    def _idle(self, key: PoolKey) -> ServerConnection | None:
        now, idle = self._clock(), self.idle
        for index in range(len(idle) - 1, -1, -1):
            server = idle[index]
            if server.backend.pool_key == key and not server.closed:
                del idle[index]
                if now - server.since <= self.policy.check and not server.stirs():
                    return server
                server.check()
        return None

    def released(self, server: ServerConnection) -> None:
        """Its session is done with it."""
        session, client = server.session, server.client
        assert session is not None
        self.outcomes["abandoned" if client is None else "error" if session.failed else "ok"] += 1
        server.transactions += 1
        session.detach_server()
        server.session = server.client = None
        server.since = self._clock()
        server.expired = False
        server.resume_reading()
        if client is not None:
            client.server = None
            if client.paused_by_server:
                client.resume_reading()
        if not server.cancelling:
            self._hand(server)
        if client is not None:
            if self.draining:
                client.end(wire.fatal_response("57P01", "the pool is stopping"))
            elif client.has_pending:
                client.advance()

    def checked(self, server: ServerConnection) -> None:
        server.since = self._clock()
        self._hand(server)

    def _hand(self, server: ServerConnection) -> None:
        """To the client that waits longest; where that one needs another kind, this one makes room."""
        if server.closed:
            return
        if self.draining or self._clock() >= server.retire or len(self.servers) > self.policy.pool.max:
            server.close()
            return
        if server.backend.other_database and server.backend.other_database not in self.other_databases:
            server.close()
            return
        waiters = self.waiters
        coming = (
            Counter(self.launcher.attempts.under_way)
            if waiters and waiters[0].pool_key != server.backend.pool_key
            else None
        )
        for client in waiters:
            key = client.pool_key
            if key == server.backend.pool_key:
                if client is waiters[0]:
                    waiters.popleft()
                else:
                    waiters.remove(client)
                self._observe_wait(self._clock() - client.since)
                client.granted(server)
                return
            assert coming is not None
            if coming[key] > 0:
                coming[key] -= 1
            elif not self.launcher.attempts.failures:
                server.close()
                return
        self.idle.append(server)

    def forget_waiter(self, client: ClientConnection) -> None:
        """A client that waits has left."""
        if client.waiting:
            client.waiting = False
            self.waiters.remove(client)
        self.pins.forget(client)

    def _expire(self) -> None:
        self._timer = None
        now, wait = self._clock(), self.policy.pool.wait
        while self.waiters and self.waiters[0].since + wait <= now + 0.001:
            client = self.waiters.popleft()
            self._observe_wait(now - client.since)
            self.outcomes["refused"] += 1
            client.refused(self.exhausted_error())
        if self.waiters and self._timer is None:
            self._timer = self._loop.call_at(self.waiters[0].since + wait, self._expire)

    def exhausted_error(self, severity: str = "ERROR") -> bytes:
        """Why there was no connection: the database is away, or others hold what there is."""
        wait = format_duration(self.policy.pool.wait)
        if self.launcher.attempts.failures and not self.servers:
            text = f"the database cannot be reached, for {wait} of waiting: {self.launcher.attempts.reason}"
            return wire.error_response("57P03", text, severity=severity)
        states = Counter(server.state for server in self.servers)
        states.update({"connecting": len(self.launcher.attempts)} if len(self.launcher.attempts) else {})
        held = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.most_common())
        text = f"query_wait_timeout: no database connection was free within {wait}; of {self.policy.pool.max}: {held}"
        idle = (each.client for each in self.servers if each.state == "idle_in_transaction")
        routes = ", ".join(sorted({client.route for client in idle if client is not None and client.route}))
        text += f" (idle in transactions of {routes})" if routes else ""
        if self._clock() - self._told >= 1.0:
            self._told = self._clock()
            self.emit("postgres.exhausted", text, level="warning", waiting=len(self.waiters) + 1, **states)
        return wire.error_response(
            "53300", text, severity=severity, hint="Raise postgres.pool.max or shorten transactions."
        )

    # ── connections that come and go ─────────────────────────────────────────────────────────

    def seat(self, found: AsyncpgConnection) -> None:
        """A connection was opened. They retire staggered, so not all at once."""
        life = self.policy.pool.lifetime * random.uniform(0.9, 1.0)  # noqa: S311 no secret rests on it
        server = ServerConnection(found.backend, self, self._clock, retire=self._clock() + life)
        self.servers[server] = found
        server.sit(found.transport, found.protocol, found)
        self._hand(server)

    def lost(self, server: ServerConnection) -> None:
        """Its connection has ended."""
        if self.servers.pop(server, None) is None:
            return
        if server in self.idle:
            self.idle.remove(server)
        session, client = server.session, server.client
        server.session = server.client = None
        if session is not None:
            session.release_pins()
            session.detach_server()
            self.outcomes["abandoned" if client is None else "error"] += 1
        if client is not None:
            client.server = None
            said = session is not None and session.outstanding.server_ended
            client.end(
                b""
                if said or (session is not None and session.outstanding.mid_message)
                else wire.fatal_response("08006", "the database closed the connection")
            )
        self.launcher.fill()

    def guest_left(self, database: str) -> None:
        """With the last client of a database that is not the policy's, its connections go: they would keep it from
        being dropped."""
        self.other_databases[database] -= 1
        if self.other_databases[database]:
            return
        del self.other_databases[database]
        self.launcher.forget(database)
        for server in [each for each in self.idle if each.backend.other_database == database]:
            self.idle.remove(server)
            server.close()

    # ── cancelling and leaving ───────────────────────────────────────────────────────────────

    def left(self, server: ServerConnection, *, politely: bool = False) -> None:
        """The client of a server has gone: it is to be clean before it serves another. What one that said goodbye
        had sent before is done, as PostgreSQL would, if that does not take long."""
        session = server.session
        assert session is not None
        server.client = None
        server.resume_reading()
        sent = session.begin_cleanup()
        if sent is None:
            server.close()
            return
        server.write(sent)
        if session.releasable:
            self.released(server)
            return
        self._chase(server, session, -GOODBYE_GRACE if politely else 0.0)

    def _chase(self, server: ServerConnection, session: Session, after: float) -> None:
        """Cancel what a client left behind, again where that came before the query did; in the end without a word."""
        if server.session is not session or server.client is not None or server.closed:
            return
        if after >= CLEANUP_SECONDS:
            server.abort()
            return
        if after >= 0 and session.has_client_work and not server.cancelling:
            self.cancel(server)
        self._loop.call_later(CANCEL_INTERVAL, self._chase, server, session, after + CANCEL_INTERVAL)

    def cancel(self, server: ServerConnection) -> None:
        """Cancel what a server does. It serves nobody else until that has arrived: a late one hits nobody."""
        server.cancelling += 1
        self.spawn(self._cancel(server, self.servers[server]))

    async def _cancel(self, server: ServerConnection, found: AsyncpgConnection) -> None:
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
        self._tasks.start(work)

    async def close(self) -> None:
        self.draining = True
        self.janitor.stop()
        self.launcher.stop()
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()
        for server in list(self.servers):
            server.close()
        deadline = self._clock() + 1.0
        while self.servers and self._clock() < deadline:
            await asyncio.sleep(0.01)
        for server in list(self.servers):
            server.abort()
