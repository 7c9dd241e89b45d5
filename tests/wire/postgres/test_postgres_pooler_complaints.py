"""What users of other poolers complain of, each as a test; and what a pool owes to those who wait for it."""

from __future__ import annotations

import random
import threading
import time

import asyncpg
import pytest
from postgres_cluster import Cluster
from postgres_gateway import PostgresGateway, until
from postgres_wire_client import (
    COPY_DONE,
    FLUSH,
    SYNC,
    Gone,
    Message,
    Refused,
    Wire,
    bind,
    cancel_request,
    close,
    copy_data,
    describe,
    execute,
    fields,
    kinds,
    parse,
    query,
    row,
)

POOL = 4


def error(found: list[Message]) -> dict[str, str]:
    return next(fields(each.body) for each in found if each.kind == "E")


# ── 1. unsupported startup parameters ────────────────────────────────────────────────────────

STARTUPS = [
    {"search_path": "other"}, {"statement_timeout": "12345"}, {"extra_float_digits": "3"}, {"jit": "off"},
    {"options": "-c search_path=other -c work_mem=3MB"}, {"options": "-csearch_path=other --work-mem=5MB"},
    {"options": r"-c search_path=other,\ public"}, {"lock_timeout": "2000"}, {"app.tenant": "x"},
    {"idle_in_transaction_session_timeout": "60000"}, {"default_transaction_isolation": "serializable"},
    {"client_encoding": "LATIN1"}, {"client_encoding": "'utf-8'"}, {"IntervalStyle": "iso_8601"}, {"bytea_output": "escape"},
    {"TimeZone": "Asia/Tokyo", "DateStyle": "SQL, DMY", "application_name": "näme"}, {"fallback_application_name": "x"},
    {"no_such_parameter": "1"}, {"work_mem": "nonsense"}, {"options": "-c no_such=1"}, {"options": "--nonsense"},
]  # fmt: skip
SHOWN = (
    "select current_setting('search_path'), current_setting('statement_timeout'), current_setting('work_mem'),"
    " current_setting('extra_float_digits'), current_setting('jit'), current_setting('lock_timeout'),"
    " nullif(current_setting('app.tenant', true), ''), current_setting('idle_in_transaction_session_timeout'),"
    " current_setting('default_transaction_isolation'), current_setting('client_encoding'),"
    " current_setting('intervalstyle'), current_setting('bytea_output'), current_setting('timezone'),"
    " current_setting('datestyle'), current_setting('application_name')"
)


@pytest.mark.parametrize("startup", STARTUPS, ids=str)
def test_a_startup_parameter_does_what_it_does_direct(shared: PostgresGateway, startup: dict[str, str]) -> None:
    seen = []
    for url in (shared.direct, shared.url):
        try:
            with Wire(url, **startup) as wire:
                first = wire.rows(SHOWN)
                wire.ask(query("set work_mem = '77MB'; set search_path = public"))
                wire.ask(query("reset all"))
                seen.append((first, wire.rows(SHOWN), wire.parameters))
        except Refused as refused:
            seen.append((refused.code, refused.fields["M"], refused.fields["S"]))
    assert seen[0] == seen[1]


# ── 2. statements that exist, or do not ──────────────────────────────────────────────────────


def test_one_name_means_another_text_to_each_client(shared: PostgresGateway) -> None:
    wires = [Wire(shared.url) for _ in range(6)]
    for k, wire in enumerate(wires):
        assert kinds(wire.ask(parse(f"select {k}, $1::int", "__asyncpg_stmt_1__"), SYNC)) == "1Z"
    for _ in range(3):
        for k, wire in enumerate(wires):
            wire.send(bind([k], "__asyncpg_stmt_1__"), execute(), SYNC)
        for k, wire in enumerate(wires):
            assert row(wire.answer()[1].body) == (str(k), str(k))
    wires[0].ask(query("deallocate all"))
    wires[1].ask(query("discard all"))
    for k, wire in enumerate(wires):
        found = wire.ask(bind([k], "__asyncpg_stmt_1__"), execute(), SYNC)
        assert kinds(found) == ("EZ" if k < 2 else "2DCZ")
        if k < 2:
            assert error(found)["C"] == "26000"
            assert "__asyncpg_stmt_1__" in error(found)["M"]
        wire.bye()


