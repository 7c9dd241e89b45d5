"""What the ledger comes to, as a table for people and as CSV for machines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from proxy.ledger.store import GroupBy, ReportRow
from proxy.observe.log_format import printable
from proxy.units import parse_duration

COLUMNS = (
    "calls",
    "errors",
    "cached",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_usd",
    "estimated_usd",
)
TABLE_HEADERS = ("calls", "errors", "cached", "input tokens", "of it cached", "output tokens", "cost $", "estimated $")
DROPPABLE_COLUMNS = (
    "of it cached",
    "estimated $",
    "cached",
    "input tokens",
    "output tokens",
    "errors",
)  # the least missed first
SHOWN = 40  # rows of the table; the CSV has them all
WIDEST = 48  # characters of a name in the table

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_PARTS = re.compile(r"[,;|\t\r\n\"]")

_NAMELESS = {"user": "(nobody)", "model": "(unknown)", "route": "(no request)"}


def parse_moment(text: str, now: float) -> float:
    """Seconds since the epoch of `24h` (ago), `2026-11-26` or `2026-11-26T08:00+01:00`; without a zone it is UTC.

    ValueError in one clause.
    """
    # By its first five characters: `24h` has no year, and a wrong date must not be read as a duration.
    if text[:4].isdigit() and text[4:5] == "-":
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("it is no date or time") from None
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    return now - parse_duration(text)


def format_dollars(nano: int) -> str:
    """Six decimals, rounded half up, out of whole nano-dollars."""
    # In whole numbers: a float would round some sums of many calls the other way.
    micro = (abs(nano) + 500) // 1000
    return f"{'-' if nano < 0 and micro else ''}{micro // 1_000_000}.{micro % 1_000_000:06d}"


def format_csv(sums: Iterable[ReportRow], by: GroupBy) -> str:
    """RFC 4180 but for the line ends, which are those of Unix tools."""
    rows = [(by, *COLUMNS), *((_cell(one.name), *_cells(one)) for one in sums)]
    return "".join(f"{','.join(row)}\n" for row in rows)


def _cell(name: str) -> str:
    """A name as a cell that no spreadsheet computes (OWASP, "CSV Injection"), since clients choose the names.

    It is in quotes if it has a character that any reader takes for the end of a cell.
    """
    # A leading quote makes a spreadsheet take the cell as text; a plain negative number needs none.
    if _FORMULA.match(name) and not _NUMBER.fullmatch(name):
        name = f"'{name}"
    return '"{}"'.format(name.replace('"', '""')) if _PARTS.search(name) else name


def format_rows(sums: Sequence[ReportRow], by: GroupBy) -> list[tuple[str, ...]]:
    """Top spenders first, then what the others come to, then all together."""
    rows = [(_name(one.name, by), *_cells(one, ",")) for one in sums[:SHOWN]]
    # What is not shown is still summed, so that the rows of a table add up to its total.
    if len(sums) > SHOWN:
        others = sum_rows(sums[SHOWN:], f"{len(sums) - SHOWN:,} others")
        rows.append((others.name, *_cells(others, ",")))
    whole = sum_rows(sums, "total")
    return [*rows, (whole.name, *_cells(whole, ","))]


def sum_rows(sums: Iterable[ReportRow], name: str) -> ReportRow:
    columns = [sum(column) for column in zip(*(_numbers(one) for one in sums), strict=True)]
    return ReportRow(name, *columns) if columns else ReportRow(name, 0, 0, 0, 0, 0, 0, 0, 0)


def _numbers(one: ReportRow) -> tuple[int, ...]:
    tokens = (one.input_tokens, one.cached_input_tokens, one.output_tokens)
    return one.calls, one.errors, one.cached, *tokens, one.cost, one.estimated


def _cells(one: ReportRow, thousands: str = "") -> tuple[str, ...]:
    *counts, cost, estimated = _numbers(one)
    return *(f"{count:{thousands}}" for count in counts), format_dollars(cost), format_dollars(estimated)


def _name(name: str, by: GroupBy) -> str:
    shown = printable(name) or _NAMELESS[by]
    return shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 1]}…"
