"""The database connections, and who gets one: the one used last first, the client that waits longest first.

What is to be opened (`launcher`), ended by the clock (`janitor`) and pinned (`pins`) is decided elsewhere, from
values; the pool asks, and does the I/O. It knows nothing of sessions: whoever borrows a server gives it back with the
outcome of its transaction.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from proxy.observe.emit import EmitEvent
from proxy.policy.schema import Postgres
from proxy.postgres import janitor, pg_errors, wire
from proxy.postgres.auth.startup import PoolKey, Settings
from proxy.postgres.connector import AsyncpgConnection, ConnectFailed
from proxy.postgres.launcher import ConnectionKind, Launcher
from proxy.postgres.pins import PinSlots, most_connections, pin_limit
from proxy.postgres.server import ServerConnection
from proxy.store.leases import Lease
from proxy.units import format_duration
from proxy.util.background_tasks import BackgroundTasks

CANCEL_SECONDS = 5.0  # until a cancel that the database does not take is given up
# Until the database has let go of a connection that we closed, and another instance may have one in its place.
PARTING_SECONDS = 0.25
CLOSE_SECONDS = 1.0  # that servers have to say goodbye when the pool is closed


class Waiter(Protocol):
    """Who wants a server. `since` is when it began to wait; `waiting` is kept by the pool."""

    pool_key: PoolKey
    application_name: str
    since: float
    waiting: bool

    def on_server_granted(self, server: ServerConnection) -> None: ...
    def on_server_refused(self, error: bytes) -> None: ...
    def on_pin_decided(self, *, granted: bool) -> None: ...
    def end_client(self, error: bytes) -> None: ...


class Pool:
    """`servers` are all connections, `idle` those that nobody has borrowed, the one used last at the end; `waiters`
    have none. `outcomes` counts transactions by how they ended; `clients_by_database` those of other databases than
    the policy's. `draining`: no new connections, and none is lent again. `now` is the clock, in seconds;
    `observe_wait` gets how long a waiter has waited."""

    def __init__(
        self,
        policy: Postgres,
        connect: Callable[[PoolKey, str], Awaitable[AsyncpgConnection]],
        *,
        emit: EmitEvent,
        observe_wait: Callable[[float], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = clock if clock is not None else self._loop.time
        self._connect = connect
        self._emit = emit
        self._observe_wait = observe_wait
        self.policy = policy
        self.servers: dict[ServerConnection, AsyncpgConnection] = {}
        self.idle: list[ServerConnection] = []
        self.waiters: deque[Waiter] = deque()
        self.outcomes: Counter[str] = Counter(ok=0, error=0, abandoned=0, refused=0)
        self.draining = False
        self.clients_by_database: Counter[str] = Counter()
        self.launcher = Launcher(self.now)
        self.pins: PinSlots[Waiter] = PinSlots(pin_limit(policy))
        self._greeting_names: dict[PoolKey, str] = {}
        self._greeting_futures: dict[PoolKey, list[asyncio.Future[Settings]]] = {}
        self._exhausted_emitted_at = float("-inf")
        self._tasks = BackgroundTasks(self._loop)
        self._wait_timer: asyncio.TimerHandle | None = None
        self._launch_timer: asyncio.TimerHandle | None = None
        self.lease: Lease | None = None  # of `pool.total`, if instances share it
        self._most = most_connections(policy)
        self.resets_always = policy.reset == "always"
        self._parting = 0  # connections that ended a moment ago, which the database may still count
        self._janitor_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Pool {len(self.servers)} of {self.limit}, {len(self.idle)} idle, {self.pins.held} pinned,"
            f" {len(self.waiters)} waiting>"
        )

    def apply(self, policy: Postgres) -> None:
        """Take a newer policy."""
        self.policy = policy
        self._most = most_connections(policy)
        self.resets_always = policy.reset == "always"
        self.pins.limit = pin_limit(policy)
        self.launch_servers()

    # ── shared with other instances ──────────────────────────────────────────────────────────

    @property
    def limit(self) -> int:
        """How many connections this instance may have now."""
        return self._most if self.lease is None else min(self._most, self.lease.limit)

    def measure(self) -> tuple[int, int]:
        """How many connections there are, those that are being opened among them, and how many would be used."""
        return len(self.servers) + len(self.launcher.attempts) + self._parting, self._wanted()

    def _wanted(self) -> int:
        pool = self.policy.pool
        in_use = len(self.servers) - len(self.idle) + len(self.waiters) + len(self._greeting_futures)
        return max(1, min(self._most, max(pool.min, in_use)))

    def on_limit_changed(self) -> None:
        """The lease is another: what is idle beyond it goes, or what is waited for is opened."""
        surplus = sum(not server.closed for server in self.servers) - self.limit
        while surplus > 0 and self.idle:
            self.idle.pop(0).close()
            surplus -= 1
        self.launch_servers()

    def _note_parted(self) -> None:
        self._parting -= 1
        if self.lease is not None:
            self.lease.hasten()
        self.launch_servers()

    # ── what it shows ────────────────────────────────────────────────────────────────────────

    def longest_wait(self) -> float:
        """Seconds that the client at the head of the queue has waited."""
        return self.now() - self.waiters[0].since if self.waiters else 0.0

    def has_room(self) -> bool:
        """Whether a connection is free, or may be opened."""
        return not self.waiters and (
            bool(self.idle) or len(self.servers) + len(self.launcher.attempts) + self._parting < self.limit
        )

    # ── lending ──────────────────────────────────────────────────────────────────────────────

    def acquire(self, waiter: Waiter) -> ServerConnection | None:
        """A server at once, or None: the waiter is told later that it has one, or that it gets none."""
        now, idle = self.now(), self.idle
        # Nobody overtakes one who waits, not even if a server is idle: it may be of another kind than that one's.
        if idle and not self.waiters:
            key = waiter.pool_key
            # From the end: the one used last has the warmest caches, and the others may retire.
            for server in reversed(idle):
                if server.backend.pool_key != key or server.closed:
                    continue
                idle.remove(server)
                # One that was idle for long, or that has said something unasked, is checked before it serves again;
                # not one that has just been given back, which saves two of three polls under load.
                since = server.since
                if now == since or (now - since <= self.policy.check and not server.has_unread_input()):
                    server.since = now
                    self._observe_wait(0.0)
                    return server
                server.send_check()
        waiter.waiting = True
        waiter.since = now
        self.waiters.append(waiter)
        if self._wait_timer is None:
            self._wait_timer = self._loop.call_later(self.policy.pool.wait, self._refuse_overdue)
        # An idle server that could not be used is of another kind, and may have to make room.
        if self.idle or self.lease is not None or len(self.servers) < self.limit:
            self.launch_servers()
        return None

    def release(self, server: ServerConnection, outcome: str) -> None:
        """Whoever borrowed it is done with it; it is bound to nobody any more."""
        self.outcomes[outcome] += 1
        server.transactions += 1
        server.since = now = self.now()
        server.query_timed_out = False
        if server.paused:
            server.resume_reading()
        if not server.cancelling:  # else `_cancel` offers it when the cancel has arrived
            self._offer_server(server, now)

    def on_check_passed(self, server: ServerConnection) -> None:
        server.since = now = self.now()
        self._offer_server(server, now)

    def _offer_server(self, server: ServerConnection, now: float) -> None:
        """To the waiter that waits longest; if that one needs another kind, this server may have to make room."""
        if server.closed:
            return
        backend = server.backend
        other = backend.other_database
        if (
            self.draining
            or now >= server.retire_at
            or len(self.servers) > (self._most if self.lease is None else self.limit)
            or (other and other not in self.clients_by_database)
        ):
            server.close()
            return
        waiters = self.waiters
        if not waiters:
            self.idle.append(server)
            return
        first = waiters[0]
        waiter: Waiter | None = first
        if first.pool_key == backend.pool_key:
            waiters.popleft()
        else:
            waiter = self._pop_later_waiter(server)
        if waiter is not None:
            self._observe_wait(now - waiter.since)
            waiter.waiting = False
            waiter.on_server_granted(server)

    def _pop_later_waiter(self, server: ServerConnection) -> Waiter | None:
        """The first waiter of this server's kind. None: the server is idle if there is none, or makes room for those
        of another kind."""
        key, attempts = server.backend.pool_key, self.launcher.attempts
        # Those of another kind do not lose their turn: either a connection of theirs is on its way, or this one ends.
        coming = Counter(attempts.under_way)
        for waiter in self.waiters:
            if waiter.pool_key == key:
                self.waiters.remove(waiter)
                return waiter
            if coming[waiter.pool_key] > 0:
                coming[waiter.pool_key] -= 1
            elif not attempts.failures:
                server.close()
                return None
        self.idle.append(server)
        return None

    def forget_waiter(self, waiter: Waiter) -> None:
        """It waits no more, neither for a server nor for a pin slot."""
        if waiter.waiting:
            waiter.waiting = False
            self.waiters.remove(waiter)
        self.pins.forget(waiter)

    def _refuse_overdue(self) -> None:
        self._wait_timer = None
        now, wait = self.now(), self.policy.pool.wait
        # A timer may fire a little early by the clock: a millisecond of grace, so that nobody waits for another round.
        while self.waiters and self.waiters[0].since + wait <= now + 0.001:
            waiter = self.waiters.popleft()
            self._observe_wait(now - waiter.since)
            self.outcomes["refused"] += 1
            waiter.waiting = False
            waiter.on_server_refused(self.exhausted_error())
        if self.waiters and self._wait_timer is None:
            self._wait_timer = self._loop.call_at(self.waiters[0].since + wait, self._refuse_overdue)

    def exhausted_error(self, severity: str = "ERROR") -> bytes:
        """Why there was no connection: the database is away, or others hold what there is."""
        # The text is for the log and for the client: who holds the connections, and for which routes.
        wait, attempts = format_duration(self.policy.pool.wait), self.launcher.attempts
        if attempts.failures and not self.servers:
            text = f"the database cannot be reached, for {wait} of waiting: {attempts.reason}"
            return pg_errors.database_unreachable(text, severity)
        states = Counter(server.state for server in self.servers)
        states.update({"connecting": len(attempts)} if len(attempts) else {})
        held = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.most_common())
        text = f"query_wait_timeout: no database connection was free within {wait}; of {self.limit}: {held}"
        links = (each.link for each in self.servers if each.state == "idle_in_transaction")
        routes = ", ".join(sorted({link.route for link in links if link is not None and link.route}))
        text += f" (idle in transactions of {routes})" if routes else ""
        # Once a second at most, however many are refused at once.
        if self.now() - self._exhausted_emitted_at >= 1.0:
            self._exhausted_emitted_at = self.now()
            self._emit("postgres.exhausted", text, level="warning", waiting=len(self.waiters) + 1, **states)
        return pg_errors.pool_exhausted(text, severity)

    # ── pin slots ────────────────────────────────────────────────────────────────────────────

    def request_pin(self, waiter: Waiter) -> bool:
        """A slot at once, or False: the waiter is told within `pool.wait` whether it has one."""
        if self.pins.try_acquire():
            return True
        if self.pins.enqueue(waiter):
            wait = self.policy.pool.wait
            self._loop.call_later(wait, self._refuse_pin, waiter, self.now() + wait)
        return False

    def release_pin(self) -> None:
        self.pins.release()
        while (waiter := self.pins.grant_next()) is not None:
            waiter.on_pin_decided(granted=True)

    def _refuse_pin(self, waiter: Waiter, at: float) -> None:
        # The waiter may have had its slot since, and wait for another: that one has a timer of its own.
        if self.now() >= at - 0.001 and self.pins.forget(waiter):
            waiter.on_pin_decided(granted=False)

    # ── connections that come ────────────────────────────────────────────────────────────────

    async def fetch_greeting(self, key: PoolKey, name: str) -> Settings:
        """What a connection of this key reports; opens the first one. Raises ConnectFailed, TimeoutError."""
        found = self.launcher.greetings.get(key)
        if found is not None:
            return found
        future: asyncio.Future[Settings] = self._loop.create_future()
        self._greeting_futures.setdefault(key, []).append(future)
        self._greeting_names[key] = name
        self.launch_servers()
        try:
            async with asyncio.timeout(self.policy.pool.wait):
                return await future
        finally:
            futures = self._greeting_futures.get(key, [])
            if future in futures:
                futures.remove(future)
                if not futures:
                    del self._greeting_futures[key]

    def launch_servers(self) -> None:
        """Open what is wanted and may be opened."""
        if self.draining:
            return
        demand: list[ConnectionKind] = [(waiter.pool_key, waiter.application_name) for waiter in self.waiters]
        demand += [(key, self._greeting_names[key]) for key in self._greeting_futures]
        plan = self.launcher.plan(
            demand,
            servers=len(self.servers) + self._parting,
            checking=(server.backend.pool_key for server in self.servers if server.checking),
            minimum=min(self.policy.pool.min, self.limit),
            maximum=self.limit,
        )
        if self.lease is not None and (self.waiters or plan.make_room) and self._wanted() > self.lease.limit:
            self.lease.hasten()
        for kind in plan.to_open:
            self._tasks.start(self._open_connection(kind))
        if plan.make_room and self.idle and not any(server.closed for server in self.servers):
            self.idle.pop(0).close()  # it goes on from there when that one's end is known
        if plan.retry_in is not None and self._launch_timer is None:
            self._launch_timer = self._loop.call_later(plan.retry_in, self._retry_launch)

    def _retry_launch(self) -> None:
        self._launch_timer = None
        self.launch_servers()

    async def _open_connection(self, kind: ConnectionKind) -> None:
        key, name = kind
        attempts = self.launcher.attempts
        was_down = attempts.failures > 0
        found: AsyncpgConnection | ConnectFailed
        try:
            found = await self._connect(key, name)
        except ConnectFailed as error:
            found = error
        finally:
            attempts.under_way[key] -= 1
        if isinstance(found, ConnectFailed):
            self._on_open_failed(key, found, was_down=was_down)
        else:
            if was_down:
                self._emit("postgres.up", "The database is back.")
            found.backend.reported = self.launcher.on_opened(kind, found.backend.reported)
            # The server is offered before those who wait for its greeting wake up: they find it idle, or taken.
            futures = self._greeting_futures.pop(key, [])
            self._add_server(found)
            for future in futures:
                if not future.done():
                    future.set_result(found.backend.reported)
        self.launch_servers()

    def _on_open_failed(self, key: PoolKey, error: ConnectFailed, *, was_down: bool) -> None:
        launcher = self.launcher
        client_specific = launcher.is_client_specific(key, error)
        if not client_specific:
            launcher.attempts.on_failure(error)
        elif launcher.forget_key(key):
            # No connection of this key can be had any more: its database was dropped, say.
            for waiter in [each for each in self.waiters if each.pool_key == key]:
                waiter.end_client(wire.fatal_response(error.sqlstate, str(error)))
        if error.final:
            for future in self._greeting_futures.pop(key, []):
                if not future.done():
                    future.set_exception(error)
        if not was_down and not client_specific:
            self._emit("postgres.down", f"A database connection failed: {error}.", level="warning", code=error.sqlstate)

    def _add_server(self, found: AsyncpgConnection) -> None:
        """A connection was opened. They retire staggered, so not all at once."""
        life = self.policy.pool.lifetime * random.uniform(0.9, 1.0)  # noqa: S311 no secret rests on it
        server = ServerConnection(found.backend, self, self.now, retire_at=self.now() + life)
        self.servers[server] = found
        server.take_over(found.transport, found.protocol, found)
        self._offer_server(server, self.now())

    # ── connections that go ──────────────────────────────────────────────────────────────────

    def on_server_lost(self, server: ServerConnection) -> None:
        """Its connection has ended."""
        if self.servers.pop(server, None) is None:
            return
        if server in self.idle:
            self.idle.remove(server)
        if self.lease is not None and not self.draining:
            self._parting += 1
            self._loop.call_later(PARTING_SECONDS, self._note_parted)
        link, server.link = server.link, None
        if link is not None:
            self.outcomes[link.on_server_lost()] += 1
        self.launch_servers()

    def on_client_left(self, database: str) -> None:
        """With the last client of a database that is not the policy's, its connections go: they would keep it from
        being dropped."""
        self.clients_by_database[database] -= 1
        if self.clients_by_database[database]:
            return
        del self.clients_by_database[database]
        self.launcher.forget_database(database)
        for server in [each for each in self.idle if each.backend.other_database == database]:
            self.idle.remove(server)
            server.close()

    def start_janitor(self) -> None:
        self.run_janitor()
        pause = janitor.janitor_interval(self.policy)
        self._janitor_timer = self._loop.call_later(pause, self.start_janitor)

    def run_janitor(self) -> None:
        """Once what the clock asks for: overdue queries and transactions, retired connections, new ones ahead."""
        # Everything is decided before anything is done: what is done changes what the servers are doing.
        for action in janitor.find_overdue(list(self.servers), self.policy, self.now()):
            server, link = action.server, action.server.link
            if isinstance(action, janitor.Abort):
                server.abort()
            elif link is not None and isinstance(action, janitor.CancelQuery):
                server.query_timed_out = True
                link.replace_cancel_error(action.error)
                self.cancel_query(server)
            elif link is not None and isinstance(action, janitor.EndClient):
                link.end_client(action.error)
                if action.abort_server:
                    server.abort()
        for server in janitor.find_retired(
            list(self.idle), len(self.servers), self.policy, self.now(), limit=self.limit
        ):
            self.idle.remove(server)
            server.close()
        self.launch_servers()

    # ── cancelling ───────────────────────────────────────────────────────────────────────────

    def cancel_query(self, server: ServerConnection) -> None:
        """Cancel what a server does. It serves nobody else until that has arrived: a late one hits nobody."""
        # A cancel names a process and not a query (54.2.8): it hits whatever runs when it arrives.
        server.cancelling += 1
        self._tasks.start(self._run_cancel(server, self.servers[server]))

    async def _run_cancel(self, server: ServerConnection, found: AsyncpgConnection) -> None:
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await found.cancel()
        except (OSError, TimeoutError) as error:
            self._emit("postgres.cancel", f"A query could not be cancelled: {error}.", level="warning")
        finally:
            server.cancelling -= 1
        if not server.cancelling and server.link is None and not server.checking and not server.closed:
            self._offer_server(server, self.now())

    async def close(self) -> None:
        self.draining = True
        for timer in (self._janitor_timer, self._launch_timer, self._wait_timer):
            if timer is not None:
                timer.cancel()
        await self._tasks.close()
        # A server whose client has left in the middle has no time to be made clean: it is closed like the others.
        for server in list(self.servers):
            server.close()
        deadline = self.now() + CLOSE_SECONDS
        while self.servers and self.now() < deadline:
            await asyncio.sleep(0.01)
        for server in list(self.servers):
            server.abort()
