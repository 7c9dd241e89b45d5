"""The queue in an SQLite file, by default the ledger's: for one instance. All of it runs in one thread of its own.

WAL with `synchronous=FULL`: a commit is on the disk before it returns, so a task that was answered with 202 outlives a
loss of power (sqlite.org/pragma.html#pragma_synchronous). Requests and answers are secrets of users, so that nobody
but the gateway's own user may read the file.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from proxy.ledger.sqlite_queries import explain_error
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.schema import PART, SQLITE_TYPES, STEPS, statements

T = TypeVar("T")

LOCK_TIMEOUT = 5.0  # seconds to wait for the ledger's lock, or another process's
STEP_TIMEOUT = 15.0  # seconds for any one statement: a disk may hang
PRIVATE_MODE = 0o600
_PARAMETER = re.compile(r"\$(\d+)")


class SqliteDatabase:
    """One SQLite file. `clock` is the wall clock."""

    shared = False
    row_lock = wait_lock = ""  # the write lock of the whole file is held anyway
    # There is one instance, and if it was killed its successor should not wait long for what it left.
    lease = 5.0

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.where = str(path)
        self._path = Path(os.path.abspath(path))  # the folder that the process started in
        self._clock = clock
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._turn = asyncio.Lock()  # one transaction at a time: they share the connection

    @asynccontextmanager
    async def transaction(self, *, write: bool = True) -> AsyncIterator[SqliteTransaction]:
        async with self._turn:
            try:
                # The lock at once: one that asks for it only at its first write gets SQLITE_BUSY without a wait.
                await self.run_in_thread(lambda: self._begin("BEGIN IMMEDIATE" if write else "BEGIN"))
                yield SqliteTransaction(self, self._clock())
            # BaseException: a cancelled request must leave no transaction open, whoever is next in line; also one that
            # is cancelled while it begins, since the thread does not hear of that.
            except BaseException:
                await asyncio.shield(self.run_in_thread(self._roll_back))
                raise
            # Shielded: who gave up waiting does not know what became of it, but the next one finds it finished.
            await asyncio.shield(self.run_in_thread(self._commit))

    async def listen(self) -> None:
        """There is nobody else to be heard."""

    async def close(self) -> None:
        if self._thread is not None:
            try:
                await self.run_in_thread(self._close)
            finally:
                self._thread.shutdown(wait=False, cancel_futures=True)
                self._thread = None

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            # A connection of SQLite's belongs to the thread that made it.
            self._thread = ThreadPoolExecutor(1, "tasks")
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._map_errors, work)
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                return await future
        except TimeoutError:
            raise TasksUnavailable(f"{self.where} did not answer in {STEP_TIMEOUT:g} s", doubtful=True) from None

    # ── in the thread ────────────────────────────────────────────────────────────────────────

    def run(self, sql: str, values: Sequence[object]) -> tuple[list[tuple[Any, ...]], int]:
        """The rows of a statement, and how many it changed."""
        assert self._connection is not None
        cursor = self._connection.execute(_PARAMETER.sub(r"?\1", sql), values)
        return cursor.fetchall(), cursor.rowcount

    def run_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        assert self._connection is not None
        self._connection.executemany(_PARAMETER.sub(r"?\1", sql), rows)

    def _map_errors(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            self._close()  # the next try looks at the file anew
            raise TasksUnavailable(explain_error(self.where, error)) from error
        except TasksUnavailable:
            self._close()
            raise

    def _begin(self, statement: str) -> None:
        self._connect().execute(statement)

    def _commit(self) -> None:
        # It is None if a statement failed and whoever ran it went on: nothing of the transaction is left.
        if self._connection is None:
            raise TasksUnavailable(f"{self.where}: the transaction was lost")
        self._connection.execute("COMMIT")

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

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            # Writing into a deleted file would lose every task without an error.
            if self._file_identity() == self._file:
                return self._connection
            self._close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Made by hand, so that nobody else can open it between its making and its mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, PRIVATE_MODE))
        connection = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT, isolation_level=None)
        self._connection = connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-1024")  # KiB
        connection.execute("PRAGMA journal_size_limit=4194304")
        self._migrate(connection)
        self._make_private()
        self._file = self._file_identity()
        return connection

    def _make_private(self) -> None:
        """Also a file that the ledger made, before there were tasks in it, and what SQLite keeps beside it."""
        for suffix in ("", "-wal", "-shm"):
            try:
                path = f"{self._path}{suffix}"
                if stat.S_IMODE(os.stat(path).st_mode) != PRIVATE_MODE:
                    os.chmod(path, PRIVATE_MODE)
            except FileNotFoundError:
                pass

    def _file_identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _migrate(self, connection: sqlite3.Connection) -> None:
        # The ledger's version is the file's `user_version`, so ours has a table, as in PostgreSQL.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS outrigger_schema (part TEXT PRIMARY KEY, version INTEGER NOT NULL)"
        )
        row = connection.execute("SELECT version FROM outrigger_schema WHERE part = ?", (PART,)).fetchone()
        found = int(row[0]) if row is not None else 0
        if found > len(STEPS):
            raise newer_schema_error(found)
        for step in STEPS[found:]:
            for statement in statements(step, SQLITE_TYPES):
                connection.execute(statement)
        connection.execute(
            "INSERT INTO outrigger_schema VALUES (?, ?) ON CONFLICT (part) DO UPDATE SET version = excluded.version",
            (PART, len(STEPS)),
        )
        connection.execute("COMMIT")


class SqliteTransaction:
    """One transaction of a SqliteDatabase."""

    def __init__(self, database: SqliteDatabase, now: float) -> None:
        self._database = database
        self.now = now

    async def fetch(self, sql: str, *values: object) -> Sequence[Sequence[Any]]:
        return (await self._database.run_in_thread(lambda: self._database.run(sql, values)))[0]

    async def execute(self, sql: str, *values: object) -> int:
        return (await self._database.run_in_thread(lambda: self._database.run(sql, values)))[1]

    async def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        await self._database.run_in_thread(lambda: self._database.run_many(sql, rows))

    async def notify(self, text: str) -> None:
        """There is nobody else to be told."""


def newer_schema_error(found: int) -> TasksUnavailable:
    return TasksUnavailable(
        f"its tasks were made by a newer Outrigger (schema {found}, this one knows {len(STEPS)}); "
        "start that one, or name another tasks.url"
    )
