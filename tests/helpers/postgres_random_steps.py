"""What clients do at random, for the machine of test_postgres_random: pure strategies, no socket."""

from __future__ import annotations

from hypothesis import strategies as st
from postgres_wire_client import FLUSH, SYNC, bind, close, describe, execute, parse, query

TENANTS = ("'a'", "'b'", "'c d'")
SETTINGS = (
    "set work_mem = '3MB'", "set work_mem to '5MB'", "set search_path = other, public", "set search_path to public",
    "set timezone to 'Asia/Tokyo'", "set time zone 'UTC'", "set time zone interval '+02:00' hour to minute",
    "set app.tenant = 'one'", "set app.tenant to 'two'", 'set "app"."tenant" = \'three\'',
    "set session application_name = 'mine'", "set extra_float_digits = 1", "set bytea_output = 'escape'",
    "set datestyle = 'SQL, DMY'", "set default_transaction_read_only = off", "set statement_timeout = '9s'",
    "set session characteristics as transaction isolation level serializable", "set role other", "set role none",
    "reset role", "reset work_mem", "reset search_path", "reset timezone", "reset app.tenant", "reset all",
    "set work_mem to default", "set search_path = default", "set names 'LATIN1'", "set client_encoding to 'UTF8'",
    "reset client_encoding", "set session authorization default", "reset session authorization",
    "SET /* a comment */ work_mem = 4096", "-- a comment\nset work_mem = '6MB'",
    "select set_config('app.tenant', 'four', false)", "select set_config('work_mem', '7MB', false)",
    "select set_config('app.tenant', 'five', true)", "set local work_mem = '9MB'", "set local app.tenant = 'six'",
    "set local role other", "set transaction isolation level repeatable read",
    "set app.tenant = 'seven'; set work_mem = '11MB'", "set app.tenant = 'eight'; select 1/0",
    "do $$ begin perform set_config('app.tenant', 'nine', false); end $$",
    "do $$ begin set work_mem = '13MB'; end $$",
    "set no_such_parameter = 1", "set work_mem = 'nonsense'",
)  # fmt: skip
TRANSACTIONS = (
    "begin", "start transaction isolation level serializable", "begin read only", "commit", "rollback", "end", "abort",
    "savepoint s", "rollback to savepoint s", "release s", "commit and chain", "rollback and chain",
    "begin; insert into own_{k} (said) values ('in one'); commit", "begin; select 1; rollback; select 2",
    "begin; set local work_mem = '15MB'; commit", "begin; set work_mem = '17MB'; rollback",
    "begin; savepoint s; set work_mem = '19MB'; rollback to s; commit",
)  # fmt: skip
SESSION = (
    "create temp table scratch (a int)", "create temporary table scratch (a int) on commit drop",
    "create temp table if not exists scratch (a int) on commit delete rows", "insert into scratch values (1)",
    "select count(*) from scratch", "drop table scratch", "drop table if exists scratch",
    "select 1 as a into temp scratch", "create temp view seen as select 1", "drop view if exists seen", "discard temp",
    "select pg_advisory_lock({k}, 1)", "select pg_try_advisory_lock({k}, 2)", "select pg_advisory_unlock({k}, 1)",
    "select pg_advisory_unlock_all()", "select pg_advisory_xact_lock({k}, 3)", "select pg_advisory_lock_shared({k}, 4)",
    "listen news", "listen other", "unlisten news", "unlisten *", "notify news, 'from {k}'", "notify other",
    "select pg_notify('news', 'by function {k}')",
    "prepare sp as select {k}", "prepare sq(int) as select $1 + {k}", "execute sp", "execute sq(1)", "deallocate sp", "deallocate p",
    "deallocate q", "deallocate all", "declare c cursor for select * from common order by k",
    "declare h cursor with hold for select * from common order by k", "fetch 1 from c", "fetch 1 from h", "close c",
    "close h", "close all", "discard all", "discard plans", "discard sequences", "load 'auto_explain'",
)  # fmt: skip
PLAIN = (
    "select * from own_{k} order by id", "insert into own_{k} (said) values ('s') returning id", "select 1; select 2",
    "update own_{k} set said = 'u' where id = 1", "delete from own_{k} where id > 3", "select 1/0", "select nope", "",
    ";", "selec", "select 1; select 1/0; select 3", "do $$ begin raise notice 'noticed {k}'; end $$",
    "do $$ begin raise warning 'warned'; end $$", "show work_mem", "show search_path", "select nullif(current_setting('app.tenant', true), '')",
    "select * from only_there", "copy own_{k} to stdout", "copy (select 1/0) to stdout", "select hidden('x')",
    "explain (costs off) select 1", "vacuum common", "select 'pg_advisory_lock(1)'", "select 'listen x; set y = 1'",
    "alter table own_{k} add column if not exists more int default 5", "alter table own_{k} drop column if exists more",
    "select repeat('x', 100000)", "select generate_series(1, 300)", "select null, 'é', ''",
    "with x as (select 1) select * from x", "create table if not exists made_{k} (a int)", "drop table if exists made_{k}",
)  # fmt: skip
TEXTS = st.one_of(*(st.sampled_from(group) for group in (SETTINGS, TRANSACTIONS, SESSION, PLAIN)))