def test_a_name_unknown_or_taken_is_an_error_and_the_client_goes_on(shared: PostgresGateway) -> None:
    with Wire(shared.url) as wire:
        assert error(wire.ask(bind((), "never"), execute(), SYNC))["C"] == "26000"
        assert error(wire.ask(describe("S", "never"), SYNC))["C"] == "26000"
        wire.ask(parse("select 1", "p"), SYNC)
        again = error(wire.ask(parse("select 2", "p"), SYNC))
        assert again["C"] == "42P05"
        assert '"p"' in again["M"]
        assert kinds(wire.ask(close("S", "never"), SYNC)) == "3Z"
        assert row(wire.ask(bind((), "p"), execute(), SYNC)[1].body) == ("1",)
        assert error(wire.ask(bind((1, 2), "p"), execute(), SYNC))["M"] == (
            'bind message supplies 2 parameters, but prepared statement "p" requires 0'
        )


def test_a_statement_prepared_in_an_aborted_pipeline_is_not_there(shared: PostgresGateway) -> None:
    for url in (shared.direct, shared.url):
        with Wire(url) as wire:
            found = wire.ask(parse("select 1", "a"), parse("select nope", "b"), parse("select 2", "c"), SYNC)
            assert kinds(found) == "1EZ"
            assert kinds(wire.ask(bind((), "a"), execute(), SYNC)) == "2DCZ"
            for name in "bc":
                assert error(wire.ask(bind((), name), execute(), SYNC))["C"] == "26000"


def test_an_unnamed_statement_outlives_its_sync(shared: PostgresGateway) -> None:
    wires = [Wire(shared.url) for _ in range(4)]
    for k, wire in enumerate(wires):
        wire.ask(parse(f"select {k}"), SYNC)
    for _ in range(2):
        for k, wire in enumerate(wires):
            assert row(wire.ask(bind(), execute(), SYNC)[1].body) == (str(k),)
    for wire in wires:
        wire.bye()


def test_many_statements_leave_few_on_a_server_connection(shared: PostgresGateway) -> None:
    with Wire(shared.url) as wire:
        for k in range(1500):
            wire.send(
                parse(f"select {k}", f"s{k}"), bind((), f"s{k}"), execute(), close("S", f"s{k}") if k % 2 else b"", SYNC
            )
            wire.answer()
        assert int(wire.value("select count(*) from pg_prepared_statements") or 0) <= 500
        for k in (0, 700, 1498):
            assert row(wire.ask(bind((), f"s{k}"), execute(), SYNC)[1].body) == (str(k),)


async def test_asyncpg_on_its_defaults_shares_connections_with_other_processes_of_itself(
    shared: PostgresGateway,
) -> None:
    many = [await asyncpg.connect(shared.url) for _ in range(5)]
    for _ in range(3):
        for k, connection in enumerate(many):
            asyncpg.connection._uid = 0  # names come from one counter a process: as if each were one of its own
            assert await connection.fetchval(f"select {k} + $1::int", 1) == k + 1
    for connection in many:
        await connection.close()


# ── 3. cached plans ──────────────────────────────────────────────────────────────────────────


