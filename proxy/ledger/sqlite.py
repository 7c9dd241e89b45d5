"""The ledger in an SQLite file, all of it in one thread of its own.

WAL with `synchronous=NORMAL`: a commit is a write into the page cache, which outlives the process whatever
kills it, so `kill -9` loses nothing committed. Only a machine that loses power can lose the last commits,
and it cannot break the file (sqlite.org/pragma.html#pragma_synchronous).

Reports would have to sort a million rows; so triggers keep sums by hour and day beside them, in the same transaction.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import TypeVar

from proxy.ledger.record import CallRecord, record_from_row
from proxy.ledger.sqlite_queries import FAR_FUTURE, explain_error, schema_version, user_totals, window_totals
from proxy.ledger.sqlite_schema import STEPS
from proxy.ledger.store import (
    COLUMN_NAMES,
    FORGIVEN_KEPT_SECONDS,
    ON_CONFLICT,
    TAG_LENGTH,
    ForgivenSpend,
    LedgerUnavailable,
    RecordRejected,
    UserTotals,
    WindowTotals,
    newer_schema_error,
)

T = TypeVar("T")

LOCK_TIMEOUT = 2.0  # seconds to wait for another process's lock
LOCK_RETRY_SECONDS = 0.02  # if SQLite itself does not wait
STEP_TIMEOUT = 15.0  # seconds for any one step: a disk may hang

_COLUMNS = ", ".join(COLUMN_NAMES)
_INSERT = f"INSERT INTO outrigger_calls ({_COLUMNS}) VALUES ({', '.join('?' * len(COLUMN_NAMES))}) {ON_CONFLICT}"


class SqliteStore:
    """The ledger in one SQLite file. `steps` bring its schema up to date, one for each version."""

    def __init__(self, path: Path, *, steps: Sequence[Sequence[str]] = STEPS, busy: float = LOCK_TIMEOUT) -> None:
        self.where = str(path)
        self._path = Path(os.path.abspath(path))  # the folder that the process started in
        self._steps = steps
        self._busy = busy
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    async def ensure_ready(self, *, create: bool) -> None:
        await self._run_in_thread(lambda: self._connect(create))

    async def write_batch(self, entries: Sequence[CallRecord], removals: Sequence[str]) -> None:
        await self._run_in_thread(lambda: self._write(entries, removals))

    async def prune(self, before: float, at_most: int) -> int:
        return await self._run_in_thread(lambda: self._prune(before, at_most))

    async def window_totals(
        self, upstream: str, since: Mapping[str, float], until: float | None
    ) -> dict[str, WindowTotals]:
        return await self._run_in_thread(lambda: self._spent(upstream, since, until))

    async def user_totals(
        self, upstream: str, users: Sequence[str], since: Mapping[str, float], until: float | None
    ) -> dict[str, UserTotals]:
        return await self._run_in_thread(lambda: self._standing(upstream, users, since, until))

    async def spent_without(
        self, upstream: str, user: str | None, since: float, until: float, tags: Sequence[str]
    ) -> int:
        return await self._run_in_thread(lambda: self._spent_without(upstream, user, since, until, tags))

    async def open_background_calls(self, upstream: str, most: int) -> list[CallRecord]:
        where = "upstream = ? AND reference <> '' AND outcome = 'open' ORDER BY at DESC LIMIT ?"
        return await self._run_in_thread(lambda: self._rows(where, (upstream, most)))

    async def find_by_reference(self, upstream: str, reference: str) -> CallRecord | None:
        where = "reference = ? AND reference <> '' AND upstream = ? ORDER BY at DESC LIMIT 1"
        return next(iter(await self._run_in_thread(lambda: self._rows(where, (reference, upstream)))), None)

    async def settled_costs(self, ids: Sequence[str]) -> dict[str, int]:
        where = f"id IN ({', '.join('?' * len(ids))}) AND outcome <> 'open'"
        return {entry.id: entry.cost for entry in await self._run_in_thread(lambda: self._rows(where, ids))}

    async def record_forgiven(self, rows: Sequence[ForgivenSpend]) -> None:
        await self._run_in_thread(lambda: self._forgive(rows))

    async def forgiven_by_user(
        self, upstream: str, since: Mapping[str, float], until: float
    ) -> dict[str, dict[str, int]]:
        return await self._run_in_thread(lambda: self._forgiven(upstream, since, until))

    async def blocked_users(self) -> list[str]:
        return await self._run_in_thread(self._blocked)

    async def set_blocked(self, user: str, at: float | None) -> None:
        await self._run_in_thread(lambda: self._block(user, at))

    async def close(self) -> None:
        if self._thread is not None:
            try:
                await self._run_in_thread(self._close)
            finally:
                self._thread.shutdown(wait=False, cancel_futures=True)
                self._thread = None

    async def _run_in_thread(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            # One thread: a SQLite connection belongs to the thread that made it, and writes are one at a time anyway.
            self._thread = ThreadPoolExecutor(1, "ledger")
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._map_errors, work)
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                return await future
        except TimeoutError:
            # The thread cannot be interrupted: the write may still happen after we have given up.
            raise LedgerUnavailable(f"{self.where} did not answer in {STEP_TIMEOUT:g} s", doubtful=True) from None

    # ── in the thread ────────────────────────────────────────────────────────────────────────

    def _map_errors(self, work: Callable[[], T]) -> T:
        try:
            return work()
        # Before sqlite3.Error, their base class: these speak of a row, the others of the file.
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError) as error:
            # The connection stays usable: a rejected record says nothing about the file.
            self._roll_back()
            raise RecordRejected(f"{self.where}: {error}") from error
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            self._close()  # the next try looks at the file anew
            raise LedgerUnavailable(explain_error(self.where, error)) from error
        except LedgerUnavailable:
            self._close()
            raise

    def _roll_back(self) -> None:
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # closing it does the same

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                connection.close()
        except sqlite3.Error:
            pass

    def _connect(self, create: bool) -> sqlite3.Connection | None:
        if self._connection is not None:
            # One stat for each batch: writing into a deleted file would lose everything without an error.
            if self._file_identity() == self._file:
                return self._connection
            self._close()  # somebody moved or removed the file: what is written to it now is lost
        if not create and not self._path.exists():
            return None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Transactions are begun by hand: the driver's own are DEFERRED, and those may fail at their first write.
        connection = sqlite3.connect(self._path, timeout=self._busy, isolation_level=None)
        self._connection = connection
        self._set_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        # Negative: KiB, not pages. The journal is cut back to 4 MiB after a burst, which would otherwise keep its size.
        connection.execute("PRAGMA cache_size=-1024")
        connection.execute("PRAGMA journal_size_limit=4194304")
        self._migrate(connection)
        self._file = self._file_identity()
        return connection

    def _set_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL; if the file system cannot have it, the journal stays as it is.

        SQLite does not wait for another process that does the same, since both could wait for ever.
        """
        for left in reversed(range(int(self._busy / LOCK_RETRY_SECONDS) + 1)):
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if not left or "locked" not in str(error):
                    raise
                sleep(LOCK_RETRY_SECONDS)

    def _file_identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _migrate(self, connection: sqlite3.Connection) -> None:
        # Looked at without the lock first: all starts but one find nothing to do.
        if schema_version(connection) == len(self._steps):
            return
        # The version is read again under the lock: another process may have migrated meanwhile.
        connection.execute("BEGIN IMMEDIATE")  # another instance may be at it
        found = schema_version(connection)
        if found > len(self._steps):
            raise newer_schema_error(found, len(self._steps))
        for at in range(found, len(self._steps)):
            for statement in self._steps[at]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={len(self._steps)}")
        connection.execute("COMMIT")

    def _spent_without(self, upstream: str, user: str | None, since: float, until: float, tags: Sequence[str]) -> int:
        connection = self._connect(False)
        if connection is None:
            return 0
        whose, values = ("", []) if user is None else (" AND user_id = ?", [user])
        found = connection.execute(
            "SELECT coalesce(sum(cost), 0) FROM outrigger_calls WHERE at >= ? AND at < ? AND upstream = ?"
            f"{whose} AND substr(id, 1, {TAG_LENGTH}) NOT IN ({', '.join('?' * len(tags))})",
            (since, until, upstream, *values, *tags),
        )
        return int(found.fetchone()[0])

    def _write(self, entries: Sequence[CallRecord], removals: Sequence[str]) -> None:
        connection = self._connect(True)
        assert connection is not None
        # The lock at once: a transaction that asks for it only at its first write gets SQLITE_BUSY without any wait
        # (sqlite.org/lang_transaction.html, "Read transactions versus write transactions").
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, [entry.row() for entry in entries])
        connection.executemany("DELETE FROM outrigger_calls WHERE id = ?", [(id,) for id in removals])
        connection.execute("COMMIT")

    def _prune(self, before: float, at_most: int) -> int:
        connection = self._connect(False)
        if connection is None:
            return 0
        # The subselect stands in for DELETE … LIMIT, which most builds of SQLite lack.
        done = connection.execute(
            "DELETE FROM outrigger_calls WHERE rowid IN "
            "(SELECT rowid FROM outrigger_calls WHERE at < ? ORDER BY at LIMIT ?)",
            (before, at_most),
        )
        return done.rowcount

    def _spent(self, upstream: str, since: Mapping[str, float], until: float | None) -> dict[str, WindowTotals]:
        connection = self._connect(False)
        if connection is None:
            return {window: WindowTotals({}, 0) for window in since}
        return {window: window_totals(connection, upstream, start, until) for window, start in since.items()}

    def _standing(
        self, upstream: str, users: Sequence[str], since: Mapping[str, float], until: float | None
    ) -> dict[str, UserTotals]:
        connection = self._connect(False)
        if connection is None:
            return {user: UserTotals({}, {}) for user in users}
        paid = {window: user_totals(connection, upstream, users, start, until) for window, start in since.items()}
        taken = self._forgiven(upstream, since, FAR_FUTURE if until is None else until)
        return {
            user: UserTotals(*({w: found[w].get(user, 0) for w in since} for found in (paid, taken))) for user in users
        }

    def _rows(self, where: str, values: Sequence[object]) -> list[CallRecord]:
        connection = self._connect(False)
        if connection is None:
            return []
        found = connection.execute(
            f"SELECT {', '.join(COLUMN_NAMES)} FROM outrigger_calls WHERE {where}", tuple(values)
        )
        return [record_from_row(row) for row in found]

    def _forgive(self, rows: Sequence[ForgivenSpend]) -> None:
        connection = self._connect(True)
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO outrigger_forgiven VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            [(row.id, row.at, row.upstream, row.user, row.period, row.amount) for row in rows],
        )
        # By the newest row and not by a clock: the store has none.
        newest = max((row.at for row in rows), default=0.0)
        connection.execute("DELETE FROM outrigger_forgiven WHERE at < ?", (newest - FORGIVEN_KEPT_SECONDS,))
        connection.execute("COMMIT")

    def _forgiven(self, upstream: str, since: Mapping[str, float], until: float) -> dict[str, dict[str, int]]:
        connection = self._connect(False)
        if connection is None:
            return {window: {} for window in since}
        return {
            window: dict(
                connection.execute(
                    "SELECT user_id, SUM(amount) FROM outrigger_forgiven"
                    " WHERE upstream = ? AND period = ? AND at >= ? AND at < ? GROUP BY user_id",
                    (upstream, window, start, until),
                )
            )
            for window, start in since.items()
        }

    def _blocked(self) -> list[str]:
        connection = self._connect(False)
        if connection is None:
            return []
        return [user for (user,) in connection.execute("SELECT user_id FROM outrigger_blocked ORDER BY at, user_id")]

    def _block(self, user: str, at: float | None) -> None:
        connection = self._connect(at is not None)
        if connection is None:
            return
        if at is None:
            connection.execute("DELETE FROM outrigger_blocked WHERE user_id = ?", (user,))
        else:
            connection.execute(
                "INSERT INTO outrigger_blocked VALUES (?, ?) ON CONFLICT (user_id) DO NOTHING", (user, at)
            )
