"""The ledger in an SQLite file, all of it in one thread of its own.

WAL with `synchronous=NORMAL`: a commit is a write into the page cache, which outlives the process whatever
kills it, so `kill -9` loses nothing committed. Only a machine that loses power can lose the last commits,
and it cannot break the file (sqlite.org/pragma.html#pragma_synchronous).

Reports would have to sort a million rows; so triggers keep sums by hour beside them, in the same transaction.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from time import sleep
from typing import TypeVar
from urllib.parse import quote

from proxy.ledger.database import (
    BY,
    HOUR,
    NAMES,
    ON_CONFLICT,
    USERS,
    By,
    LedgerAway,
    Spent,
    Sum,
    Unwritable,
    newer,
)
from proxy.ledger.entry import Entry
from proxy.ledger.sqliteschema import STEPS, SUMS, of_row

T = TypeVar("T")

BUSY = 2.0  # seconds to wait for another process's lock
STEP = 0.02  # seconds between tries where SQLite itself does not wait
PATIENCE = 15.0  # seconds for any one step: a disk may hang
FAR = 1e11  # seconds since the epoch, past everything

_INSERT = f"INSERT INTO outrigger_calls ({', '.join(NAMES)}) VALUES ({', '.join('?' * len(NAMES))}) {ON_CONFLICT}"
# Whole hours come from the sums, what is left at either end from the rows.
_ROWS = ", ".join(f"{what} AS {name}" for (name, _), what in zip(SUMS, of_row(), strict=True))
_WITHIN = (
    f"(SELECT {{name}}, {_ROWS} FROM outrigger_calls WHERE at >= :since AND at < :whole {{where}} "
    f"UNION ALL SELECT {{name}}, {_ROWS} FROM outrigger_calls WHERE at >= :rest AND at < :until {{where}} "
    f"UNION ALL SELECT {{name}}, {', '.join(name for name, _ in SUMS)} FROM outrigger_hours "
    "WHERE hour >= :first AND hour < :last {where})"
)


class Sqlite:
    """`steps` brings a schema up to date, one a version."""

    def __init__(self, path: Path, *, steps: Sequence[Sequence[str]] = STEPS, busy: float = BUSY) -> None:
        self.where = str(path)
        self._path = Path(os.path.abspath(path))  # the folder that the process started in
        self._steps = steps
        self._busy = busy
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    async def ready(self, *, create: bool) -> None:
        await self._do(lambda: self._ready(create))

    async def write(self, entries: Sequence[Entry], removals: Sequence[str]) -> None:
        await self._do(lambda: self._write(entries, removals))

    async def prune(self, before: float, at_most: int) -> int:
        return await self._do(lambda: self._prune(before, at_most))

    async def spent(self, upstream: str, since: Mapping[str, float], until: float | None) -> dict[str, Spent]:
        return await self._do(lambda: self._spent(upstream, since, until))

    async def close(self) -> None:
        if self._thread is not None:
            try:
                await self._do(self._close)
            finally:
                self._thread.shutdown(wait=False, cancel_futures=True)
                self._thread = None

    async def _do(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "ledger")
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._mapped, work)
        try:
            async with asyncio.timeout(PATIENCE):
                return await future
        except TimeoutError:
            raise LedgerAway(f"{self.where} did not answer in {PATIENCE:g} s", doubtful=True) from None

    # ── in the thread ────────────────────────────────────────────────────────────────────────

    def _mapped(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError) as error:
            self._undo()
            raise Unwritable(f"{self.where}: {error}") from error
        except (sqlite3.Error, OSError) as error:
            self._undo()
            self._close()  # the next try looks at the file anew
            raise LedgerAway(_why(self.where, error)) from error
        except LedgerAway:
            self._close()
            raise

    def _undo(self) -> None:
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

    def _ready(self, create: bool) -> sqlite3.Connection | None:
        if self._connection is not None:
            if self._identity() == self._file:
                return self._connection
            self._close()  # somebody moved or removed the file: what is written to it now is lost
        if not create and not self._path.exists():
            return None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=self._busy, isolation_level=None)
        self._connection = connection
        self._journal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA cache_size=-1024")
        connection.execute("PRAGMA journal_size_limit=4194304")
        self._migrate(connection)
        self._file = self._identity()
        return connection

    def _journal(self, connection: sqlite3.Connection) -> None:
        """To WAL; where a file system cannot have it, the journal stays as it is.

        SQLite does not wait for another who is doing the same, since both could wait for ever.
        """
        for left in reversed(range(int(self._busy / STEP) + 1)):
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if not left or "locked" not in str(error):
                    raise
                sleep(STEP)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == len(self._steps):
            return
        connection.execute("BEGIN IMMEDIATE")  # another instance may be at it
        found = _version(connection)
        if found > len(self._steps):
            raise newer(found, len(self._steps))
        for at in range(found, len(self._steps)):
            for statement in self._steps[at]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={len(self._steps)}")
        connection.execute("COMMIT")

    def _write(self, entries: Sequence[Entry], removals: Sequence[str]) -> None:
        connection = self._ready(True)
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, [entry.row() for entry in entries])
        connection.executemany("DELETE FROM outrigger_calls WHERE id = ?", [(id,) for id in removals])
        connection.execute("COMMIT")

    def _prune(self, before: float, at_most: int) -> int:
        connection = self._ready(False)
        if connection is None:
            return 0
        done = connection.execute(
            "DELETE FROM outrigger_calls WHERE rowid IN "
            "(SELECT rowid FROM outrigger_calls WHERE at < ? ORDER BY at LIMIT ?)",
            (before, at_most),
        )
        return done.rowcount

    def _spent(self, upstream: str, since: Mapping[str, float], until: float | None) -> dict[str, Spent]:
        connection = self._ready(False)
        if connection is None:
            return {window: Spent({}, 0) for window in since}
        return {
            window: _spent(connection, {"upstream": upstream, **_bounds(start, until)})
            for window, start in since.items()
        }


def read(path: Path, by: By, since: float) -> list[Sum]:
    """What a ledger says, the largest spenders first; the file is not touched, whoever writes to it.

    Raises LedgerAway, and FileNotFoundError where there is no ledger.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        connection = _reader(path)
        try:
            version = _version(connection)
            if version == 0:
                return []  # being made at this moment
            if version > len(STEPS):
                raise newer(version, len(STEPS))
            name = BY[by]
            sums = ", ".join(f"SUM({column})" for column, _ in SUMS)
            found = connection.execute(
                f"SELECT {name}, {sums} FROM {_WITHIN.format(name=name, where='')} "
                f"GROUP BY {name} ORDER BY SUM(cost) DESC, SUM(calls) DESC, {name}",
                _bounds(since, None),
            )
            return [Sum(*row) for row in found]
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise LedgerAway(_why(str(path), error)) from error


