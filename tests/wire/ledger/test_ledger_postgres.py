"""The ledger in PostgreSQL: the same rows, a server that crashes, answers that are lost."""

from __future__ import annotations

import asyncio
import io
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from postgres_process import Relay, Server, postgres

from proxy.cli.report import run_report
from proxy.ledger.ledger import Ledger
from proxy.ledger.postgres import STEPS, PostgresStore, read_report, without_foreign_options
from proxy.ledger.record import COLUMNS, FIRST_SCHEMA_COLUMNS, CallRecord
from proxy.ledger.store import COLUMN_NAMES, FORGIVEN_KEPT_SECONDS, ForgivenSpend, LedgerUnavailable, WindowTotals
from proxy.ledger.user_marks import UserMarks
from proxy.observe.metrics import Metrics
from proxy.policy import schema

TABLES = [f"public.outrigger_{name}" for name in ("calls", "schema", "blocked", "forgiven")]


def entry(id: object, cost: int = 10, at: float = 1000.0, **rest: object) -> CallRecord:
    made = CallRecord(f"{id}", at, None, "ada", "free", "ask", "openai", "gpt", cost=cost, outcome="ok", status=200)
    return replace(made, **rest)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with postgres(tmp_path_factory.mktemp("postgres")) as running:
        yield running


@pytest.fixture
async def url(server: Server) -> str:
    """An empty database."""
    await query(server.url, f"DROP TABLE IF EXISTS {', '.join(TABLES)}")
    return server.url


async def query(url: str, sql: str) -> list[tuple]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


@asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[PostgresStore]:
    database = PostgresStore(url, where="the server", **options)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def started(url: str, events: list[str]) -> AsyncIterator[Ledger]:
    def emit(event: str, message: str, *, level: str = "info", **facts: object) -> None:
        events.append(message)

    metrics = Metrics(schema.Metrics(), version="1")
    ledger = Ledger(schema.Ledger(url=url), emit=emit, metrics=metrics, clock=time.monotonic)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()