def test_a_changed_table_is_answered_as_direct(shared: PostgresGateway) -> None:
    seen = []
    for url in (shared.direct, shared.url):
        with Wire(url) as wire, Wire(url) as other:
            wire.ask(query("drop table if exists shape; create table shape (a int); insert into shape values (1)"))
            reported = []
            for each in (wire, other):
                reported.append(kinds(each.ask(parse("select * from shape", "p"), bind((), "p"), execute(), SYNC)))
            wire.ask(query("alter table shape add b int default 2"))
            for each in (wire, other):
                found = each.ask(bind((), "p"), execute(), SYNC)
                reported.append((kinds(found), error(found)["C"], error(found)["M"]))
                reported.append(
                    kinds(each.ask(close("S", "p"), parse("select * from shape", "p"), bind((), "p"), execute(), SYNC))
                )
                reported.append(row(each.ask(parse("select * from shape"), bind(), execute(), SYNC)[2].body))
            seen.append(reported)
    assert seen[0] == seen[1]


async def test_asyncpg_recovers_from_a_changed_table_by_itself(shared: PostgresGateway) -> None:
    seen = []
    for url in (shared.direct, shared.url):
        a, b = await asyncpg.connect(url), await asyncpg.connect(url)
        await a.execute("drop table if exists shape; create table shape (a int); insert into shape values (1)")
        reported: list[object] = [await each.fetch("select * from shape") for each in (a, b)]
        await b.execute("alter table shape add b int default 2")
        for each in (a, b):
            reported += [await each.fetch("select * from shape") for _ in range(2)]
        seen.append(reported)
        await a.close()
        await b.close()
    assert seen[0] == seen[1]


# ── 4. advisory locks ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", [Wire.drop, Wire.reset, Wire.bye], ids=lambda how: how.__name__)
def test_a_lock_goes_with_its_client(shared: PostgresGateway, how) -> None:
    holder = Wire(shared.url)
    holder.rows("select pg_advisory_lock(77)")
    with Wire(shared.url) as other:
        assert other.value("select pg_try_advisory_lock(77)") == "f"
        how(holder)
        until(lambda: other.value("select pg_try_advisory_lock(77)") == "t", "the lock's release", 5)
    shared.clean()


def test_a_lock_is_held_and_given_up_by_its_own_client_alone(shared: PostgresGateway) -> None:
    a, b = Wire(shared.url), Wire(shared.url)
    assert a.value("select pg_try_advisory_lock(78)") == "t"
    for _ in range(3):
        assert b.value("select pg_try_advisory_lock(78)") == "f"
        assert a.value("select pg_try_advisory_lock(78)") == "t"
    for _ in range(4):
        assert a.value("select pg_advisory_unlock(78)") == "t"
    assert a.value("select pg_advisory_unlock(78)") == "f"
    assert b.value("select pg_try_advisory_lock(78)") == "t"
    a.bye(), b.bye()
    shared.clean()


# ── 5. settings ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "sql",
    [
        "set default_transaction_read_only = on", "set search_path = other", "set statement_timeout = '1h'", "set role other",
        "set session characteristics as transaction read only", "set app.tenant = 'x'", "set time zone 'Asia/Tokyo'",
        "select set_config('search_path', 'other', false)", "begin; set search_path = other; commit", "set names 'LATIN1'",
        "do $$ begin perform set_config('app.tenant', 'x', false); end $$", "set session session authorization app",
    ],
)  # fmt: skip
def test_a_setting_follows_its_client_and_nobody_else(poolers, cluster: Cluster, sql: str) -> None:
    with poolers(pool={"min": 0, "max": 1}) as pooler:
        with Wire(pooler.url) as a, Wire(pooler.url) as b, Wire(pooler.direct) as direct:
            fresh = b.rows(SHOWN)
            a.ask(query(sql))
            direct.ask(query(sql))
            for _ in range(3):
                assert b.rows(SHOWN) == fresh
                b.ask(query("create table if not exists written (a int); insert into written values (1)"))
                assert a.rows(SHOWN) == direct.rows(SHOWN)
                assert a.value("select current_user") == direct.value("select current_user")