def _reader(path: Path) -> sqlite3.Connection:
    where = f"file:{quote(str(path.absolute()))}"
    connection = sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=BUSY, isolation_level=None)
    try:
        _version(connection)
    except sqlite3.OperationalError:
        # WAL wants a file of its own beside; a folder that takes none has nothing in the making either.
        connection.close()
        if Path(f"{path}-wal").exists():
            raise
        connection = sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _bounds(since: float, until: float | None) -> dict[str, float]:
    """The whole hours between two moments (`first` to `last`), and the moments around them."""
    end = FAR if until is None else until
    first, last = ceil(since / HOUR), int(end // HOUR)
    whole = min(first * HOUR, end)
    rest = max(last * HOUR, whole)
    return {"since": since, "whole": whole, "first": first, "last": last, "rest": rest, "until": end}


def _spent(connection: sqlite3.Connection, where: dict[str, float | str]) -> Spent:
    within = _WITHIN.format(name="user_id", where="AND upstream = :upstream")
    found = connection.execute(
        f"SELECT user_id, SUM(cost) FROM {within} GROUP BY user_id ORDER BY SUM(cost) DESC, user_id",
        where,
    )
    users = dict(found.fetchmany(USERS))
    return Spent(users, sum(cost for _, cost in found))


def _why(where: str, error: Exception) -> str:
    """What SQLite says, and what to do where that is known."""
    text = str(error)
    mend = ""
    if "not a database" in text or "malformed" in text:
        mend = "; move it away, and a new one is begun"
    elif "readonly" in text or isinstance(error, PermissionError):
        mend = "; make its folder writable or name another ledger.url"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return f"{where}: {text}{mend}"
