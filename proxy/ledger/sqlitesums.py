"""Sums out of the SQLite ledger: what a report and the caps ask for."""

from __future__ import annotations

import sqlite3
from math import ceil
from pathlib import Path
from urllib.parse import quote

from proxy.ledger.database import BY, HOUR, USERS, By, LedgerAway, Spent, Sum, newer
from proxy.ledger.sqliteschema import STEPS, SUMS, of_row

PATIENCE = 2.0  # seconds to wait for a writer's lock
FAR = 1e11  # seconds since the epoch, past everything

# Whole hours come from the sums, what is left at either end from the rows.
_ROWS = ", ".join(f"{what} AS {name}" for (name, _), what in zip(SUMS, of_row(), strict=True))
_WITHIN = (
    f"(SELECT {{name}}, {_ROWS} FROM outrigger_calls WHERE at >= :since AND at < :whole {{where}} "
    f"UNION ALL SELECT {{name}}, {_ROWS} FROM outrigger_calls WHERE at >= :rest AND at < :until {{where}} "
    f"UNION ALL SELECT {{name}}, {', '.join(name for name, _ in SUMS)} FROM outrigger_hours "
    "WHERE hour >= :first AND hour < :last {where})"
)


def read(path: Path, by: By, since: float) -> list[Sum]:
    """What a ledger says, the largest spenders first; the file is not touched, whoever writes to it.

    Raises LedgerAway, and FileNotFoundError where there is no ledger.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        connection = _reader(path)
        try:
            version = version_of(connection)
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
        raise LedgerAway(why(str(path), error)) from error


def _reader(path: Path) -> sqlite3.Connection:
    where = f"file:{quote(str(path.absolute()))}"
    connection = sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=PATIENCE, isolation_level=None)
    try:
        version_of(connection)
    except sqlite3.Error as error:
        connection.close()
        # WAL wants a file of its own beside; a folder that takes none has nothing in the making either.
        if not isinstance(error, sqlite3.OperationalError) or Path(f"{path}-wal").exists():
            raise
        connection = sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)
    return connection


def _bounds(since: float, until: float | None) -> dict[str, float]:
    """The whole hours between two moments (`first` to `last`), and the moments around them."""
    end = FAR if until is None else until
    first, last = ceil(since / HOUR), int(end // HOUR)
    whole = min(first * HOUR, end)
    rest = max(last * HOUR, whole)
    return {"since": since, "whole": whole, "first": first, "last": last, "rest": rest, "until": end}


def spent(connection: sqlite3.Connection, upstream: str, since: float, until: float | None) -> Spent:
    """What an upstream's users spent between two moments. Raises sqlite3's errors."""
    where = {"upstream": upstream, **_bounds(since, until)}
    within = _WITHIN.format(name="user_id", where="AND upstream = :upstream")
    found = connection.execute(
        f"SELECT user_id, SUM(cost) FROM {within} GROUP BY user_id ORDER BY SUM(cost) DESC, user_id",
        where,
    )
    users = dict(found.fetchmany(USERS))
    return Spent(users, sum(cost for _, cost in found))


def version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def why(where: str, error: Exception) -> str:
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