def test_what_a_function_sets_in_secret_stays_with_its_client_under_reset_always(poolers) -> None:
    with poolers(pool={"min": 0, "max": 1}, reset="always") as pooler:
        with Wire(pooler.url) as a, Wire(pooler.url) as b:
            a.ask(query(
                "create function secret() returns void language plpgsql as $$ begin"
                " perform set_config('app.tenant', 'x', false); perform set_config('search_path', 'other', false); end $$"
            ))  # fmt: skip
            fresh = b.rows(SHOWN)
            for _ in range(3):
                a.ask(query("select public.secret()"))
                assert b.rows(SHOWN) == fresh


# ── 6. LISTEN ────────────────────────────────────────────────────────────────────────────────


def test_a_listener_hears_while_it_says_nothing(shared: PostgresGateway) -> None:
    listener, other = Wire(shared.url), Wire(shared.url)
    listener.ask(query("listen news"))
    for k in range(3):
        other.ask(query(f"notify news, 'n{k}'"))
        found = listener.read()
        assert found.kind == "A"
        assert found.body[4:] == f"news\0n{k}\0".encode()
    other.ask(query("select 1"))
    assert other.quiet(0.1)
    listener.ask(query("unlisten *"))
    other.ask(query("notify news, 'unheard'"))
    assert listener.quiet(0.2)
    listener.bye(), other.bye()
    shared.clean()


# ── 7. servers stuck ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("extended", [False, True])
def test_copy_data_that_comes_late_blocks_nothing(shared: PostgresGateway, extended: bool) -> None:
    text = "copy common from stdin"
    start = [parse(text), bind(), execute()] if extended else [query(text)]
    for _ in range(shared.max + 1):
        with Wire(shared.url) as wire:
            wire.send(*start, copy_data(b"not a number\n"))
            if not extended:
                assert kinds(wire.answer())[-2:] == "EZ"  # by now the server has left the COPY
            wire.send(copy_data(b"5\tx\n"), copy_data(b"6\tx\n"), COPY_DONE, *([SYNC] if extended else []))
            if extended:
                assert kinds(wire.answer())[-2:] == "EZ"
            assert wire.value("select 'on'") == "on"
    shared.clean()


def test_a_query_behind_an_extended_batch_without_a_sync_is_answered_once(shared: PostgresGateway) -> None:
    for url in (shared.direct, shared.url):
        with Wire(url) as wire:
            assert kinds(wire.ask(parse("select 1"), bind(), execute(), query("select 2"))) == "12DCTDCZ"
            assert wire.quiet(0.05)
            wire.send(parse("select nope"), query("select 2"), SYNC)
            assert kinds(wire.answer()) == "EZ"
            assert wire.quiet(0.05)
            assert wire.value("select 3") == "3"
    shared.clean()


# ── 8. the server's own words ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("setting", "within", "code"),
    [
        ("idle_in_transaction_session_timeout", "begin", "25P03"), ("transaction_timeout", "begin", "25P04"),
        ("idle_session_timeout", "listen news", "57P05"),
    ],
)  # fmt: skip
def test_a_timeout_of_the_server_s_reaches_the_client_in_its_own_words(
    shared: PostgresGateway, setting, within, code
) -> None:
    with Wire(shared.url) as wire:
        wire.ask(query(f"set {setting} = '200ms'"))
        try:
            wire.ask(query(within))
        except Gone:
            pytest.fail("gone too early")
        last = [fields(each.body) for each in wire.ended() if each.kind == "E"]
        assert [each["C"] for each in last] == [code]
        assert last[0]["S"] == "FATAL"
    shared.clean()


def test_a_backend_that_is_terminated_says_so(shared: PostgresGateway) -> None:
    with Wire(shared.url) as wire, shared.cluster.control() as control:
        wire.ask(query("begin"))
        control.execute("select pg_terminate_backend(%s)", [int(wire.value("select pg_backend_pid()") or 0)])
        last = [fields(each.body) for each in wire.ended() if each.kind == "E"]
        assert [each["C"] for each in last] == ["57P01"]
    shared.clean()


