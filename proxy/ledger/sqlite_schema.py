"""The tables of the SQLite ledger: what each version of the schema adds to the one before.

`outrigger_hours` and `outrigger_days` are what `outrigger_calls` comes to by hour or day, user, upstream, model
and route. Triggers keep them in step within each transaction, whoever writes: by hand too.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.ledger.record import COLUMNS, FIRST_SCHEMA_COLUMNS
from proxy.ledger.store import CACHED

Level = tuple[str, str, int]  # a table of sums, its key and the seconds of that
LEVELS: tuple[Level, ...] = (("outrigger_hours", "hour", 3600), ("outrigger_days", "day", 86400))
KEY = ("user_id", "upstream", "model", "route")
# What is summed up; {row} is empty, or the row of a trigger with a dot.
SUMS = (
    ("calls", "{row}calls"),
    ("errors", "CASE WHEN {row}status >= 500 THEN {row}calls ELSE 0 END"),
    ("cached", f"CASE WHEN {{row}}{CACHED} THEN {{row}}calls ELSE 0 END"),
    ("input_tokens", "{row}input_tokens"),
    ("cached_input_tokens", "{row}cached_input_tokens"),
    ("output_tokens", "{row}output_tokens"),
    ("cost", "{row}cost"),
    ("estimated", "{row}estimated"),
)

_OPTIONAL = ("request_id",)


def _column(name: str, kind: str) -> str:
    key = " PRIMARY KEY" if name == "id" else ""
    return f"{name} {kind.upper()}{'' if name in _OPTIONAL else ' NOT NULL'}{key}"


def of_row(row: str = "") -> list[str]:
    return [what.format(row=row) for _, what in SUMS]


def _add(table: str, unit: str, seconds: int) -> str:
    """Count a row of a trigger in."""
    values = [f"CAST(NEW.at / {seconds} AS INTEGER)", *(f"NEW.{name}" for name in KEY), *of_row("NEW.")]
    return (
        f"INSERT INTO {table} ({unit}, {', '.join(KEY)}, {', '.join(name for name, _ in SUMS)})"
        f" VALUES ({', '.join(values)}) ON CONFLICT ({unit}, {', '.join(KEY)}) DO UPDATE SET "
        + ", ".join(f"{name} = {name} + excluded.{name}" for name, _ in SUMS)
        + ";"
    )


def _take(table: str, unit: str, seconds: int) -> str:
    """Count the row that was there before out, and clear what comes to nothing."""
    mine = [f"{unit} = CAST(OLD.at / {seconds} AS INTEGER)", *(f"{name} = OLD.{name}" for name in KEY)]
    less = (f"{name} = {name} - {what}" for (name, _), what in zip(SUMS, of_row("OLD."), strict=True))
    return (
        f"UPDATE {table} SET {', '.join(less)} WHERE {' AND '.join(mine)};"
        f" DELETE FROM {table} WHERE {' AND '.join(mine)} AND calls <= 0;"
    )


def _table(table: str, unit: str, _: int) -> str:
    columns = [f"{unit} INTEGER NOT NULL", *(f"{name} TEXT NOT NULL" for name in KEY)]
    columns += [f"{name} INTEGER NOT NULL" for name, _ in SUMS]
    return f"CREATE TABLE {table} ({', '.join(columns)}, PRIMARY KEY ({unit}, {', '.join(KEY)})) WITHOUT ROWID"


_ADD = " ".join(_add(*level) for level in LEVELS)
_TAKE = " ".join(_take(*level) for level in LEVELS)

_FIRST_COLUMNS = ", ".join(_column(name, kind) for name, kind in COLUMNS[:FIRST_SCHEMA_COLUMNS])

# Never change a step that was released: databases in the field have run it. Add one at the end.
STEPS: Sequence[Sequence[str]] = (
    (
        f"CREATE TABLE outrigger_calls ({_FIRST_COLUMNS})",
        "CREATE INDEX outrigger_calls_at ON outrigger_calls (at)",
        *(_table(*level) for level in LEVELS),
        f"CREATE TRIGGER outrigger_calls_added AFTER INSERT ON outrigger_calls BEGIN {_ADD} END",
        # A change may move a row to another key (its model becomes known), hence out and in again.
        f"CREATE TRIGGER outrigger_calls_changed AFTER UPDATE ON outrigger_calls BEGIN {_TAKE} {_ADD} END",
        f"CREATE TRIGGER outrigger_calls_removed AFTER DELETE ON outrigger_calls BEGIN {_TAKE} END",
    ),
    (  # an operator's word
        "CREATE TABLE outrigger_blocked (user_id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID",
        "CREATE TABLE outrigger_forgiven (id TEXT PRIMARY KEY, at REAL NOT NULL, upstream TEXT NOT NULL,"
        " user_id TEXT NOT NULL, period TEXT NOT NULL, amount INTEGER NOT NULL)",
    ),
    # what one user has spent is asked for before a call of theirs, if it is not remembered
    tuple(f"CREATE INDEX {table}_user ON {table} (user_id, upstream, {unit})" for table, unit, _ in LEVELS),
    (  # calls whose price comes later, by the vendor's own id of them
        "ALTER TABLE outrigger_calls ADD COLUMN reference TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX outrigger_calls_reference ON outrigger_calls (reference) WHERE reference <> ''",
    ),
    # where the instance runs that made a call
    ("ALTER TABLE outrigger_calls ADD COLUMN region TEXT NOT NULL DEFAULT ''",),
)