async def until(condition: Callable[[], object], patience: float = 30.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_row_keeps_every_fact_and_its_sums(url: str) -> None:
    full = CallRecord(
        "ab" * 16, 7201.5, "req-1", "bob", "premium", "ask", "openai", "gpt-4o", 100, 20, 30, 5, 2_500, 500,
        "reported", 2, 200, "ok", "hit", 1, "resp_1", "oregon",
    )  # fmt: skip
    async with opened(url) as database:
        await database.write_batch([full, entry(2, 9, status=503), entry(3, 8, outcome="open"), entry(4)], ["4"])
        await database.write_batch([entry(3, 7)], [])
        await database.write_batch([entry(3, 99, outcome="open")], [])
        found = await database.window_totals("openai", {"h": 7200.0, "d": 0.0}, None)
        assert found == {"h": WindowTotals({"bob": 2500}, 0), "d": WindowTotals({"bob": 2500, "ada": 16}, 0)}
        assert (await database.window_totals("openai", {"d": 0.0}, 7200.0))["d"].total == 16
        assert (await database.window_totals("other", {"d": 0.0}, None))["d"] == WindowTotals({}, 0)
        sums = await read_report(url, "the server", "user", 0.0)
        assert [(one.name, one.calls, one.errors, one.cached, one.cost, one.estimated) for one in sums] == [
            ("bob", 1, 0, 1, 2500, 500),
            ("ada", 2, 1, 0, 16, 0),
        ]
        assert (await database.prune(5000.0, 1), await database.prune(5000.0, 5)) == (1, 1)
    rows = await query(url, "SELECT * FROM outrigger_calls")
    assert rows == [
        (
            "ab" * 16, 7201.5, "req-1", "bob", "premium", "ask", "openai", "gpt-4o", 100, 20, 30, 5, 2_500, 500,
            "reported", 2, 200, "ok", "hit", 1, "resp_1", "oregon",
        )
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["\0", "\ud800", "a" * 10_000, "ü\0\udfff", "'; DROP TABLE outrigger_calls; --"])
async def test_no_name_that_a_client_chose_holds_up_the_ledger(url: str, text: str) -> None:
    texts = [name for name, kind in COLUMNS if kind == "text" and name not in ("id", "user_id")]
    named = {**dict.fromkeys(texts, text), "user": text}
    async with opened(url) as database:
        await database.write_batch([replace(entry(1), **named), entry(2, 2**80)], [])
    assert await query(url, "SELECT count(*) FROM outrigger_calls") == [(2,)]


async def test_a_report_says_the_same_whichever_database_it_comes_from(url: str, tmp_path: Path) -> None:
    rows = [
        entry(
            n, n * 1000, time.time() - n * 60, user=f"u{n % 5}", status=[200, 503][n % 2], cache=["miss", "hit"][n % 2]
        )
        for n in range(300)
    ]
    said = []
    for where in (url, f"sqlite:///{tmp_path}/x.db"):
        events: list[str] = []
        async with started(where, events) as ledger:
            for row in rows:
                ledger.record(row)
        out, err = io.StringIO(), io.StringIO()
        environ = {"OUTRIGGER_POLICY_TEXT": f"ledger: {{url: '{where}'}}"}
        status = await asyncio.to_thread(run_report, ["--csv", "--since", "2h"], environ, out, err)
        assert (status, err.getvalue(), events) == (0, "", [])
        said.append(out.getvalue())
    assert said[0] == said[1]
    assert said[0].count("\n") == 6


async def test_two_that_start_at_once_do_not_trip_over_each_other(url: str) -> None:
    async with opened(url) as one, opened(url) as other:
        await asyncio.gather(one.write_batch([entry(1)], []), other.write_batch([entry(2)], []))
    assert await query(url, "SELECT count(*) FROM outrigger_calls") == [(2,)]


async def test_an_older_schema_is_brought_up_to_date_and_a_newer_one_left_alone(url: str) -> None:
    assert await read_report(url, "the server", "user", 0.0) == []  # nothing there yet
    async with opened(url) as database:
        await database.write_batch([entry(1)], [])
    later = (*STEPS, ("ALTER TABLE public.outrigger_calls ADD COLUMN note text",))
    async with opened(url, steps=later) as database:
        await database.write_batch([entry(2)], [])
    assert await query(url, "SELECT id, note FROM outrigger_calls ORDER BY id") == [("1", None), ("2", None)]
    async with opened(url) as database:
        with pytest.raises(LedgerUnavailable, match="newer Outrigger"):
            await database.write_batch([entry(3)], [])
    with pytest.raises(LedgerUnavailable, match="newer Outrigger"):
        await read_report(url, "the server", "user", 0.0)


async def test_an_operators_word_is_kept_here_too_in_a_ledger_begun_before_there_were_any(url: str) -> None:
    async with opened(url, steps=STEPS[:1]) as database:
        await database.ensure_ready(create=True)
    everything = f"SELECT {', '.join(COLUMN_NAMES[:FIRST_SCHEMA_COLUMNS])} FROM outrigger_calls ORDER BY id"
    for old in (entry(1), entry(2)):
        values = ", ".join("NULL" if value is None else repr(value) for value in old.row()[:FIRST_SCHEMA_COLUMNS])
        await query(url, f"INSERT INTO outrigger_calls VALUES ({values})")
    before = await query(url, everything)
    async with opened(url) as database:
        marks = UserMarks(database, emit=lambda *_, **__: None, now=lambda: 1000.0)
        await marks.start()
        for user in ("o'brien", "ada", "ada"):
            assert await marks.block(user) is None
        rows = [ForgivenSpend(f"{n}", 1000.0 + n, "openai", "ada", "d", 5) for n in range(2)]
        assert await marks.forgive(rows) is None
        assert await marks.forgive(rows[:1]) is None
        assert await database.forgiven_by_user("openai", {"d": 900.0, "month": 0.0}, 2000.0) == {
            "d": {"ada": 10},
            "month": {},
        }
        assert await database.forgiven_by_user("openai", {"d": 1001.0}, 1001.0) == {"d": {}}
    async with opened(url) as database:
        marks = UserMarks(database, emit=lambda *_, **__: None)
        await marks.start()
        assert list(marks.blocked_users) == ["ada", "o'brien"]
        assert await query(url, everything) == before
        assert await query(url, "SELECT DISTINCT reference FROM outrigger_calls") == [("",)]
        assert await query(url, "SELECT version FROM outrigger_schema") == [(len(STEPS),)]
        assert await marks.unblock("ada") is None
        assert await database.blocked_users() == ["o'brien"]
        await marks.forgive([ForgivenSpend("9", 1000.0 + FORGIVEN_KEPT_SECONDS + 1, "openai", "ada", "d", 1)])
        assert await database.forgiven_by_user("openai", {"d": 0.0}, 1e12) == {"d": {"ada": 6}}


async def test_a_user_that_may_make_no_table_is_told_how_to_help_it(url: str) -> None:
    await query(url, "DROP ROLE IF EXISTS poor")
    await query(url, "CREATE ROLE poor LOGIN")
    async with opened(url.replace("demo@", "poor@")) as database:
        with pytest.raises(LedgerUnavailable, match="permission denied for schema public; grant its user"):
            await database.write_batch([entry(1)], [])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u@h/d?sslmode=require&channel_binding=require", "postgresql://u@h/d?sslmode=require"),
        ("postgresql://u@h/d?pgbouncer=true&connection_limit=1", "postgresql://u@h/d"),
    ],
)
def test_options_of_other_drivers_are_left_out(given: str, kept: str) -> None:
    assert without_foreign_options(given) == kept


