"""The ledger in a real SQLite file: schema, sums by hour, pruning, and files that go wrong."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.ledger.record import COLUMNS, FIRST_SCHEMA_COLUMNS, CallRecord
from proxy.ledger.sqlite import SqliteStore
from proxy.ledger.sqlite_queries import read_report
from proxy.ledger.sqlite_schema import STEPS
from proxy.ledger.store import COLUMN_NAMES, ForgivenSpend, LedgerUnavailable, ReportRow, WindowTotals

HOUR = 3600.0


def entry(id: object, cost: int = 10, at: float = 1000.0, **rest: object) -> CallRecord:
    made = CallRecord(f"{id}", at, None, "ada", "free", "ask", "openai", "gpt", cost=cost, outcome="ok", status=200)
    return replace(made, **rest)


@asynccontextmanager
async def opened(path: Path, **options: object) -> AsyncIterator[SqliteStore]:
    database = SqliteStore(path, **options)
    try:
        yield database
    finally:
        await database.close()


def rows(path: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def test_nothing_is_made_before_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "var" / "x.db"
    async with opened(path) as database:
        await database.ensure_ready(create=False)
        assert await database.prune(1e12, 10) == 0
        assert await database.window_totals("openai", {"d": 0.0}, None) == {"d": WindowTotals({}, 0)}
        assert not path.parent.exists()
        await database.write_batch([entry(1)], [])
        assert path.exists()
        assert path.with_name("x.db-wal").exists()
    assert not path.with_name("x.db-wal").exists()  # all in one file once it is closed


async def test_a_row_keeps_every_fact(tmp_path: Path) -> None:
    full = CallRecord(
        "ab" * 16, 1234.5, "req-1", "ada", "premium", "ask", "openai", "gpt-4o", 100, 20, 30, 5, 2_500, 500,
        "reported", 2, 200, "ok", "miss", 1, "resp_1", "oregon",
    )  # fmt: skip
    async with opened(tmp_path / "x.db") as database:
        await database.write_batch([full, entry(2, request_id=None)], [])
    found = rows(tmp_path / "x.db", "SELECT * FROM outrigger_calls ORDER BY at DESC")
    assert found[0] == (
        "ab" * 16, 1234.5, "req-1", "ada", "premium", "ask", "openai", "gpt-4o", 100, 20, 30, 5, 2_500, 500,
        "reported", 2, 200, "ok", "miss", 1, "resp_1", "oregon",
    )  # fmt: skip
    assert found[1][2] is None


async def test_an_open_row_is_replaced_by_the_settled_one_and_never_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as database:
        await database.write_batch([entry(1, 50, outcome="open")], [])
        await database.write_batch([entry(1, 7)], [])
        await database.write_batch([entry(1, 50, outcome="open")], [])  # the last words of a connection that died
        await database.write_batch([entry(2, 3), entry(3, 4)], ["2"])
    assert rows(path, "SELECT id, cost, outcome FROM outrigger_calls ORDER BY id") == [("1", 7, "ok"), ("3", 4, "ok")]
    assert [one.cost for one in read_report(path, "user", 0.0)] == [11]


@pytest.mark.parametrize("text", ["\0", "\ud800", "a" * 10_000, "ü\0\udfff", "'; DROP TABLE outrigger_calls; --"])
async def test_no_name_that_a_client_chose_holds_up_the_ledger(tmp_path: Path, text: str) -> None:
    texts = [name for name, kind in COLUMNS if kind == "text" and name not in ("id", "user_id")]
    named = {**dict.fromkeys(texts, text), "user": text}
    async with opened(tmp_path / "x.db") as database:
        await database.write_batch([replace(entry(1), **named)], [])
        await database.write_batch([entry(2, cost=2**80, input_tokens=-(2**70))], [])
    assert len(rows(tmp_path / "x.db", "SELECT * FROM outrigger_calls")) == 2


# ── windows and sums ─────────────────────────────────────────────────────────────────────────


async def test_what_was_spent_is_told_by_window_and_user_the_largest_first(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db") as database:
        await database.write_batch(
            [
                entry(1, 5, 10 * HOUR + 1),
                entry(2, 7, 12 * HOUR, user="bob"),
                entry(3, 1, 12 * HOUR + 5, user="bob"),
                entry(4, 100, 12 * HOUR, upstream="anthropic"),
                entry(5, 30, 11 * HOUR, outcome="open"),
            ],
            [],
        )
        found = await database.window_totals("openai", {"h": 12 * HOUR, "d": 10 * HOUR + 0.5}, None)
        assert found == {"h": WindowTotals({"bob": 8}, 0), "d": WindowTotals({"ada": 35, "bob": 8}, 0)}
        assert list(found["d"].users) == ["ada", "bob"]
        assert found["d"].total == 43
        before = await database.window_totals("openai", {"d": 10 * HOUR}, 12 * HOUR + 5)
        assert before == {"d": WindowTotals({"ada": 35, "bob": 7}, 0)}


async def test_users_past_the_bound_come_to_one_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.ledger.sqlite_queries.MAX_USERS_PER_WINDOW", 3)
    async with opened(tmp_path / "x.db") as database:
        await database.write_batch([entry(n, n, user=f"user{n}") for n in range(10)], [])
        found = await database.window_totals("openai", {"d": 0.0}, None)
    assert found["d"] == WindowTotals({"user9": 9, "user8": 8, "user7": 7}, 21)


WRITES = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),  # ids
        st.integers(0, 60).map(lambda n: n * 5003),
        st.sampled_from(["ada", "bob"]),
        st.sampled_from(["gpt", "o1"]),
        st.sampled_from([200, 404, 500, 503]),
        st.sampled_from(["off", "hit", "miss", "stale"]),
        st.sampled_from(["ok", "open", "error"]),
        st.integers(0, 10**12),
        st.booleans(),  # removed
    ),
    max_size=30,
)


@given(writes=WRITES, since=st.integers(-3600, 4 * 86400), until=st.integers(0, 4 * 86400))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_by_hour_are_those_of_the_rows_whatever_is_written(
    tmp_path: Path, writes: list[tuple], since: int, until: int
) -> None:
    path = tmp_path / "x.db"
    path.unlink(missing_ok=True)

    async def scenario() -> dict[str, WindowTotals]:
        async with opened(path) as database:
            await database.write_batch([], [])
            for id, at, user, model, status, cache, outcome, cost, removed in writes:
                made = entry(id, cost, float(at), user=user, model=model, status=status, cache=cache, outcome=outcome)
                await database.write_batch([made], [id] if removed else [])
            await database.prune(20000.0, 3)
            return await database.window_totals("openai", {"d": float(since)}, float(until))

    spent = asyncio.run(scenario())
    by_rows = rows(
        path,
        "SELECT model, SUM(calls), SUM(status >= 500), SUM(cache IN ('hit', 'stale')), 0, 0, 0, SUM(cost), 0"
        f" FROM outrigger_calls WHERE at >= {since} GROUP BY model",
    )
    assert sorted(read_report(path, "model", float(since)), key=lambda one: one.name) == [
        ReportRow(*row) for row in by_rows
    ]
    by_user = rows(
        path, f"SELECT user_id, SUM(cost) FROM outrigger_calls WHERE at >= {since} AND at < {until} GROUP BY 1"
    )
    assert spent["d"].users == dict(by_user)
    for table in ("outrigger_hours", "outrigger_days"):
        assert all(calls > 0 for (calls,) in rows(path, f"SELECT calls FROM {table}"))


async def test_pruning_takes_the_oldest_a_little_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as database:
        await database.write_batch([entry(n, 1, at=float(n)) for n in range(100)], [])
        assert await database.prune(50.0, 30) == 30
        assert await database.prune(50.0, 30) == 20
        assert await database.prune(50.0, 30) == 0
    assert rows(path, "SELECT MIN(at), COUNT(*) FROM outrigger_calls") == [(50.0, 50)]
    assert rows(path, "SELECT SUM(calls) FROM outrigger_hours") == [(50,)]
    assert rows(path, "SELECT SUM(calls) FROM outrigger_days") == [(50,)]


# ── schema ───────────────────────────────────────────────────────────────────────────────────


async def test_a_ledger_of_an_older_schema_is_brought_up_to_date_in_place(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as database:
        await database.write_batch([entry(1, 5)], [])
    later = (
        *STEPS,
        ("ALTER TABLE outrigger_calls ADD COLUMN note TEXT", "CREATE INDEX notes ON outrigger_calls (note)"),
    )
    async with opened(path, steps=later) as database:
        await database.ensure_ready(create=False)
        await database.write_batch([entry(2, 6)], [])
    assert rows(path, "PRAGMA user_version") == [(len(later),)]
    assert rows(path, "SELECT cost, note FROM outrigger_calls ORDER BY id") == [(5, None), (6, None)]


async def test_a_ledger_of_the_first_schema_keeps_its_rows_and_sums_and_learns_an_operators_word(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.db"
    async with opened(path, steps=STEPS[:1]) as database:
        await database.ensure_ready(create=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        old = [entry(n, 5, at=1000.0 + 4000 * n).row()[:FIRST_SCHEMA_COLUMNS] for n in range(3)]
        connection.executemany(f"INSERT INTO outrigger_calls VALUES ({', '.join('?' * FIRST_SCHEMA_COLUMNS)})", old)
    everything = (
        f"SELECT {', '.join(COLUMN_NAMES[:FIRST_SCHEMA_COLUMNS])} FROM outrigger_calls ORDER BY id",
        "SELECT * FROM outrigger_hours ORDER BY hour",
    )
    before = [rows(path, one) for one in everything]
    async with opened(path) as database:
        assert await database.blocked_users() == []
        await database.set_blocked("eve", 1.0)
        await database.record_forgiven([ForgivenSpend("1", 1000.0, "openai", "ada", "d", 5)])
        assert (await database.window_totals("openai", {"d": 0.0}, None))["d"].users == {"ada": 15}
    assert [rows(path, one) for one in everything] == before
    assert rows(path, "PRAGMA user_version") == [(len(STEPS),)]
    assert rows(path, "SELECT DISTINCT reference FROM outrigger_calls") == [("",)]
    async with opened(path) as database:
        assert await database.blocked_users() == ["eve"]
        assert await database.forgiven_by_user("openai", {"d": 0.0}, 2000.0) == {"d": {"ada": 5}}


async def test_a_step_that_fails_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as database:
        await database.write_batch([entry(1, 5)], [])
    broken = (*STEPS, ("ALTER TABLE outrigger_calls ADD COLUMN note TEXT", "CREATE NONSENSE"))
    async with opened(path, steps=broken) as database:
        with pytest.raises(LedgerUnavailable, match="syntax"):
            await database.ensure_ready(create=False)
    async with opened(path) as database:
        await database.write_batch([entry(2, 6)], [])
    assert rows(path, "SELECT SUM(cost) FROM outrigger_calls") == [(11,)]


async def test_a_ledger_of_a_newer_outrigger_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as database:
        await database.write_batch([entry(1, 5)], [])
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    connection.close()
    async with opened(path) as database:
        with pytest.raises(LedgerUnavailable, match="newer Outrigger"):
            await database.write_batch([entry(2)], [])
    with pytest.raises(LedgerUnavailable, match="newer Outrigger"):
        read_report(path, "user", 0.0)


async def test_two_that_start_at_once_do_not_trip_over_each_other(tmp_path: Path) -> None:
    both = [SqliteStore(tmp_path / "x.db") for _ in range(2)]
    await asyncio.gather(*(database.write_batch([entry(n)], []) for n, database in enumerate(both)))
    for database in both:
        await database.close()
    assert rows(tmp_path / "x.db", "SELECT COUNT(*) FROM outrigger_calls") == [(2,)]


# ── files that go wrong ──────────────────────────────────────────────────────────────────────


async def test_a_file_that_was_taken_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as database:
        await database.write_batch([entry(1)], [])
        path.rename(tmp_path / "old.db")
        await database.write_batch([entry(2)], [])
    assert rows(path, "SELECT id FROM outrigger_calls") == [("2",)]


async def test_a_file_that_is_no_database_is_said_so_until_it_is_moved(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"this is not a database, and never was one " * 100)
    async with opened(path) as database:
        with pytest.raises(LedgerUnavailable, match="not a database; move it away"):
            await database.write_batch([entry(1)], [])
        with pytest.raises(LedgerUnavailable, match="not a database"):
            read_report(path, "user", 0.0)
        path.rename(tmp_path / "moved")
        await database.write_batch([entry(1)], [])
    assert len(read_report(path, "user", 0.0)) == 1


async def test_a_ledger_that_breaks_while_in_use_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path) as database:
        await database.write_batch([entry(n, user=f"user{n}") for n in range(2000)], [])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    async with opened(path) as database:
        with pytest.raises(LedgerUnavailable, match="malformed"):
            await database.write_batch([entry(n, user=f"user{n}") for n in range(2000)], [])
        path.unlink()
        await database.write_batch([entry(1)], [])


async def test_a_locked_file_is_waited_for_and_then_told_of(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with opened(path, busy=0.05) as database:
        await database.write_batch([entry(1)], [])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(LedgerUnavailable, match="locked"):
                await database.write_batch([entry(2)], [])
            assert len(read_report(path, "user", 0.0)) == 1  # a report needs no lock
        finally:
            other.execute("ROLLBACK")
            other.close()
        await database.write_batch([entry(2)], [])


@pytest.mark.parametrize("path", ["/proc/nowhere/x.db", "/dev/null/x.db"])
async def test_a_folder_that_cannot_be_made_is_told_of(path: str) -> None:
    async with opened(Path(path)) as database:
        with pytest.raises(LedgerUnavailable, match="nowhere|null"):
            await database.write_batch([entry(1)], [])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
async def test_a_read_only_folder_is_told_of_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    folder.mkdir(mode=0o555)
    async with opened(folder / "x.db") as database:
        with pytest.raises(LedgerUnavailable, match="unable to open|readonly|denied"):
            await database.write_batch([entry(1)], [])
        folder.chmod(0o755)
        await database.write_batch([entry(1)], [])


async def test_a_report_reads_what_a_killed_writer_left(tmp_path: Path) -> None:
    """The journal is still beside the file: copied while in use, as `kill -9` would leave it."""
    path = tmp_path / "x.db"
    left = tmp_path / "left" / "x.db"
    left.parent.mkdir()
    async with opened(path) as database:
        await database.write_batch([entry(1, 5)], [])
        for name in ("x.db", "x.db-wal"):
            (left.parent / name).write_bytes((tmp_path / name).read_bytes())
    assert [one.cost for one in read_report(left, "user", 0.0)] == [5]


def test_a_report_on_a_ledger_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_report(tmp_path / "x.db", "user", 0.0)
    assert not (tmp_path / "x.db").exists()