# ── 9. exhaustion ────────────────────────────────────────────────────────────────────────────


def test_who_waits_too_long_is_told_who_holds_what_and_may_stay(poolers) -> None:
    with poolers(pool={"min": 0, "max": 2, "wait": "400ms"}) as pooler:
        holders = [Wire(pooler.url) for _ in range(2)]
        for wire in holders:
            wire.ask(query("begin"))
        with Wire(pooler.url) as simple, Wire(pooler.url) as extended:
            found = simple.ask(query("select 1"))
            assert kinds(found) == "EZ"
            assert error(found)["C"] == "53300"
            assert error(found)["S"] == "ERROR"
            assert "query_wait_timeout" in repr(error(found))
            assert "2" in error(found)["M"] + error(found).get("D", "")
            extended.send(parse("select 1"), bind(), execute(), FLUSH)
            assert extended.read().kind == "E"
            assert extended.quiet(0.2)  # no ReadyForQuery before the Sync
            assert kinds(extended.ask(SYNC)) == "Z"
            found = extended.ask(parse("select 1"), bind(), execute(), SYNC)
            assert kinds(found) == "EZ"
            holders.pop().bye()
            assert simple.value("select 'served'") == "served"
            assert kinds(extended.ask(parse("select 1"), bind(), execute(), SYNC)) == "12DCZ"
        holders.pop().bye()
        pooler.clean()


def test_who_came_first_is_served_first(poolers) -> None:
    with poolers(pool={"min": 0, "max": 1, "wait": "20s"}) as pooler:
        holder = Wire(pooler.url)
        holder.ask(query("create table turns (at serial, who int); begin"))
        waiting = [Wire(pooler.url) for _ in range(12)]
        for k, wire in enumerate(waiting):
            wire.send(query(f"insert into turns (who) values ({k})"))
            until(lambda k=k: pooler.waiting() == k + 1, "its place in the queue")
        holder.ask(query("commit"))
        for wire in waiting:
            wire.answer()
        assert holder.rows("select who from turns order by at") == [(str(k),) for k in range(12)]
        holder.bye()
        for wire in waiting:
            wire.bye()


