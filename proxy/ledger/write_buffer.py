"""What waits to be written: decided here, without a database or a clock of its own.

A call is open until it is settled or dropped. Those open for longer than `OPEN_AFTER` are written at their
reservation, so that a crash gives no money back; the settled row takes their place under the same id.

Past its bound the oldest settled rows are summed up by quarter of an hour, user, upstream, model and route,
so that no money is lost: every time zone is a whole number of quarters from UTC, hence each sum lies within
one hour, day and month of any cap. What the database may know already under its id is never summed up, since
it would then count twice.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeVar
from uuid import uuid4

from proxy.ledger.record import ESTIMATED, OPEN, CallRecord
from proxy.ledger.store import TAG_LENGTH
from proxy.util.user_names import VARIOUS_USERS

OPEN_AFTER = 0.3  # seconds that a call is under way before it is worth a row
MAX_BATCH_ROWS = 500
MAX_ROWS = 20_000  # rows, about 12 MiB
SHOWN = 20_000  # open calls that are known to be in the store, at most

_QUARTER = 900.0
_FOLD = 500  # rows at a time: 1 ms

K = TypeVar("K")
Key = tuple[int, str, str, str, str, str, str, str, str, bool]


@dataclass(slots=True)
class Batch:
    """Rows and removals on their way to the database.

    `open_calls` are calls under way, each with the time (clock) that it began at; `maybe_written` are the ids that the
    database may have since an earlier try.
    """

    settled: list[CallRecord]
    open_calls: list[tuple[float, CallRecord]]
    removals: list[str]
    maybe_written: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.settled) + len(self.open_calls) + len(self.removals)

    @property
    def records(self) -> list[CallRecord]:
        return [*self.settled, *(as_open(entry) for _, entry in self.open_calls)]

    def split(self) -> list[Batch]:
        """Each thing in it as a batch of its own."""
        return [
            *(Batch([entry], [], [], self.maybe_written) for entry in self.settled),
            *(Batch([], [entry], [], self.maybe_written) for entry in self.open_calls),
            *(Batch([], [], [id]) for id in self.removals),
        ]


class WriteBuffer:
    """The calls that wait to be written. `dropped` and `folded` count rows since the start."""

    def __init__(self, bound: int = MAX_ROWS) -> None:
        self._bound = bound
        # Dicts keep the order of arrival, so the first items are the oldest. An id is in at most one of the next three.
        self._opened: dict[str, tuple[float, CallRecord]] = {}
        self._rows: dict[str, CallRecord] = {}
        self._firm: dict[str, CallRecord] = {}  # settled or firm, and the database may know their id
        self._sums: dict[Key, CallRecord] = {}
        self._removals: dict[str, None] = {}
        self._shown: dict[str, None] = {}  # open calls that the database may know
        self._out: Sequence[CallRecord] = ()  # settled rows on their way
        self.dropped = 0
        self.folded = 0

    def __len__(self) -> int:
        """Settled rows that wait."""
        return len(self._rows) + len(self._firm) + len(self._sums) + len(self._out)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to write now and nothing that will be by itself."""
        return not (self._rows or self._firm or self._sums or self._removals or self._opened)

    @property
    def full(self) -> bool:
        return len(self) >= self._bound

    def holds_users(self, users: Container[str]) -> bool:
        """Whether something of these users is not in the database yet, or not as it ended."""
        waiting = (self._rows.values(), self._firm.values(), self._sums.values(), self._out)
        return bool(self._removals) or any(entry.user in users for entry in chain(*waiting))

    def add_open(self, entry: CallRecord, now: float) -> None:
        self._opened[entry.id] = (now, entry)

    def add_settled(self, entry: CallRecord, *, firm: bool = False) -> None:
        """`firm`: its id must last, settled or not; it is written as it is, and next."""
        self._opened.pop(entry.id, None)
        self._removals.pop(entry.id, None)
        # The store may have a row under this id, so this record must reach it under the same id.
        if firm or entry.id in self._shown or entry.id in self._firm:
            self._shown.pop(entry.id, None)
            self._rows.pop(entry.id, None)
            self._firm[entry.id] = entry
            if entry.outcome == OPEN:
                self._show(entry.id)
        else:
            self._rows[entry.id] = entry
        # Memory is bounded; money is not dropped before even the sums are too many.
        if len(self) > self._bound:
            self._fold()

    def drop(self, id: str) -> None:
        # Never written, so there is nothing to remove.
        if self._opened.pop(id, None) is not None and id not in self._shown:
            return
        self._shown.pop(id, None)
        self._rows.pop(id, None)
        self._firm.pop(id, None)
        # The open row may be in the store, so it is deleted there too.
        self._removals[id] = None

    def next_batch(self, now: float, *, everything: bool = False) -> Batch | None:
        """The next batch, the oldest first; None if nothing is due.

        There is one batch at a time: `batch_written` or `requeue` ends it.
        """
        # Those first that somebody may wait for, or that replace an open row.
        settled = _first(self._firm, MAX_BATCH_ROWS)
        known = {entry.id for entry in settled}
        settled += _first(self._rows, MAX_BATCH_ROWS - len(settled))
        settled += _first(self._sums, MAX_BATCH_ROWS - len(settled))
        removals = list(islice(self._removals, MAX_BATCH_ROWS))
        for id in removals:
            del self._removals[id]
        opened = []
        # The oldest first, so the first one that is too young ends the search.
        for id, (since, entry) in list(islice(self._opened.items(), MAX_BATCH_ROWS)):
            if not everything and now - since < OPEN_AFTER:
                break
            del self._opened[id]
            if id in self._shown:
                known.add(id)
            # Marked before the write, not after it: a call that is settled meanwhile must not be summed up.
            self._show(id)
            opened.append((since, entry))
        self._out = settled
        return Batch(settled, opened, removals, frozenset(known)) if settled or opened or removals else None

    def batch_written(self) -> None:
        self._out = ()

    def requeue(self, batch: Batch, *, doubtful: bool) -> None:
        """What could not be written waits again, unless something newer took its place.

        If it is doubtful whether it was written, it must be written again under its own id.
        """
        self._out = ()
        # What came in while the batch was on its way knows better than the batch.
        newer = self._rows.keys() | self._firm.keys() | self._removals.keys()
        firm: dict[str, CallRecord] = {}
        rows: dict[str, CallRecord] = {}
        for entry in batch.settled:
            may_be_there = doubtful or entry.id in batch.maybe_written
            # A newer row came while this one was on its way: it must replace what may be there, so it is firm as well.
            if may_be_there and entry.id in self._rows:
                self._firm[entry.id] = self._rows.pop(entry.id)
            if entry.id not in newer:
                (firm if may_be_there else rows)[entry.id] = entry
        # Back in front, so that the oldest rows stay the first.
        self._firm = {**firm, **self._firm}
        self._rows = {**rows, **self._rows}
        opened = {}
        for since, entry in batch.open_calls:
            if entry.id not in newer:
                opened[entry.id] = (since, entry)
                if not doubtful and entry.id not in batch.maybe_written:
                    self._shown.pop(entry.id, None)
        self._opened = {**opened, **self._opened}
        for id in batch.removals:
            if id not in newer:
                self._removals[id] = None

    def drop_batch(self, batch: Batch) -> None:
        """Count what no database would take."""
        self.dropped += sum(entry.calls for entry in batch.settled)

    def _show(self, id: str) -> None:
        self._shown[id] = None
        # A call that is forgotten here is still replaced by id; it counts twice only if it is summed up besides.
        if len(self._shown) > SHOWN:
            del self._shown[next(iter(self._shown))]

    def _fold(self) -> None:
        """Sum up the oldest rows; if even the sums are too many, their users are no longer told apart."""
        for entry in _first(self._rows, _FOLD):
            # A sum that is folded again was counted when it was made.
            if entry.calls == 1:
                self.folded += 1
            # Users are told apart until the sums fill half of the bound.
            total = self._sums.get(key := _key(entry, entry.user))
            if total is None and len(self._sums) >= self._bound // 2:
                total = self._sums.get(key := _key(entry, VARIOUS_USERS))
            if total is not None:
                _add(total, entry)
            elif len(self._sums) < self._bound:
                self._sums[key] = replace(entry, id=_sum_id(entry), request_id=None, user=key[1])
            else:
                # Even the sums are at their bound: from here on money is lost, and counted as lost.
                self.dropped += entry.calls


