"""The ledger in PostgreSQL, through asyncpg's own pool.

It works behind transaction poolers too: it keeps no prepared statement and no session state beyond a transaction, and
the lock of a migration ends with its transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from proxy.ledger.record import COLUMNS, FIRST_SCHEMA_COLUMNS, CallRecord, record_from_row
from proxy.ledger.store import (
    CACHED,
    COLUMN_NAMES,
    FORGIVEN_KEPT_SECONDS,
    GROUP_COLUMNS,
    MAX_USERS_PER_WINDOW,
    ON_CONFLICT,
    TAG_LENGTH,
    ForgivenSpend,
    GroupBy,
    LedgerUnavailable,
    RecordRejected,
    ReportRow,
    UserTotals,
    WindowTotals,
    newer_schema_error,
)
from proxy.policy.urls import without_foreign_options

CONNECT_TIMEOUT = 5.0  # seconds
COMMAND_TIMEOUT = 10.0  # seconds for a statement
REPORT_TIMEOUT = 60.0
MIGRATION_TIMEOUT = 300.0  # an index over a large table takes its time
MIGRATION_LOCK = 0x6F757472  # the advisory lock of the migration

_TYPES = {"text": "text", "real": "float8", "integer": "int8"}
_INSERT = (
    f"INSERT INTO public.outrigger_calls ({', '.join(COLUMN_NAMES)}) SELECT * FROM unnest("
    + ", ".join(f"${at}::{_TYPES[kind]}[]" for at, (_, kind) in enumerate(COLUMNS, 1))
    + f") {ON_CONFLICT}"
)


def _column(name: str, kind: str) -> str:
    key = " PRIMARY KEY" if name == "id" else ""
    return f"{name} {_TYPES[kind]}{'' if name == 'request_id' else ' NOT NULL'}{key}"


_FIRST_COLUMNS = ", ".join(_column(name, kind) for name, kind in COLUMNS[:FIRST_SCHEMA_COLUMNS])

# Never change a step that was released: databases in the field have run it. Add one at the end.
STEPS: Sequence[Sequence[str]] = (
    (
        f"CREATE TABLE public.outrigger_calls ({_FIRST_COLUMNS})",
        "CREATE INDEX outrigger_calls_at ON public.outrigger_calls (at)",
    ),
    (  # an operator's word
        "CREATE TABLE public.outrigger_blocked (user_id text PRIMARY KEY, at float8 NOT NULL)",
        "CREATE TABLE public.outrigger_forgiven (id text PRIMARY KEY, at float8 NOT NULL, upstream text NOT NULL,"
        " user_id text NOT NULL, period text NOT NULL, amount int8 NOT NULL)",
    ),
    # what one user has spent is asked for before a call of theirs, if it is not remembered
    ("CREATE INDEX outrigger_calls_user ON public.outrigger_calls (user_id, at)",),
    (  # calls whose price comes later, by the vendor's own id of them
        "ALTER TABLE public.outrigger_calls ADD COLUMN reference text NOT NULL DEFAULT ''",
        "CREATE INDEX outrigger_calls_reference ON public.outrigger_calls (reference) WHERE reference <> ''",
    ),
    # where the instance runs that made a call
    ("ALTER TABLE public.outrigger_calls ADD COLUMN region text NOT NULL DEFAULT ''",),
)


class PostgresStore:
    """The ledger in one database. `where` is its address without the password."""

    def __init__(self, url: str, *, where: str, steps: Sequence[Sequence[str]] = STEPS) -> None:
        self.where = where
        self._url = without_foreign_options(url)
        self._steps = steps
        self._pool: asyncpg.Pool | None = None
        self._migrated = False

    async def ensure_ready(self, *, create: bool) -> None:
        async with self._connection():
            pass

    async def write_batch(self, entries: Sequence[CallRecord], removals: Sequence[str]) -> None:
        committing = False
        try:
            async with self._connection() as connection, connection.transaction():
                if entries:
                    # One statement for the whole batch: a column is an array, whatever the number of rows.
                    columns = zip(*(entry.row() for entry in entries), strict=True)
                    await connection.execute(_INSERT, *(list(column) for column in columns))
                if removals:
                    await connection.execute(
                        "DELETE FROM public.outrigger_calls WHERE id = ANY($1::text[])", list(removals)
                    )
                # From here on the answer to COMMIT may be lost although it was done.
                committing = True
        except LedgerUnavailable as away:
            raise LedgerUnavailable(str(away), doubtful=committing) from away

    async def prune(self, before: float, at_most: int) -> int:
        async with self._connection() as connection:
            done = await connection.execute(
                "DELETE FROM public.outrigger_calls WHERE id IN (SELECT id FROM public.outrigger_calls"
                # Two instances that prune at once take different rows in place of waiting for each other.
                " WHERE at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED)",
                before,
                at_most,
            )
        return int(done.rpartition(" ")[2])

    async def window_totals(
        self, upstream: str, since: Mapping[str, float], until: float | None
    ) -> dict[str, WindowTotals]:
        found = {}
        async with self._connection() as connection:
            for window, start in since.items():
                rows = await connection.fetch(
                    # The window function sums before LIMIT cuts users off, so the rest needs no second query.
                    "SELECT user_id, sum(cost)::int8, (sum(sum(cost)) OVER ())::int8 FROM public.outrigger_calls"
                    " WHERE upstream = $1 AND at >= $2 AND at < $3 GROUP BY user_id"
                    f" ORDER BY 2 DESC, 1 LIMIT {MAX_USERS_PER_WINDOW}",
                    upstream,
                    start,
                    float("inf") if until is None else until,
                )
                users = {row[0]: row[1] for row in rows}
                found[window] = WindowTotals(users, rows[0][2] - sum(users.values()) if rows else 0)
        return found

    async def user_totals(
        self, upstream: str, users: Sequence[str], since: Mapping[str, float], until: float | None
    ) -> dict[str, UserTotals]:
        # One scan from the earliest beginning serves every window.
        sums = ", ".join(f"coalesce(sum(cost) FILTER (WHERE at >= ${at}), 0)::int8" for at in range(5, 5 + len(since)))
        async with self._connection() as connection:
            rows = await connection.fetch(
                f"SELECT user_id, {sums} FROM public.outrigger_calls WHERE user_id = ANY($1::text[]) AND upstream = $2"
                " AND at >= $3 AND at < $4 GROUP BY user_id",
                list(users),
                upstream,
                min(since.values()),
                float("inf") if until is None else until,
                *since.values(),
            )
        paid = {row[0]: dict(zip(since, row[1:], strict=True)) for row in map(tuple, rows)}
        taken = await self.forgiven_by_user(upstream, since, float("inf") if until is None else until)
        nothing = dict.fromkeys(since, 0)
        return {
            user: UserTotals(paid.get(user, nothing), {window: taken[window].get(user, 0) for window in since})
            for user in users
        }

    async def spent_without(
        self, upstream: str, user: str | None, since: float, until: float, tags: Sequence[str]
    ) -> int:
        async with self._connection() as connection:
            found = await connection.fetchval(
                "SELECT coalesce(sum(cost), 0)::int8 FROM public.outrigger_calls WHERE upstream = $1 AND at >= $2"
                f" AND at < $3 AND ($4::text IS NULL OR user_id = $4) AND left(id, {TAG_LENGTH}) <> ALL ($5::text[])",
                upstream,
                since,
                until,
                user,
                list(tags),
            )
        return int(found)

    async def open_background_calls(self, upstream: str, most: int) -> list[CallRecord]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                f"SELECT {', '.join(COLUMN_NAMES)} FROM public.outrigger_calls"
                " WHERE upstream = $1 AND reference <> '' AND outcome = 'open' ORDER BY at DESC LIMIT $2",
                upstream,
                most,
            )
        return [record_from_row(row) for row in rows]

    async def find_by_reference(self, upstream: str, reference: str) -> CallRecord | None:
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {', '.join(COLUMN_NAMES)} FROM public.outrigger_calls"
                " WHERE reference = $2 AND reference <> '' AND upstream = $1 ORDER BY at DESC LIMIT 1",
                upstream,
                reference,
            )
        return record_from_row(row) if row is not None else None

    async def settled_costs(self, ids: Sequence[str]) -> dict[str, int]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT id, cost FROM public.outrigger_calls WHERE id = ANY($1::text[]) AND outcome <> 'open'",
                list(ids),
            )
        return {row[0]: row[1] for row in rows}

    async def record_forgiven(self, rows: Sequence[ForgivenSpend]) -> None:
        async with self._connection() as connection, connection.transaction():
            await connection.executemany(
                "INSERT INTO public.outrigger_forgiven VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING",
                [(row.id, row.at, row.upstream, row.user, row.period, row.amount) for row in rows],
            )
            newest = max((row.at for row in rows), default=0.0)
            await connection.execute(
                "DELETE FROM public.outrigger_forgiven WHERE at < $1", newest - FORGIVEN_KEPT_SECONDS
            )

    async def forgiven_by_user(
        self, upstream: str, since: Mapping[str, float], until: float
    ) -> dict[str, dict[str, int]]:
        found = {}
        async with self._connection() as connection:
            for window, start in since.items():
                rows = await connection.fetch(
                    "SELECT user_id, sum(amount)::int8 FROM public.outrigger_forgiven"
                    " WHERE upstream = $1 AND period = $2 AND at >= $3 AND at < $4 GROUP BY user_id",
                    upstream,
                    window,
                    start,
                    until,
                )
                found[window] = {row[0]: row[1] for row in rows}
        return found

    async def blocked_users(self) -> list[str]:
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT user_id FROM public.outrigger_blocked ORDER BY at, user_id")
        return [row[0] for row in rows]

    async def set_blocked(self, user: str, at: float | None) -> None:
        async with self._connection() as connection:
            if at is None:
                await connection.execute("DELETE FROM public.outrigger_blocked WHERE user_id = $1", user)
            else:
                await connection.execute(
                    "INSERT INTO public.outrigger_blocked VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING", user, at
                )

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()  # nothing is under way, and a database that hangs must not hold up the end

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """One connection, migrated; what goes wrong with it is LedgerUnavailable or RecordRejected."""
        try:
            if self._pool is None:
                # No connection is kept while nothing happens: databases that are paid by use may go to sleep.
                self._pool = await asyncpg.create_pool(
                    self._url, min_size=0, max_size=2, max_inactive_connection_lifetime=60.0, **_CONNECT_OPTIONS
                )
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT) as connection:
                if not self._migrated:
                    await self._migrate(connection)
                    self._migrated = True
                yield connection
        # Before _STORE_ERRORS, which has their base class: these speak of a row, the others of the database.
        except _RECORD_ERRORS as error:
            raise RecordRejected(f"{self.where}: {error}") from error
        except _STORE_ERRORS as error:
            self._migrated = False  # it may be another database that comes back
            raise LedgerUnavailable(f"{self.where}: {_explain_error(error)}") from error

    async def _migrate(self, connection: Any) -> None:
        if await _schema_version(connection) == len(self._steps):
            return
        async with connection.transaction():
            # A lock of the transaction, since a transaction pooler gives the session to others after it.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS public.outrigger_schema (part text PRIMARY KEY, version int NOT NULL)"
            )
            found = await _schema_version(connection)
            if found > len(self._steps):
                raise newer_schema_error(found, len(self._steps))
            for step in self._steps[found:]:
                for statement in step:
                    await connection.execute(statement, timeout=MIGRATION_TIMEOUT)
            await connection.execute(
                "INSERT INTO public.outrigger_schema VALUES ('ledger', $1)"
                " ON CONFLICT (part) DO UPDATE SET version = excluded.version",
                len(self._steps),
            )


async def read_report(url: str, where: str, by: GroupBy, since: float) -> list[ReportRow]:
    """What a ledger says, the largest spenders first. Raises LedgerUnavailable."""
    name = GROUP_COLUMNS[by]
    try:
        connection = await asyncpg.connect(without_foreign_options(url), **_CONNECT_OPTIONS)
        try:
            version = await _schema_version(connection)
            if version > len(STEPS):
                raise newer_schema_error(version, len(STEPS))
            if version == 0:
                return []
            rows = await connection.fetch(
                f"SELECT {name}, sum(calls), coalesce(sum(calls) FILTER (WHERE status >= 500), 0),"
                f" coalesce(sum(calls) FILTER (WHERE {CACHED}), 0), sum(input_tokens), sum(cached_input_tokens),"
                " sum(output_tokens), sum(cost), sum(estimated) FROM public.outrigger_calls WHERE at >= $1"
                f" GROUP BY {name} ORDER BY sum(cost) DESC, sum(calls) DESC, {name}",
                since,
                timeout=REPORT_TIMEOUT,
            )
            return [ReportRow(row[0], *(int(value) for value in row[1:])) for row in map(tuple, rows)]
        finally:
            # Not close(), which waits for the server's goodbye.
            connection.terminate()
    except (*_RECORD_ERRORS, *_STORE_ERRORS) as error:
        raise LedgerUnavailable(f"{where}: {_explain_error(error)}") from error


async def check_reachable(url: str, where: str) -> int:
    """The version of the schema there, 0 if there is none yet. Raises LedgerUnavailable."""
    try:
        connection = await asyncpg.connect(without_foreign_options(url), **_CONNECT_OPTIONS)
        try:
            return await _schema_version(connection)
        finally:
            connection.terminate()
    except (*_RECORD_ERRORS, *_STORE_ERRORS) as error:
        raise LedgerUnavailable(f"{where}: {_explain_error(error)}") from error


async def _schema_version(connection: Any) -> int:
    """The version of the schema, 0 if there is no ledger yet."""
    # to_regclass is null if there is no such table; a SELECT from it would abort the transaction.
    if not await connection.fetchval("SELECT to_regclass('public.outrigger_schema') IS NOT NULL"):
        return 0
    found = await connection.fetchval("SELECT version FROM public.outrigger_schema WHERE part = 'ledger'")
    return int(found or 0)


def _explain_error(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        text += "; grant its user the schema public, or name another ledger.url"
    return text


_CONNECT_OPTIONS: Mapping[str, Any] = {
    "timeout": CONNECT_TIMEOUT,
    "command_timeout": COMMAND_TIMEOUT,
    # Named statements do not survive behind a transaction pooler (asyncpg's FAQ on pgbouncer).
    "statement_cache_size": 0,
    "server_settings": {"application_name": "outrigger"},
}
_RECORD_ERRORS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
# ValueError: what asyncpg raises for an address that it cannot read.
_STORE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError,
           ValueError)  # fmt: skip
