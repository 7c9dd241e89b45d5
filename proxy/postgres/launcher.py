"""How many database connections there are, of which kind, and when one more is opened."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from proxy.postgres import wire
from proxy.postgres.auth.startup import PoolKey, Settings, other_database
from proxy.postgres.connector import AsyncpgConnection, ConnectFailed

if TYPE_CHECKING:
    from proxy.postgres.pool import Pool


# while it does not.
FIRST_PAUSE = 0.1  # seconds
MAX_PAUSE = 4.5  # so that there is a try at least every 5 s while clients wait


class ConnectAttempts:
    """`ready` says whether one more may be tried now. A pause is drawn from the upper half of its range, so that
    instances which lost the same database do not come back as one."""

    def __init__(
        self, connect: Callable[[PoolKey, str], Awaitable[AsyncpgConnection]], clock: Callable[[], float]
    ) -> None:
        self._connect = connect
        self._clock = clock
        self.under_way: Counter[PoolKey] = Counter()
        self.failures = 0
        self.retry_at = 0.0
        self.reason = ""
        self.sqlstate = ""
        self.since = clock()  # when it began to work, or to fail

    def __len__(self) -> int:
        return self.under_way.total()

    def __repr__(self) -> str:
        return f"<Opening {len(self)} under way, {self.failures} failures>"

    def may_try(self) -> bool:
        return self.failures == 0 or (not self.under_way.total() and self._clock() >= self.retry_at)

    async def open(self, key: PoolKey, name: str) -> AsyncpgConnection | ConnectFailed:
        """`under_way` is counted up by the caller, before this begins to run."""
        try:
            found = await self._connect(key, name)
        except ConnectFailed as error:
            return error
        finally:
            self.under_way[key] -= 1
        if self.failures:
            self.since = self._clock()
        self.failures = 0
        self.reason = ""
        return found

    def on_failure(self, error: ConnectFailed) -> None:
        """The database is away, or says no to everybody."""
        if not self.failures:
            self.since = self._clock()
        self.failures += 1
        self.reason, self.sqlstate = str(error), error.sqlstate
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10))
        self.retry_at = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311 no secret rests on it


MAX_GREETINGS = 100  # ways to open a connection whose greeting is remembered


class Launcher:
    """`greetings` is what a connection of each key reported of itself."""

    def __init__(self, pool: Pool, connect: Callable[[PoolKey, str], Awaitable[AsyncpgConnection]]) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.attempts = ConnectAttempts(connect, pool.now)
        self.greetings: dict[PoolKey, Settings] = {}
        self._greeted: dict[PoolKey, list[asyncio.Future[Settings]]] = {}
        self._names: dict[PoolKey, str] = {}
        self._key: PoolKey = ()  # the last kind that could be opened: connections opened ahead are of it
        self._name = ""
        self._retry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Supply {len(self.attempts)} opening, {len(self._greeted)} kinds asked for>"

    def stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()

    async def greeting(self, key: PoolKey, name: str) -> Settings:
        """What a connection of this key reports; opens the first one. Raises ConnectFailed, TimeoutError."""
        found = self.greetings.get(key)
        if found is not None:
            return found
        future: asyncio.Future[Settings] = self._loop.create_future()
        self._greeted.setdefault(key, []).append(future)
        self._names[key] = name
        self.fill()
        try:
            async with asyncio.timeout(self._pool.policy.pool.wait):
                return await future
        finally:
            waiting = self._greeted.get(key, [])
            if future in waiting:
                waiting.remove(future)
                if not waiting:
                    del self._greeted[key]

    def forget(self, database: str) -> None:
        """Who comes to it next hears anew what there is, if anything."""
        for key in [key for key in self.greetings if other_database(key) == database]:
            del self.greetings[key]

    def fill(self) -> None:
        """Open what is wanted and may be opened."""
        if self._pool.draining:
            return
        coming = Counter(self.attempts.under_way)
        coming.update(server.backend.pool_key for server in self._pool.servers if server.checking)
        wanted = [
            (client.startup.key, client.startup.application_name)
            for client in self._pool.waiters
            if client.startup is not None
        ]
        wanted += [(key, self._names[key]) for key in self._greeted]
        if self.attempts.failures and not wanted and not self._pool.servers:
            wanted.append((self._key, self._name))  # nobody waits, but somebody is to notice that it is back
        missing = self._pool.policy.pool.min - len(self._pool.servers) - len(self.attempts)
        wanted += [(self._key, self._name)] * max(0, missing - len(wanted))
        for key, name in wanted:
            if coming[key] > 0:
                coming[key] -= 1
                continue
            if len(self._pool.servers) + len(self.attempts) >= self._pool.policy.pool.max:
                self._make_room()
                return
            if not self.attempts.may_try():
                self._retry_later()
                return
            self.attempts.under_way[key] += 1
            self._pool.spawn(self._open(key, name))

    def _make_room(self) -> None:
        """An idle connection that none of those who wait can use ends; `lost` goes on from there."""
        if self._pool.idle and not any(server.closed for server in self._pool.servers):
            self._pool.idle.pop(0).close()

    def _retry_later(self) -> None:
        if self._retry is None and not len(self.attempts):
            self._retry = self._loop.call_later(max(0.01, self.attempts.retry_at - self._pool.now()), self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.fill()

    async def _open(self, key: PoolKey, name: str) -> None:
        before = self.attempts.failures
        found = await self.attempts.open(key, name)
        futures = self._greeted.pop(key, [])
        if isinstance(found, ConnectFailed):
            # A setting that only this client asked for is its own affair; all else is the database's.
            own = found.final and self._asked_for(key, found.sqlstate)
            if own:
                self._lost_kind(key, found)
            else:
                self.attempts.on_failure(found)
            if found.final:
                for future in futures:
                    if not future.done():
                        future.set_exception(found)
            elif futures:
                self._greeted[key] = futures
            if not before and not own:
                self._pool.emit(
                    "postgres.down", f"A database connection failed: {found}.", level="warning", code=found.sqlstate
                )
            self.fill()
            return
        if before:
            self._pool.emit("postgres.up", "The database is back.")
        known = self.greetings.get(key)
        if known == found.backend.reported:
            found.backend.reported = known  # one object, so that who compares them is done at once
        elif known is not None or len(self.greetings) < MAX_GREETINGS:
            self.greetings[key] = found.backend.reported
        if not found.backend.other_database:
            self._key, self._name = key, name
        self._pool.seat(found)
        for future in futures:
            if not future.done():
                future.set_result(found.backend.reported)
        self.fill()

    def _asked_for(self, key: PoolKey, code: str) -> bool:
        """Whether what the database says no to is what these clients alone asked for."""
        if other_database(key):
            return not code.startswith("08")
        return key not in self.greetings and not code.startswith(("28", "3D", "08"))

    def _lost_kind(self, key: PoolKey, error: ConnectFailed) -> None:
        """No connection of this key can be had any more: its database was dropped, say."""
        if self.greetings.pop(key, None) is not None:
            for client in [each for each in self._pool.waiters if each.pool_key == key]:
                client.end(wire.fatal_response(error.sqlstate, str(error)))
