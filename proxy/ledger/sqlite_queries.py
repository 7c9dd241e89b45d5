"""Sums out of the SQLite ledger, for reports and caps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from math import ceil, floor
from pathlib import Path
from urllib.parse import quote

from proxy.ledger.sqlite_schema import LEVELS, STEPS, SUMS, Level, of_row
from proxy.ledger.store import (
    GROUP_COLUMNS,
    MAX_USERS_PER_WINDOW,
    GroupBy,
    LedgerUnavailable,
    ReportRow,
    WindowTotals,
    newer_schema_error,
)

LOCK_TIMEOUT = 2.0  # seconds to wait for a writer's lock
FAR_FUTURE = 1e11  # seconds since the epoch, past everything

# Whole days and hours come from the sums, what is left at either end from the rows.
COARSE = tuple(reversed(LEVELS))
_ROWS = ", ".join(f"{what} AS {name}" for (name, _), what in zip(SUMS, of_row(), strict=True))

_SUMS = ", ".join(name for name, _ in SUMS)


def read_report(path: Path, by: GroupBy, since: float) -> list[ReportRow]:
    """What a ledger says, the largest spenders first; the file is not touched, whoever writes to it.

    Raises LedgerUnavailable, and FileNotFoundError if there is no ledger.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        connection = _open_read_only(path)
        try:
            version = schema_version(connection)
            if version == 0:
                return []  # being made at this moment
            if version > len(STEPS):
                raise newer_schema_error(version, len(STEPS))
            name = GROUP_COLUMNS[by]
            sums = ", ".join(f"SUM({column})" for column, _ in SUMS)
            within, bounds = _sums_between(name, since, None)
            found = connection.execute(
                f"SELECT {name}, {sums} FROM {within} GROUP BY {name} ORDER BY SUM(cost) DESC, SUM(calls) DESC, {name}",
                bounds,
            )
            return [ReportRow(*row) for row in found]
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise LedgerUnavailable(explain_error(str(path), error)) from error


def _open_read_only(path: Path) -> sqlite3.Connection:
    where = f"file:{quote(str(path.absolute()))}"
    connection = sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
    try:
        # SQLite opens a file lazily: only the first query tells whether it can be read.
        schema_version(connection)
    except sqlite3.Error as error:
        connection.close()
        # WAL wants a file of its own beside; a folder that takes none has nothing in the making either.
        if not isinstance(error, sqlite3.OperationalError) or Path(f"{path}-wal").exists():
            raise
        connection = sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)
    return connection


def window_totals(connection: sqlite3.Connection, upstream: str, since: float, until: float | None) -> WindowTotals:
    """What an upstream's users spent between two moments. Raises sqlite3's errors."""
    within, bounds = _sums_between("user_id", since, until, " AND upstream = :upstream")
    found = connection.execute(
        f"SELECT user_id, SUM(cost) FROM {within} GROUP BY user_id ORDER BY SUM(cost) DESC, user_id",
        {"upstream": upstream, **bounds},
    )
    users = dict(found.fetchmany(MAX_USERS_PER_WINDOW))
    # The cursor goes on after the largest spenders: what it still has is the rest.
    return WindowTotals(users, sum(cost for _, cost in found))


def user_totals(
    connection: sqlite3.Connection, upstream: str, users: Sequence[str], since: float, until: float | None
) -> dict[str, int]:
    """What each of these users spent between two moments. Raises sqlite3's errors."""
    named = {f"user{at}": user for at, user in enumerate(users)}
    asked = ", ".join(f":{name}" for name in named)
    within, bounds = _sums_between("user_id", since, until, f" AND upstream = :upstream AND user_id IN ({asked})")
    found = connection.execute(
        f"SELECT user_id, SUM(cost) FROM {within} GROUP BY user_id", {"upstream": upstream, **named, **bounds}
    )
    return dict(found.fetchall())


def _sums_between(name: str, since: float, until: float | None, where: str = "") -> tuple[str, dict[str, float]]:
    """A table of sums under a name that together cover the time between two moments, and its parameters."""
    parts: list[str] = []
    bounds: dict[str, float] = {}
    # The sums are asked for by the number of their hour or day, the rows by their second.
    for table, unit, size, start, end in _spans(since, FAR_FUTURE if until is None else until):
        at = len(parts)
        columns = _SUMS if size else _ROWS
        parts.append(f"SELECT {name}, {columns} FROM {table} WHERE {unit} >= :from{at} AND {unit} < :to{at}{where}")
        bounds |= {f"from{at}": start / size if size else start, f"to{at}": end / size if size else end}
    return f"({' UNION ALL '.join(parts)})", bounds


def _spans(
    since: float, until: float, levels: Sequence[Level] = COARSE
) -> Iterator[tuple[str, str, int, float, float]]:
    """Days in the middle, hours at both their ends, rows at theirs: each from and to, in seconds."""
    if not levels:
        yield "outrigger_calls", "at", 0, since, until
        return
    (table, unit, size), *finer = levels
    # Whole hours or days inside the span come from the sums; both ends are left to the finer level.
    first, last = ceil(since / size) * size, floor(until / size) * size
    if first >= last:
        yield from _spans(since, until, finer)
        return
    yield table, unit, size, first, last
    yield from _spans(since, first, finer)
    yield from _spans(last, until, finer)


def schema_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def explain_error(where: str, error: Exception) -> str:
    """What SQLite says, and what to do if that is known."""
    text = str(error)
    mend = ""
    if "not a database" in text or "malformed" in text:
        mend = "; move it away, and a new one is begun"
    elif "readonly" in text or isinstance(error, PermissionError):
        mend = "; make its folder writable or name another ledger.url"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return f"{where}: {text}{mend}"