NAMES, PORTALS = st.sampled_from(("", "p", "q")), st.sampled_from(("", "x"))
PREPARED = (
    ("select $1::int + 1", (1,)), ("select * from own_{k} where id >= $1::int order by id", (1,)),
    ("insert into own_{k} (said) values ($1) returning id", ("e",)), ("select 1/$1::int", (0,)), ("select nope", ()),
    ("", ()), ("begin", ()), ("commit", ()), ("rollback", ()), ("set work_mem = '21MB'", ()), ("reset all", ()),
    ("select set_config('app.tenant', $1, false)", ("bound",)), ("select generate_series(1, 9)", ()),
    ("select {k}", ()), ("deallocate p", ()), ("deallocate all", ()), ("discard all", ()), ("listen news", ()),
    ("select pg_try_advisory_lock({k}, $1::int)", (5,)), ("create temp table scratch (a int)", ()),
    ("copy common to stdout", ()), ("show work_mem", ()), ("set local work_mem = '23MB'", ()), ("savepoint s", ()),
    ("rollback to savepoint s", ()), ("fetch 1 from c", ()), ("declare c cursor for select * from common", ()),
)  # fmt: skip


@st.composite
def step(draw: st.DrawFn, slot: int) -> list[bytes]:
    """One or a few extended messages, mostly such as a driver sends."""
    name, portal = draw(NAMES), draw(PORTALS)
    text, values = draw(st.sampled_from(PREPARED))
    text = text.format(k=slot)
    shaped = "*" in text  # who never asked for the shape of its rows is not told that it has changed
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2 | 3:
            described = [describe("S", name)] if shaped or draw(st.booleans()) else []
            return [parse(text, name), *described, bind(values, name, portal), execute(0, portal)]
        case 4:
            return [parse(text, name), *([describe("S", name)] if shaped else [])]
        case 5:
            return [bind(values, name, portal), describe("P", portal), execute(draw(st.sampled_from((0, 2))), portal)]
        case 6:
            # Never the unnamed one by itself: PostgreSQL 18 dies of it where a simple query has failed (signal 11).
            return [execute(draw(st.sampled_from((0, 1))), "x")]
        case 7:
            return [close("S", name)]
        case 8:
            return [close("P", "x")]
        case _:
            return [describe("S", name) if draw(st.booleans()) else describe("P", "x")]


@st.composite
def pipeline(draw: st.DrawFn, slot: int) -> tuple[list[bytes], int]:
    """Messages up to a Sync, several Syncs and Queries between; and how many ReadyForQuery that makes."""
    parts: list[bytes] = []
    ready = 0
    for _ in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 3))):
            parts += draw(step(slot))
            if draw(st.integers(0, 5)) == 0:
                parts.append(FLUSH)
        parts.append(SYNC)
        ready += 1
        if draw(st.integers(0, 4)) == 0:
            parts.append(query(draw(TEXTS).format(k=slot)))
            ready += 1
    return parts, ready