def as_open(entry: CallRecord) -> CallRecord:
    """A call under way, as it is written: all of its reservation is an estimate."""
    return replace(entry, outcome=OPEN, estimated=entry.cost, basis=ESTIMATED if entry.cost else "")


def _sum_id(entry: CallRecord) -> str:
    """The id of a sum: new, with the digits of the instance whose calls are summed up."""
    return entry.id[:TAG_LENGTH] + uuid4().hex[TAG_LENGTH:]


def _key(entry: CallRecord, user: str) -> Key:
    return (
        int(entry.at // _QUARTER),
        user,
        entry.tier,
        entry.upstream,
        entry.model,
        entry.route,
        entry.basis,
        entry.outcome,
        entry.cache,
        entry.status >= 500,
    )


def _add(total: CallRecord, entry: CallRecord) -> None:
    total.calls += entry.calls
    total.attempts += entry.attempts
    total.input_tokens += entry.input_tokens
    total.cached_input_tokens += entry.cached_input_tokens
    total.output_tokens += entry.output_tokens
    total.reasoning_tokens += entry.reasoning_tokens
    total.cost += entry.cost
    total.estimated += entry.estimated


def _first(source: dict[K, CallRecord], count: int) -> list[CallRecord]:
    """Take out the oldest."""
    return [source.pop(key) for key in list(islice(source, count))]
