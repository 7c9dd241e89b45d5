"""What waits to be written: by id, in batches, bounded, and no money lost or doubled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.ledger.record import CallRecord
from proxy.ledger.write_buffer import MAX_BATCH_ROWS, OPEN_AFTER, WriteBuffer
from proxy.util.user_names import VARIOUS_USERS


def entry(id: object, cost: int = 10, **rest: object) -> CallRecord:
    made = CallRecord(f"{id}", 1000.0, None, "ada", "free", "ask", "openai", "gpt", cost=cost, outcome="ok", status=200)
    return replace(made, **rest)


def ids(entries: Iterable[CallRecord]) -> list[str]:
    return [one.id for one in entries]


def test_a_settled_call_is_written_once() -> None:
    backlog = WriteBuffer()
    backlog.add_settled(entry(1))
    batch = backlog.next_batch(0.0)
    assert batch is not None
    assert ids(batch.records) == ["1"]
    assert len(backlog) == 1  # until it is known to be written
    backlog.batch_written()
    assert len(backlog) == 0
    assert backlog.next_batch(9.0) is None
    assert backlog.idle


def test_a_later_entry_of_the_same_id_replaces_the_earlier() -> None:
    backlog = WriteBuffer()
    backlog.add_settled(entry(1, 10))
    backlog.add_settled(entry(1, 20))
    batch = backlog.next_batch(0.0)
    assert batch is not None
    assert [one.cost for one in batch.records] == [20]


def test_a_call_under_way_is_written_at_its_reservation_once_it_is_old_enough() -> None:
    backlog = WriteBuffer()
    backlog.add_open(entry(1, 50, outcome="", status=0), now=0.0)
    assert backlog.next_batch(OPEN_AFTER / 2) is None
    assert not backlog.idle
    batch = backlog.next_batch(OPEN_AFTER)
    assert batch is not None
    (row,) = batch.records
    assert (row.outcome, row.cost, row.estimated, row.basis) == ("open", 50, 50, "estimated")
    backlog.batch_written()
    assert backlog.idle  # not written again while it goes on
    backlog.add_settled(entry(1, 7))
    batch = backlog.next_batch(9.0)
    assert batch is not None
    assert [(row.outcome, row.cost) for row in batch.records] == [("ok", 7)]


def test_a_call_that_ends_at_once_leaves_no_open_row() -> None:
    backlog = WriteBuffer()
    backlog.add_open(entry(1), now=0.0)
    backlog.drop("1")
    assert backlog.next_batch(9.0) is None
    assert backlog.idle


def test_a_dropped_call_takes_its_open_row_with_it() -> None:
    backlog = WriteBuffer()
    backlog.add_open(entry(1), now=0.0)
    assert backlog.next_batch(1.0) is not None  # on its way, or written: there is no telling
    backlog.drop("1")
    backlog.batch_written()
    batch = backlog.next_batch(1.0)
    assert batch is not None
    assert (batch.records, batch.removals) == ([], ["1"])


def test_batches_are_bounded_and_the_oldest_go_first() -> None:
    backlog = WriteBuffer()
    for n in range(MAX_BATCH_ROWS + 1):
        backlog.add_settled(entry(n))
    batch = backlog.next_batch(0.0)
    assert batch is not None
    assert ids(batch.records) == [str(n) for n in range(MAX_BATCH_ROWS)]
    backlog.batch_written()
    rest = backlog.next_batch(0.0)
    assert rest is not None
    assert ids(rest.records) == [str(MAX_BATCH_ROWS)]


def test_what_could_not_be_written_waits_again_unless_something_newer_came() -> None:
    backlog = WriteBuffer()
    for n in (1, 2, 3):
        backlog.add_settled(entry(n, n))
    backlog.add_open(entry(4), 0.0)
    backlog.add_open(entry(5), 0.0)
    batch = backlog.next_batch(1.0)
    assert batch is not None
    backlog.add_settled(entry(2, 20))
    backlog.drop("3")
    backlog.add_settled(entry(4, 40))
    backlog.requeue(batch, doubtful=False)
    again = backlog.next_batch(1.0)
    assert again is not None
    assert {one.id: (one.cost, one.outcome) for one in again.records} == {
        "1": (1, "ok"),
        "2": (20, "ok"),
        "4": (40, "ok"),
        "5": (10, "open"),
    }
    assert again.removals == ["3"]


def test_past_its_bound_the_oldest_rows_are_summed_up_and_no_money_is_lost() -> None:
    backlog = WriteBuffer(bound=1000)
    for n in range(5000):
        backlog.add_settled(entry(n, n, user=f"user{n % 7}", at=n * 1.0, status=500 if n % 10 == 0 else 200))
    assert len(backlog) <= 1000
    rows = drain(backlog)
    assert sum(row.cost for row in rows) == sum(range(5000))
    assert sum(row.calls for row in rows) == 5000
    assert sum(row.calls for row in rows if row.status >= 500) == 500
    assert sum(row.cost for row in rows if row.user == "user3") == sum(range(3, 5000, 7))
    assert len({row.id for row in rows}) == len(rows)
    assert backlog.dropped == 0
    assert backlog.folded > 0


def test_where_even_the_sums_are_too_many_their_users_are_told_apart_no_longer() -> None:
    backlog = WriteBuffer(bound=1000)
    for n in range(5000):
        backlog.add_settled(entry(n, 1, user=f"user{n}"))
    rows = drain(backlog)
    assert len(rows) <= 1000
    assert sum(row.cost for row in rows) == 5000
    assert any(row.user == VARIOUS_USERS for row in rows)


def test_what_is_lost_after_all_is_counted() -> None:
    backlog = WriteBuffer(bound=1000)
    for n in range(5000):
        backlog.add_settled(entry(n, 1, model=f"model{n}"))
    kept = sum(row.cost for row in drain(backlog))
    assert kept + backlog.dropped == 5000
    assert backlog.dropped > 0


def test_sums_of_a_quarter_of_an_hour_lie_within_one_hour_of_every_zone() -> None:
    backlog = WriteBuffer(bound=10)
    for n in range(4000):
        backlog.add_settled(entry(n, 1, at=n * 10.0))
    for row in drain(backlog):
        assert row.calls <= 90


def test_rows_that_the_database_may_have_are_never_summed_up() -> None:
    backlog = WriteBuffer(bound=100)
    backlog.add_settled(entry("doubtful", 5))
    backlog.add_open(entry("shown", 5), 0.0)
    batch = backlog.next_batch(1.0)
    assert batch is not None
    backlog.requeue(batch, doubtful=True)
    backlog.add_settled(entry("shown", 6))
    for n in range(1000):
        backlog.add_settled(entry(n))
    found = {row.id: row.cost for row in drain(backlog)}
    assert found["doubtful"] == 5
    assert found["shown"] == 6


def test_what_was_doubtful_once_stays_so_though_the_next_try_certainly_failed() -> None:
    backlog = WriteBuffer(bound=100)
    backlog.add_settled(entry("settled", 5))
    backlog.add_open(entry("dropped", 5), 0.0)
    for doubtful in (True, False):
        batch = backlog.next_batch(1.0)
        assert batch is not None
        backlog.requeue(batch, doubtful=doubtful)
    backlog.drop("dropped")
    for n in range(1000):
        backlog.add_settled(entry(n))
    batch = backlog.next_batch(1.0)
    assert batch is not None
    assert batch.records[0].id == "settled"
    assert batch.removals == ["dropped"]


def drain(backlog: WriteBuffer) -> list[CallRecord]:
    rows: list[CallRecord] = []
    while (batch := backlog.next_batch(1e9, everything=True)) is not None:
        rows += batch.records
        backlog.batch_written()
    return rows


STEP = st.tuples(st.sampled_from(["open", "put", "drop", "write", "fail", "doubt", "doubt_written"]), st.integers(0, 9))


@pytest.mark.parametrize("bound", [5, 1000])
@given(steps=st.lists(STEP, max_size=80))
@settings(deadline=None)
def test_whatever_happens_the_database_ends_with_every_call_once(bound: int, steps: list[tuple[str, int]]) -> None:
    """Each call lives once: opened, then settled or dropped. Writes fail, or seem to."""
    backlog = WriteBuffer(bound=bound)
    table: dict[str, CallRecord] = {}
    expected: dict[str, int] = {}
    state: dict[str, str] = {}
    life = 0
    now = 0.0

    def write() -> None:
        batch = backlog.next_batch(now)
        if batch is not None:
            apply(table, batch.records, batch.removals)
            backlog.batch_written()

    for step, n in steps:
        now += 0.2
        id = f"{n}.{life}"
        if step == "open" and state.get(id) is None:
            backlog.add_open(entry(id, 100 + n), now)
            state[id] = "open"
        elif step == "put" and state.get(id) in (None, "open"):
            backlog.add_settled(entry(id, 1 + n))
            expected[id] = 1 + n
            state[id] = "over"
            life += n % 2
        elif step == "drop" and state.get(id) == "open":
            backlog.drop(id)
            state[id] = "over"
            life += n % 2
        elif step == "write":
            write()
        elif step in ("fail", "doubt", "doubt_written") and (batch := backlog.next_batch(now)) is not None:
            if step == "doubt_written":
                apply(table, batch.records, batch.removals)
            backlog.requeue(batch, doubtful=step != "fail")
    now += 10
    while not backlog.idle:
        write()
    settled = sum(row.cost for row in table.values() if row.outcome != "open")
    assert settled == sum(expected.values())
    assert backlog.dropped == 0
    still = {id for id, what in state.items() if what == "open"}
    assert {row.id for row in table.values() if row.outcome == "open"} == still


def apply(table: dict[str, CallRecord], entries: Iterable[CallRecord], removals: Iterable[str]) -> None:
    for one in entries:
        if one.id not in table or table[one.id].outcome == "open" or one.outcome != "open":
            table[one.id] = one
    for id in removals:
        table.pop(id, None)