async def test_an_address_where_nobody_answers_is_told_of_without_its_password(unused_tcp_port: int) -> None:
    events: list[str] = []
    async with started(f"postgresql://u:hunter2@127.0.0.1:{unused_tcp_port}/d", events) as ledger:
        assert ledger.health().state == "degraded"
        with pytest.raises(LedgerUnavailable, match="refused|Connect"):
            await ledger.window_totals("openai", {"d": 0.0})
    assert "hunter2" not in "".join(events) + ledger.health().reason


async def test_a_commit_whose_answer_was_lost_doubles_nothing(url: str, server: Server) -> None:
    relay = Relay(int(url.rpartition(":")[2].partition("/")[0]))
    port = await relay.start()
    events: list[str] = []
    costs = {}
    try:
        async with started(f"postgresql://demo@127.0.0.1:{port}/postgres", events) as ledger:
            for turn in range(3):
                relay.swallow = 1
                for n in range(50):
                    id = f"{turn}.{n}"
                    costs[id] = n
                    ledger.record(entry(id, n))
                await until(lambda: relay.swallow == 0 and ledger.health().state == "degraded")
                await until(lambda: ledger.health().state == "ok" and ledger.rows_waiting == 0)
    finally:
        await relay.stop()
    assert relay.swallowed == 3
    assert dict(await query(url, "SELECT id, cost FROM outrigger_calls")) == costs


async def test_a_server_that_crashes_under_load_loses_and_doubles_no_row(url: str, server: Server) -> None:
    events: list[str] = []
    settled: dict[str, int] = {}
    working = True

    async def work(ledger: Ledger) -> None:
        while working:
            id = uuid.uuid4().hex
            ledger.record_open(entry(id, 10**9))
            await asyncio.sleep(random.choice([0.0, 0.02, 0.9]))
            if random.random() < 0.1:
                ledger.discard(id)
            else:
                settled[id] = random.randrange(10**9)
                ledger.record(entry(id, settled[id]))

    async with started(url, events) as ledger:
        workers = [asyncio.create_task(work(ledger)) for _ in range(20)]
        try:
            for seconds in (0.2, 2.0):
                await asyncio.sleep(1.0)
                await server.crashed_for(seconds)
                await until(lambda: ledger.health().state == "ok")
            await asyncio.sleep(1.0)
        finally:
            working = False
            await asyncio.gather(*workers)
        await until(lambda: ledger.rows_waiting == 0)
    assert len(settled) > 100
    rows = await query(url, "SELECT id, cost FROM outrigger_calls")
    assert dict(rows) == settled
    assert len(events) % 2 == 0
    print(f"{len(settled)} rows, {len(events) // 2} outages")
