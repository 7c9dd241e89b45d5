"""The queue in PostgreSQL, for several instances, through asyncpg's own pool.

It works behind transaction poolers: no prepared statement and no session state beyond a transaction is kept. LISTEN is
session state, so it has a connection of its own, and a trial: whoever does not hear its own notification is behind a
pooler, and polls alone.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import asyncpg

from proxy.ledger.postgres import MIGRATION_LOCK, MIGRATION_TIMEOUT
from proxy.policy.urls import without_foreign_options
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.schema import PART, POSTGRES_TYPES, STEPS, statements
from proxy.tasks.sqlite_database import newer_schema_error

CONNECT_TIMEOUT = 5.0  # seconds
COMMAND_TIMEOUT = 10.0  # seconds for a statement
MAX_CONNECTIONS = 2  # one for what is accepted, one for the worker; listening takes another
CHANNEL = "outrigger_tasks"
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
_TABLE = re.compile(r"\boutrigger_\w+")
TRIAL_SECONDS = 2.0  # for a notification of our own to come back

_CONNECT_OPTIONS: Mapping[str, Any] = {
    "timeout": CONNECT_TIMEOUT,
    "command_timeout": COMMAND_TIMEOUT,
    # Named statements do not survive behind a transaction pooler (asyncpg's FAQ on pgbouncer).
    "statement_cache_size": 0,
    "server_settings": {"application_name": "outrigger tasks"},
}
# ValueError: what asyncpg raises for an address that it cannot read.
_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    ValueError,
)


class PostgresDatabase:
    """One database. `where` is its address without the password; `on_notify` gets what other instances say."""

    shared = True
    row_lock = " FOR UPDATE SKIP LOCKED"
    wait_lock = " FOR UPDATE"
    lease = 10.0

    def __init__(self, url: str, *, where: str, on_notify: Callable[[str], None] = lambda text: None) -> None:
        self.where = where
        self.on_notify = on_notify
        self._url = without_foreign_options(url)
        self._pool: asyncpg.Pool | None = None
        self._migrated = False
        self._listener: asyncpg.Connection | None = None
        self._is_pooled = False  # a trial has shown that LISTEN does not work here

    @asynccontextmanager
    async def transaction(self, *, write: bool = True) -> AsyncIterator[PostgresTransaction]:
        committing = False
        try:
            async with self._connection() as connection:
                if not write:
                    # Each question sees what is committed then, which is all that readers need, at half the trips.
                    yield PostgresTransaction(connection, await connection.fetchval(_NOW))
                    return
                # Whatever the database's default is: a count must see what was committed while its row's lock was
                # waited for, and not what was there when the transaction began.
                transaction = connection.transaction(isolation="read_committed")
                await transaction.start()
                try:
                    yield PostgresTransaction(connection, await connection.fetchval(_NOW))
                # BaseException: a cancelled request must not leave a transaction open in the pool.
                except BaseException:
                    try:
                        await transaction.rollback()
                    except _ERRORS:
                        connection.terminate()  # what goes up is the error before this one
                    raise
                # From here on the answer to COMMIT may be lost although it was done.
                committing = True
                await transaction.commit()
        except _ERRORS as error:
            self._migrated = False  # it may be another database that comes back
            raise TasksUnavailable(f"{self.where}: {_explain_error(error)}", doubtful=committing) from error

    async def listen(self) -> None:
        """Keep a connection that hears `notify`, unless a pooler in between makes that impossible."""
        if self._is_pooled or (self._listener is not None and not self._listener.is_closed()):
            return
        try:
            connection = await asyncpg.connect(self._url, **_CONNECT_OPTIONS)
            try:
                heard = await self._try_listening(connection)
            except BaseException:
                connection.terminate()
                raise
        except _ERRORS:
            return  # the next round of the worker tries again; meanwhile polling finds everything
        if heard:
            self._listener = connection
        else:
            self._is_pooled = True
            connection.terminate()

    async def _try_listening(self, connection: asyncpg.Connection) -> bool:
        """Whether what one connection sends arrives at the one that listens."""
        trial, heard = secrets.token_hex(8), asyncio.Event()

        def hear(_connection: object, _pid: int, _channel: str, text: object) -> None:
            if text == trial:
                heard.set()
            else:
                self.on_notify(str(text))

        await connection.add_listener(CHANNEL, hear)
        async with self.transaction() as tx:
            await tx.notify(trial)
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                await heard.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        listener, self._listener = self._listener, None
        self._migrated = False
        if listener is not None:
            listener.terminate()
        if pool is not None:
            pool.terminate()  # nothing is under way, and a database that hangs must not hold up the end

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection of the pool, migrated."""
        if self._pool is None:
            pool = await asyncpg.create_pool(
                self._url, min_size=0, max_size=MAX_CONNECTIONS, max_inactive_connection_lifetime=60.0,
                **_CONNECT_OPTIONS,
            )  # fmt: skip
            # Two may have come here together: what the first made is kept.
            self._pool = self._pool or pool
        async with self._pool.acquire(timeout=CONNECT_TIMEOUT) as connection:
            if not self._migrated:
                await self._migrate(connection)
                self._migrated = True
            yield connection

    async def _migrate(self, connection: Any) -> None:
        if await _schema_version(connection) == len(STEPS):
            return
        async with connection.transaction():
            # The ledger's lock: both parts make the table of versions.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS public.outrigger_schema (part text PRIMARY KEY, version int NOT NULL)"
            )
            found = await _schema_version(connection)
            if found > len(STEPS):
                raise newer_schema_error(found)
            for step in STEPS[found:]:
                for statement in statements(step, POSTGRES_TYPES):
                    await connection.execute(statement, timeout=MIGRATION_TIMEOUT)
            await connection.execute(
                "INSERT INTO public.outrigger_schema VALUES ($1, $2)"
                " ON CONFLICT (part) DO UPDATE SET version = excluded.version",
                PART,
                len(STEPS),
            )


class PostgresTransaction:
    """One transaction of a PostgresDatabase.

    Tables are named with their schema, since the user's own search path may not begin with it.
    """

    def __init__(self, connection: Any, now: float) -> None:
        self._connection = connection
        self.now = now

    async def fetch(self, sql: str, *values: object) -> Sequence[Sequence[Any]]:
        return [tuple(row) for row in await self._connection.fetch(_qualify(sql), *values)]

    async def execute(self, sql: str, *values: object) -> int:
        done = await self._connection.execute(_qualify(sql), *values)
        count = done.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        await self._connection.executemany(_qualify(sql), rows)

    async def notify(self, text: str) -> None:
        await self._connection.execute("SELECT pg_notify($1, $2)", CHANNEL, text)


@lru_cache(maxsize=128)
def _qualify(sql: str) -> str:
    return _TABLE.sub(r"public.\g<0>", sql)


async def _schema_version(connection: Any) -> int:
    """The version of the tables of the queue, 0 if there are none yet."""
    if not await connection.fetchval("SELECT to_regclass('public.outrigger_schema') IS NOT NULL"):
        return 0
    return int(await connection.fetchval("SELECT version FROM public.outrigger_schema WHERE part = $1", PART) or 0)


def _explain_error(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        text += "; grant its user the schema public, or name another tasks.url"
    return text
