"""The writer: batches off the path, a database that goes away and comes back, calls that must not go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.ledger.ledger import Ledger
from proxy.ledger.record import CallRecord
from proxy.ledger.sqlite_queries import read_report
from proxy.ledger.store import LedgerUnavailable, RecordRejected, WindowTotals
from proxy.ledger.write_buffer import MAX_BATCH_ROWS
from proxy.observe.metrics import Metrics
from proxy.policy import schema


def entry(id: object, cost: int = 10, **rest: object) -> CallRecord:
    made = CallRecord(f"{id}", 1000.0, None, "ada", "free", "ask", "openai", "gpt", cost=cost, outcome="ok", status=200)
    return replace(made, **rest)


class Table:
    """A database that fails when told to: how and when a real one does cannot be chosen."""

    where = "the table"

    def __init__(self) -> None:
        self.rows: dict[str, CallRecord] = {}
        self.batches: list[int] = []
        self.away: LedgerUnavailable | None = None
        self.poison: set[str] = set()
        self.created = False
        self.closed = False
        self.kept: list[float] = []

    async def ensure_ready(self, *, create: bool) -> None:
        if self.away is not None:
            raise self.away
        self.created = self.created or create

    async def write_batch(self, entries: Sequence[CallRecord], removals: Sequence[str]) -> None:
        await asyncio.sleep(0)
        if self.away is not None and not self.away.doubtful:
            raise self.away
        if self.poison & {one.id for one in entries}:
            raise RecordRejected("no such thing")
        self.batches.append(len(entries) + len(removals))
        for one in entries:
            self.rows[one.id] = one
        for id in removals:
            self.rows.pop(id, None)
        if self.away is not None:
            raise self.away

    async def prune(self, before: float, at_most: int) -> int:
        self.kept.append(before)
        return 0

    async def window_totals(
        self, upstream: str, since: Mapping[str, float], until: float | None
    ) -> dict[str, WindowTotals]:
        if self.away is not None:
            raise self.away
        return {window: WindowTotals({"ada": 1}, 0) for window in since}

    async def close(self) -> None:
        self.closed = True


class Seen:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.metrics = Metrics(schema.Metrics(), version="1")

    def emit(self, event: str, message: str, *, level: str = "info", **facts: object) -> None:
        self.events.append((level, message, {"event": event, **facts}))

    async def value(self, name: str, **labels: str) -> float | None:
        await self.metrics.render()
        return self.metrics.registry.get_sample_value(f"outrigger_{name}", labels)


@asynccontextmanager
async def started(
    table: Table, seen: Seen, *, on_error: Any = "remember", bound: int = 20_000
) -> AsyncIterator[Ledger]:
    policy = schema.Ledger(on_error=on_error)
    ledger = Ledger(policy, emit=seen.emit, metrics=seen.metrics, clock=time.monotonic, database=table, bound=bound)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()


async def until(condition: Callable[[], object], patience: float = 10.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.01)


async def test_rows_come_together_and_are_written_within_a_second() -> None:
    table, seen = Table(), Seen()
    async with started(table, seen) as ledger:
        for n in range(20):
            ledger.record(entry(n))
        assert (ledger.rows_waiting, table.rows) == (20, {})
        assert await seen.value("ledger_backlog_rows") == 20
        await until(lambda: len(table.rows) == 20)
        assert table.batches == [20]
        await until(lambda: ledger.rows_waiting == 0)
        assert await seen.value("ledger_writes_total", result="ok") == 1
        assert not table.created  # until there was something to write


async def test_a_full_batch_does_not_wait() -> None:
    table = Table()
    async with started(table, Seen()) as ledger:
        for n in range(MAX_BATCH_ROWS * 2 + 10):
            ledger.record(entry(n))
        await until(lambda: len(table.rows) == MAX_BATCH_ROWS * 2 + 10)
        assert max(table.batches) == MAX_BATCH_ROWS


async def test_a_stop_writes_what_waits_and_what_is_under_way() -> None:
    table = Table()
    async with started(table, Seen()) as ledger:
        ledger.record(entry(1))
        ledger.record_open(entry(2, 50))
    assert {id: one.outcome for id, one in table.rows.items()} == {"1": "ok", "2": "open"}
    assert table.closed


async def test_a_call_longer_than_a_second_is_on_record_until_it_is_settled_or_dropped() -> None:
    table = Table()
    async with started(table, Seen()) as ledger:
        ledger.record_open(entry("settled", 50))
        ledger.record_open(entry("dropped", 50))
        await until(lambda: len(table.rows) == 2)
        assert {one.outcome for one in table.rows.values()} == {"open"}
        ledger.record(entry("settled", 7))
        ledger.discard("dropped")
        await until(lambda: len(table.rows) == 1 and table.rows["settled"].cost == 7)


@pytest.mark.parametrize("doubtful", [False, True])
async def test_while_the_database_is_away_calls_go_on_and_are_written_once_it_is_back(doubtful: bool) -> None:
    table, seen = Table(), Seen()
    async with started(table, seen) as ledger:
        table.away = LedgerUnavailable("it burnt down", doubtful=doubtful)
        ledger.record(entry(1))
        await until(lambda: ledger.health().state == "degraded")
        assert "it burnt down; rows that wait in memory: 1" in ledger.health().reason
        assert not ledger.refuses_calls()
        for n in range(2, 40):
            ledger.record(entry(n))
        table.away = None
        await until(lambda: ledger.health().state == "ok")
        assert len(table.rows) == 39
        assert ledger.rows_waiting == 0
    levels = [(level, facts["event"]) for level, _, facts in seen.events]
    assert levels == [("error", "ledger"), ("info", "ledger")]  # once at the beginning, once at the end
    assert "39 rows had waited" in seen.events[1][1]
    assert (await seen.value("ledger_writes_total", result="error") or 0) >= 1


async def test_a_fault_of_our_own_does_not_end_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    table, seen = Table(), Seen()
    async with started(table, seen) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(table, "write_batch", lambda *_: {}["no such key"])
            ledger.record(entry(1))
            await until(lambda: ledger.health().state == "degraded")
            assert "KeyError" in ledger.health().reason
        await until(lambda: ledger.health().state == "ok")
        assert list(table.rows) == ["1"]


async def test_a_database_that_is_away_at_the_start_does_not_fail_it() -> None:
    table = Table()
    table.away = LedgerUnavailable("not yet")
    async with started(table, Seen()) as ledger:
        assert ledger.health().state == "degraded"
        with pytest.raises(LedgerUnavailable, match="not yet"):
            await ledger.window_totals("openai", {"d": 0.0})
        table.away = None
        await until(lambda: ledger.health().state == "ok")  # though nothing waits
        assert (await ledger.window_totals("openai", {"d": 0.0}))["d"].total == 1


async def test_with_deny_calls_do_not_go_on_while_they_cannot_be_written_down() -> None:
    table, seen = Table(), Seen()
    async with started(table, seen, on_error="deny") as ledger:
        assert table.created
        assert not ledger.refuses_calls()
        table.away = LedgerUnavailable("full")
        ledger.record(entry(1))
        await until(ledger.refuses_calls)
        assert "calls are refused" in seen.events[0][1]
        table.away = None
        await until(lambda: not ledger.refuses_calls())


async def test_a_policy_that_is_reloaded_decides_from_then_on() -> None:
    table = Table()
    table.away = LedgerUnavailable("full")
    async with started(table, Seen()) as ledger:
        assert not ledger.refuses_calls()
        ledger.apply(schema.Ledger(on_error="deny"))
        assert ledger.refuses_calls()
        table.away = None


async def test_a_long_outage_is_bounded_and_loses_no_money() -> None:
    table, seen = Table(), Seen()
    async with started(table, seen, bound=1000) as ledger:
        table.away = LedgerUnavailable("gone")
        for n in range(5000):
            ledger.record(entry(n, n))
        assert ledger.rows_waiting <= 1000
        table.away = None
        await until(lambda: ledger.rows_waiting == 0)
    assert sum(one.cost for one in table.rows.values()) == sum(range(5000))
    assert sum(one.calls for one in table.rows.values()) == 5000
    assert await seen.value("ledger_folded_total") == sum(one.calls for one in table.rows.values() if one.calls > 1)
    assert await seen.value("ledger_dropped_total") == 0


async def test_a_row_that_no_database_takes_does_not_hold_up_the_others() -> None:
    table, seen = Table(), Seen()
    table.poison = {"7"}
    async with started(table, seen) as ledger:
        for n in range(20):
            ledger.record(entry(n))
        ledger.record_open(entry("open"))
        await until(lambda: len(table.rows) == 20)
        assert "7" not in table.rows
        assert ledger.health().state == "ok"
    assert await seen.value("ledger_dropped_total") == 1
    assert [message for _, message, _ in seen.events] == ["A row cannot be written and is left out: no such thing."]


async def test_what_cannot_be_written_before_the_end_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.ledger.ledger.STOP_TIMEOUT", 0.6)
    table, seen = Table(), Seen()
    table.away = LedgerUnavailable("gone")
    async with started(table, seen) as ledger:
        for n in range(3):
            ledger.record(entry(n))
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert "3 rows could not be written before the end, and are lost: gone" in seen.events[-1][1]


async def test_what_is_older_than_keep_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.ledger.ledger.PRUNE_FIRST", 0.01)
    table = Table()
    async with started(table, Seen()):
        await until(lambda: table.kept)
        assert table.kept[0] == pytest.approx(time.time() - 90 * 86400, abs=60)


async def test_a_ledger_in_the_folder_of_the_app_is_made_with_its_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = Seen()
    ledger = Ledger(schema.Ledger(), emit=seen.emit, metrics=seen.metrics, clock=time.monotonic)
    await ledger.start()
    assert ledger.health().state == "ok"
    assert list(tmp_path.iterdir()) == []
    ledger.record(entry(1, at=time.time()))
    await ledger.stop()
    assert [one.cost for one in read_report(Path("var/outrigger.db"), "user", 0.0)] == [10]
    assert seen.events == []