def test_a_client_that_never_rests_takes_no_turn_of_those_who_wait(poolers) -> None:
    with poolers(pool={"min": 0, "max": 1, "wait": "20s"}) as pooler:
        stop = threading.Event()

        def busy() -> None:
            with Wire(pooler.url) as wire:
                while not stop.is_set():
                    wire.ask(query("select pg_sleep(0.005)"))

        threads = [threading.Thread(target=busy) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            with Wire(pooler.url) as other:
                began = time.monotonic()
                for _ in range(20):
                    other.ask(query("select 1"))
                assert time.monotonic() - began < 5  # 20 turns behind three of 5 ms each: 0.3 s
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        pooler.clean()


def test_pins_are_at_most_so_many_and_then_a_clear_error(poolers) -> None:
    with poolers(pool={"min": 0, "max": 3, "wait": "400ms"}, pin={"max": 2}) as pooler:
        pinned = [Wire(pooler.url) for _ in range(2)]
        for wire in pinned:
            wire.ask(query("listen news"))
        with Wire(pooler.url) as third, Wire(pooler.url) as plain:
            found = third.ask(query("listen news"))
            assert kinds(found) == "EZ"
            assert error(found)["C"][:2] in ("53", "55")
            assert "pin" in repr(error(found))
            assert error(found)["M"].startswith("LISTEN needs")
            assert third.value("select 'on'") == "on"
            assert plain.value("select 'on'") == "on"
            pinned[0].ask(query("unlisten *"))
            assert kinds(third.ask(query("listen news"))) == "CZ"
        for wire in pinned:
            wire.bye()
        pooler.clean()


def test_who_asks_in_vain_for_a_lock_waits_for_no_pin(poolers) -> None:
    """As workers do that elect one of them. Who gets the lock where no pin is left must not believe that it has it."""
    with poolers(pool={"min": 0, "max": 3, "wait": "5s"}, pin={"max": 1}) as pooler, Wire(pooler.direct) as leader:
        with Wire(pooler.url) as listener, Wire(pooler.url) as worker:
            listener.ask(query("listen news"))
            leader.rows("select pg_advisory_lock(9)")
            began = time.monotonic()
            assert [worker.value("select pg_try_advisory_lock(9)") for _ in range(20)] == ["f"] * 20
            assert time.monotonic() - began < 4
            leader.rows("select pg_advisory_unlock(9)")
            with pytest.raises((Gone, Refused), match="53300"):
                worker.value("select pg_try_advisory_lock(9)")
                while True:
                    worker.value("select 1")
            until(lambda: leader.value("select pg_try_advisory_lock(9)") == "t", "the lock's release")


def test_what_ends_with_its_transaction_pins_nothing(poolers) -> None:
    with poolers(pool={"min": 0, "max": 1, "wait": "2s"}) as pooler, Wire(pooler.url) as a, Wire(pooler.url) as b:
        for sql in (
            "begin; set local work_mem = '3MB'; select pg_advisory_xact_lock(1); commit",
            "begin; create temp table scratch (a int) on commit drop; commit",
            "begin; listen news; rollback", "begin; create temp table scratch (a int); rollback",
            "begin; select pg_advisory_lock(3); select pg_advisory_unlock(3); commit",
            "create temp table scratch (a int); drop table scratch", "listen news; unlisten news",
            "begin; declare c cursor for select 1; commit", "declare h cursor with hold for select 1; close h",
            "prepare p as select 1; deallocate p", "select 'listen to this; create temp table x (a int)'",
        ):  # fmt: skip
            a.ask(query(sql))
            assert b.value("select 'served'") == "served", sql


# ── time-outs of the door's own ──────────────────────────────────────────────────────────────


def test_a_query_past_its_time_is_cancelled_and_says_so(poolers) -> None:
    with poolers(timeout={"query": "300ms"}) as pooler, Wire(pooler.url) as wire:
        found = wire.ask(query("select pg_sleep(30)"))
        assert kinds(found).endswith("EZ")
        assert error(found)["C"] == "57014"
        assert wire.value("select 'on'") == "on"
        found = wire.ask(parse("select pg_sleep(30)"), bind(), execute(), SYNC)
        assert error(found)["C"] == "57014"
        wire.ask(query("begin"))
        assert error(wire.ask(query("select pg_sleep(30)")))["C"] == "57014"
        wire.ask(query("rollback"))


@pytest.mark.parametrize("extended", [False, True])
def test_a_transaction_left_idle_past_its_time_ends_and_says_so(poolers, extended: bool) -> None:
    with poolers(pool={"min": 0, "max": 1, "wait": "10s"}, timeout={"idle_in_transaction": "300ms"}) as pooler:
        with Wire(pooler.url) as idle, Wire(pooler.url) as other:
            if extended:
                idle.send(parse("select 1"), bind(), execute(), FLUSH)
                idle.answer("C")
            else:
                idle.ask(query("begin; create table undone (a int)"))
            assert other.value("select to_regclass('undone')") is None
            last = [fields(each.body) for each in idle.ended() if each.kind == "E"]
            assert [each["C"] for each in last] == ["25P03"]
        pooler.clean()


# ── 10. results that belong to somebody else ─────────────────────────────────────────────────


def test_every_client_gets_its_own_answers_whatever_leaves_around_it(poolers) -> None:
    chance = random.Random(11)
    wrong: list[object] = []
    with poolers(pool={"min": 0, "max": 3, "wait": "30s"}, clients=100) as pooler:

        def honest(n: int) -> None:
            with Wire(pooler.url) as wire:
                for turn in range(120):
                    mine = f"{n}.{turn}"
                    found = wire.ask(
                        parse("select $1::text", "p" if not turn else f"p{turn}"),
                        bind([mine], "p" if not turn else f"p{turn}"),
                        execute(),
                        SYNC,
                    )
                    if [row(each.body) for each in found if each.kind == "D"] != [(mine,)]:
                        wrong.append(found)

        def hasty(n: int) -> None:
            for turn in range(40):
                wire = Wire(pooler.url)
                wire.send(query(f"select repeat('{n}', 30000) from generate_series(1, {chance.randrange(1, 200)})"))
                if turn % 2:
                    wire.read()
                if turn % 5 == 0:
                    wire.cancel()
                wire.drop()

        threads = [threading.Thread(target=what, args=(n,)) for n, what in enumerate([honest, hasty] * 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        pooler.clean()


# ── cancelling ───────────────────────────────────────────────────────────────────────────────


def test_a_cancel_ends_its_own_client_s_query(shared: PostgresGateway) -> None:
    a, b = Wire(shared.url), Wire(shared.url)
    for wire in (a, b):
        wire.send(query("select pg_sleep(30)"))
    until(lambda: shared.asleep() == 2, "two sleeps")
    a.cancel()
    assert error(a.answer())["C"] == "57014"
    assert b.quiet(0.1)
    b.cancel()
    assert error(b.answer())["C"] == "57014"
    for wire in (a, b):
        assert wire.value("select 'on'") == "on"
        wire.bye()
    shared.clean()


def test_a_late_cancel_hits_nobody(poolers) -> None:
    with poolers(pool={"min": 0, "max": 1}) as pooler, Wire(pooler.url) as early, Wire(pooler.url) as other:
        for _ in range(10):
            early.ask(query("select 1"))  # was on the connection that the other one is on now
            other.send(query("select pg_sleep(0.1)"))
            early.cancel()
            assert kinds(other.answer()) == "TDCZ"


def test_cancels_at_random_end_only_whom_they_name(poolers) -> None:
    with poolers(pool={"min": 0, "max": 2, "wait": "30s"}) as pooler:
        stop = threading.Event()
        victim = Wire(pooler.url)

        def cancelling() -> None:
            while not stop.is_set():
                try:
                    victim.cancel()
                except OSError:
                    pass

        canceller = threading.Thread(target=cancelling)
        canceller.start()
        try:
            with Wire(pooler.url) as bystander:
                for _ in range(200):
                    victim.send(query("select 1"))
                    assert kinds(bystander.ask(query("select pg_sleep(0.001)"))) == "TDCZ"
                    assert kinds(victim.answer()).endswith(("TDCZ", "EZ"))
        finally:
            stop.set()
            canceller.join()
        victim.bye()
        pooler.clean()


def test_a_cancel_with_a_wrong_key_is_ignored(shared: PostgresGateway) -> None:
    with Wire(shared.url) as wire:
        wire.send(query("select pg_sleep(0.3)"))
        pid, secret = wire.key
        for wrong in (b"\0\0\0\0", bytes(byte ^ 1 for byte in secret)):
            with Wire(shared.url, login=False) as other:
                other.send(cancel_request(pid, wrong))
                assert other.ended() == []
        assert kinds(wire.answer()) == "TDCZ"


def test_a_cancel_of_one_that_waits_for_a_connection_takes_it_out_of_the_queue(poolers) -> None:
    with poolers(pool={"min": 0, "max": 1, "wait": "20s"}) as pooler:
        holder, waiting = Wire(pooler.url), Wire(pooler.url)
        holder.ask(query("begin"))
        waiting.send(query("select 1"))
        until(lambda: pooler.waiting() == 1, "its place in the queue")
        waiting.cancel()
        found = waiting.answer()
        assert error(found)["C"] == "57014"
        holder.bye()
        assert waiting.value("select 'on'") == "on"
        waiting.bye()
        pooler.clean()
