"""The tables of the SQLite ledger: what each version of the schema adds to the one before.

`outrigger_hours` is what `outrigger_calls` comes to by hour, user, upstream, model and route. Triggers keep it
in step within each transaction, whoever writes: by hand too.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.ledger.database import CACHED
from proxy.ledger.entry import COLUMNS

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


_HOUR = "CAST({row}.at / 3600 AS INTEGER)"
_ADD = (
    f"INSERT INTO outrigger_hours (hour, {', '.join(KEY)}, {', '.join(name for name, _ in SUMS)}) VALUES ("
    + ", ".join([_HOUR.format(row="NEW"), *(f"NEW.{name}" for name in KEY), *of_row("NEW.")])
    + f") ON CONFLICT (hour, {', '.join(KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name, _ in SUMS)
)
_MATCH = f"hour = {_HOUR.format(row='OLD')} AND " + " AND ".join(f"{name} = OLD.{name}" for name in KEY)
_TAKE = (
    "UPDATE outrigger_hours SET "
    + ", ".join(f"{name} = {name} - {what}" for (name, _), what in zip(SUMS, of_row("OLD."), strict=True))
    + f" WHERE {_MATCH}"
)
_CLEAR = f"DELETE FROM outrigger_hours WHERE {_MATCH} AND calls <= 0"

STEPS: Sequence[Sequence[str]] = (
    (
        f"CREATE TABLE outrigger_calls ({', '.join(_column(name, kind) for name, kind in COLUMNS)})",
        "CREATE INDEX outrigger_calls_at ON outrigger_calls (at)",
        f"CREATE TABLE outrigger_hours (hour INTEGER NOT NULL, {', '.join(f'{name} TEXT NOT NULL' for name in KEY)}, "
        f"{', '.join(f'{name} INTEGER NOT NULL' for name, _ in SUMS)}, PRIMARY KEY (hour, {', '.join(KEY)})) "
        "WITHOUT ROWID",
        f"CREATE TRIGGER outrigger_calls_added AFTER INSERT ON outrigger_calls BEGIN {_ADD}; END",
        f"CREATE TRIGGER outrigger_calls_changed AFTER UPDATE ON outrigger_calls BEGIN {_TAKE}; {_CLEAR}; {_ADD}; END",
        f"CREATE TRIGGER outrigger_calls_removed AFTER DELETE ON outrigger_calls BEGIN {_TAKE}; {_CLEAR}; END",
    ),
)
