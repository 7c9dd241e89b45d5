"""One call as the ledger keeps it: no prompt, no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OPEN = "open"  # the outcome of a call under way
REPORTED = "reported"  # the basis of a cost: what the vendor said was used
ESTIMATED = "estimated"
FROM_CACHE = ("hit", "stale", "coalesced")  # answers that were not paid for

# In the order of the fields of CallRecord; a new column goes to the end, as ALTER TABLE puts it there.
COLUMNS = (
    ("id", "text"),
    ("at", "real"),
    ("request_id", "text"),
    ("user_id", "text"),
    ("tier", "text"),
    ("route", "text"),
    ("upstream", "text"),
    ("model", "text"),
    ("input_tokens", "integer"),
    ("cached_input_tokens", "integer"),
    ("output_tokens", "integer"),
    ("reasoning_tokens", "integer"),
    ("cost", "integer"),
    ("estimated", "integer"),
    ("basis", "text"),
    ("attempts", "integer"),
    ("status", "integer"),
    ("outcome", "text"),
    ("cache", "text"),
    ("calls", "integer"),
    ("reference", "text"),
    ("region", "text"),
)
FIRST_SCHEMA_COLUMNS = 20  # columns that the first schema had

Row = tuple[str | float | int | None, ...]

_LONGEST = 256  # characters of a text
_LARGEST = 2**63 - 1


@dataclass(slots=True)
class CallRecord:
    """One call. Money is whole nano-dollars (1e-9 $) in 64-bit integers, never a float."""

    id: str  # 32 hex digits, made by the caller; a later entry of the same id replaces the earlier
    at: float  # wall clock, seconds since the epoch, when the call began
    request_id: str | None
    user: str
    tier: str
    route: str  # "" if it belongs to no request
    upstream: str
    model: str  # "" if unknown
    input_tokens: int = 0  # cached ones included
    cached_input_tokens: int = 0
    output_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0
    cost: int = 0  # nano-dollars
    estimated: int = 0  # the part of cost that rests on an estimate
    basis: str = ""  # reported | estimated | "" (nothing was spent)
    attempts: int = 0
    status: int = 0
    outcome: str = ""  # ok error refused cached fallback gone, or `open` while under way
    cache: str = "off"
    calls: int = 1  # more if a full backlog was summed up
    reference: str = ""  # the vendor's id of what it goes on with, by which the price comes later
    region: str = ""  # of the instance that made it (store.region)

    def row(self) -> Row:
        """The values of COLUMNS, fit for either database: a name that a client chose must not hold up the rest."""
        return (
            _text(self.id),
            float(self.at),
            None if self.request_id is None else _text(self.request_id),
            _text(self.user),
            _text(self.tier),
            _text(self.route),
            _text(self.upstream),
            _text(self.model),
            _whole(self.input_tokens),
            _whole(self.cached_input_tokens),
            _whole(self.output_tokens),
            _whole(self.reasoning_tokens),
            _whole(self.cost),
            _whole(self.estimated),
            _text(self.basis),
            _whole(self.attempts),
            _whole(self.status),
            _text(self.outcome),
            _text(self.cache),
            _whole(self.calls),
            _text(self.reference),
            _text(self.region),
        )


def record_from_row(row: Sequence[Any]) -> CallRecord:
    """The entry of a row of COLUMNS."""
    return CallRecord(*row)


def _text(text: str) -> str:
    """PostgreSQL takes no NUL, and neither database a lone surrogate."""
    # Names come from clients and apps, so what is kept of them has a bound.
    if len(text) > _LONGEST:
        text = text[:_LONGEST]
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _whole(number: int) -> int:
    # Both databases have 64-bit integers; Python and JSON have numbers that are larger.
    return max(-_LARGEST, min(_LARGEST, int(number)))
