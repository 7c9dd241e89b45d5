"""What a text may leave behind, and the queries that ask and undo."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.postgres import wire
from proxy.postgres.session_state import (
    ADVISORY_LOCK,
    COMPUTED_SETTING,
    HOLD_CURSOR,
    LIBRARY,
    LISTEN,
    LOCAL_SETTING,
    NO_HINTS,
    SETTING,
    SQL_PREPARED,
    TEMP_TABLE,
    inspect_text,
    parse_probe,
    probe_query,
    quote_literal,
    settings_query,
)


@pytest.mark.parametrize(
    ("text", "flags", "pins"),
    [
        ("select 1", 0, 0),
        ("SELECT abalance FROM pgbench_accounts WHERE aid = 1", 0, 0),
        ("insert into attempts values (1)", 0, 0),
        ("update a set b = 1", 0, 0),
        ("select pg_advisory_xact_lock(1)", 0, 0),
        ("select pg_try_advisory_xact_lock_shared(1)", 0, 0),
        ("select PG_Advisory_Lock (1)", ADVISORY_LOCK, ADVISORY_LOCK),
        ("select pg_try_advisory_lock_shared(1, 2)", ADVISORY_LOCK, 0),
        ("select pg_advisory_unlock_all()", ADVISORY_LOCK, 0),
        ("CREATE TEMP TABLE t (a int)", TEMP_TABLE, TEMP_TABLE),
        ("create  local\ntemporary table t as select 1", TEMP_TABLE, TEMP_TABLE),
        ("create temp table t (a int) on commit drop", TEMP_TABLE, 0),
        ("create or replace temp view v as select 1", TEMP_TABLE, TEMP_TABLE),
        ("select * into temp t from u", TEMP_TABLE, TEMP_TABLE),
        ("create table pg_temp.t (a int)", TEMP_TABLE, 0),
        ("declare c cursor with hold for select 1", HOLD_CURSOR, HOLD_CURSOR),
        ("begin; listen a", 0, LISTEN),
        ("unlisten a", 0, 0),
        ("load 'auto_explain'", 0, LIBRARY),
        ("prepare p as select 1", 0, SQL_PREPARED),
        ("prepare transaction 'x'", 0, 0),
        ("select set_config('a', 'b', false)", SETTING, 0),
        ("select set_config($1, $2, false)", SETTING | COMPUTED_SETTING, 0),
        ("select set_config(name, 'b', false) from t", SETTING | COMPUTED_SETTING, 0),
        ("do $$ begin set x = 1; end $$", SETTING, 0),
        ("set local a = 1", LOCAL_SETTING, 0),
        ("set transaction read only;", LOCAL_SETTING, 0),
        ("set local a = 1; set b = 2", 0, 0),
    ],
)
def test_what_a_text_may_leave_behind(text, flags, pins):
    found = inspect_text(text.encode())
    assert (found.flags, found.pin_flags) == (flags, pins)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("set app.user = '1'", (b"app.user",)),
        ('SET SESSION "app"."user" TO 1', (b"app.user",)),
        ("select set_config('app.tenant', $1, false), set_config('jit', 'off', false)", (b"app.tenant",)),
        ("update a.b set c = 1.5", ()),
    ],
)
def test_the_apps_own_parameters_are_remembered_by_name(text, names):
    assert inspect_text(text.encode()).custom_names == names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("DEALLOCATE _pg3_1", b"_pg3_1"),
        ('deallocate prepare "A ""b"', b'A "b'),
        ("deallocate X;", b"x"),
        ("deallocate all", b""),
        ("deallocate a; select 1", b""),
    ],
)
def test_what_is_deallocated_by_name(text, name):
    assert inspect_text(text.encode()).deallocates == name


def test_most_texts_are_one_object():
    assert inspect_text(b"select 1") is NO_HINTS


@pytest.mark.parametrize(
    ("applied", "wanted", "text", "sets"),
    [
        ({}, {}, b"", False),
        ({b"a": b"1"}, {b"a": b"1"}, b"", False),
        ({b"a": b"1"}, {}, b'RESET "a";', False),
        ({b"x": b"1", b"role": b"r"}, {}, b'RESET "role";RESET "x";', False),
        ({}, {b"a.b": b"it's"}, b"SELECT pg_catalog.set_config(E'a.b', E'it''s', false);", True),
        (
            {b"c": b"1"},
            {b"role": b"r", b"d": b"2", b"session_authorization": b"s"},
            b'RESET "c";'
            b"SELECT pg_catalog.set_config(E'session_authorization', E's', false);"
            b"SELECT pg_catalog.set_config(E'd', E'2', false);"
            b"SELECT pg_catalog.set_config(E'role', E'r', false);",
            True,
        ),
    ],
)
def test_from_what_is_set_to_what_is_wanted(applied, wanted, text, sets):
    assert settings_query(applied, wanted) == (text, sets)


def test_an_apps_own_parameter_is_never_undefined_again():
    assert settings_query({}, {b"a.b": b""}, {b"a.b"}) == (b"", False)
    assert settings_query({}, {b"a.b": b""})[1]
    assert settings_query({b"a.b": b""}, {}, {b"a.b"}) == (b"", False)
    assert settings_query({b"a.b": b"1"}, {}, {b"a.b"}) == (b'RESET "a"."b";', False)


@given(st.binary().filter(lambda value: b"\0" not in value))
def test_a_literal_says_what_it_means(value):
    quoted = quote_literal(value)
    assert quoted[:2] == b"E'"
    inner = quoted[2:-1]
    assert inner.replace(b"\\\\", b"\1").replace(b"''", b"\2").find(b"'") < 0
    assert inner.replace(b"\\\\", b"\\").replace(b"''", b"'") == value


def test_only_what_was_hinted_at_is_asked():
    assert b"pg_locks" in probe_query(ADVISORY_LOCK)
    assert b"pg_settings" not in probe_query(ADVISORY_LOCK)
    everything = probe_query(SETTING | TEMP_TABLE | ADVISORY_LOCK | HOLD_CURSOR | LISTEN | SQL_PREPARED, [b"a.b"])
    assert everything.count(b"SELECT '") == 7
    assert b"E'a.b'" in everything


def test_what_the_database_says_is_taken():
    said = b"".join(
        wire.data_row(line)
        for line in (
            [b"s", b"search_path", b"a, b"],
            [b"s", b"temp_tablespaces", b""],
            [b"n", b"application_name", b""],
            [b"n", b"role", b"none"],
            [b"n", b"a.b", None],
            [b"n", b"c.d", b""],
            [b"16", b"", b""],
        )
    )
    assert parse_probe(wire.row_description(["a", "b", "c"]) + said) == (
        {b"search_path": b"a, b", b"temp_tablespaces": b"", b"application_name": b"", b"c.d": b""},
        LISTEN,
    )
