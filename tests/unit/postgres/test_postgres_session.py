"""A client's session message by message: what its server gets, what it gets, and when the server is free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from postgres_script import (
    DP,
    PARAMS,
    E,
    H,
    S,
    Talk,
    X,
    bind_message,
    bound,
    close_message,
    closed,
    copy_in,
    describe_message,
    done,
    err,
    kinds,
    named,
    nothing,
    parse_message,
    parsed,
    query_message,
    ready,
    rows,
    server,
)

from proxy.postgres import wire
from proxy.postgres.frontend import ProtocolError

ROW = wire.data_row([b"1"])
ANSWER = rows + ROW + done()


def linked(**how):
    talk = Talk(**how)
    talk.link()
    return talk


# (what the client sends, what the server answers, whether the server is free then)
EXCHANGES = {
    "a query": (query_message("select 1"), ANSWER + ready(), True),
    "a query in a transaction": (query_message("begin"), done("BEGIN") + ready("T"), False),
    "a query that fails": (query_message("oops"), err() + ready(), True),
    "a query that fails in a transaction": (query_message("oops"), err() + ready("E"), False),
    "two queries, one answered": (query_message("a") + query_message("b"), ANSWER + ready(), False),
    "two queries": (query_message("a") + query_message("b"), (ANSWER + ready()) * 2, True),
    "an empty query": (query_message(""), wire.message(wire.EMPTY_QUERY) + ready(), True),
    "several statements in a query": (query_message("a; b"), ANSWER + done("INSERT 0 1") + ready(), True),
    "the extended protocol": (parse_message("", "a") + bind_message("") + DP + E + S, parsed + bound + ANSWER + ready(), True),
    "extended, flushed, no Sync": (parse_message("", "a") + bind_message("") + E + H, parsed + bound + done(), False),
    "extended, suspended": (parse_message("", "a") + bind_message("") + E + S, parsed + bound + wire.message(wire.PORTAL_SUSPENDED) + ready("T"), False),
    "a batch that fails": (parse_message("", "a") + bind_message("") + E + S, err() + ready(), True),
    "two batches, the first fails": (
        parse_message("", "a") + bind_message("") + E + S + parse_message("", "b") + bind_message("") + E + S,
        parsed + err() + ready() + parsed + bound + done() + ready(),
        True,
    ),
    "two batches, the first answered": (
        parse_message("", "a") + bind_message("") + E + S + parse_message("", "b") + bind_message("") + E + S,
        parsed + bound + done() + ready(),
        False,
    ),
    "a query without a Sync before it": (parse_message("", "a") + bind_message("") + E + query_message("b"), parsed + bound + done() + ANSWER + ready(), True),
    "a query that the server skips": (parse_message("", "a") + query_message("b") + S, err() + ready(), True),
    "a function call": (wire.message(wire.FUNCTION_CALL, b"\0" * 10), wire.message(wire.FUNCTION_RESPONSE, b"\0" * 4) + ready(), True),
    "COPY out": (
        query_message("copy t to stdout"),
        wire.message(wire.COPY_OUT, b"\0\0\0") + wire.message(wire.COPY_DATA, b"1\n") * 3
        + wire.message(wire.COPY_DONE) + done("COPY 3") + ready(),
        True,
    ),
    "COPY in": (
        query_message("copy t from stdin") + wire.message(wire.COPY_DATA, b"1\n") + wire.message(wire.COPY_DONE),
        copy_in + done("COPY 1") + ready(),
        True,
    ),
    "COPY in that is refused at once": (
        query_message("copy t from stdin") + wire.message(wire.COPY_DATA, b"1\n") + wire.message(wire.COPY_DONE),
        err() + ready(),
        True,
    ),
    "COPY in, extended, with a Sync that the copy swallows": (
        parse_message("", "copy") + bind_message("") + E + S + wire.message(wire.COPY_DATA, b"1\n") + wire.message(wire.COPY_DONE) + S,
        parsed + bound + copy_in + done("COPY 1") + ready(),
        True,
    ),
    "COPY in, extended, refused, and both Syncs are answered": (
        parse_message("", "copy") + bind_message("") + E + S + wire.message(wire.COPY_DATA, b"1\n") + wire.message(wire.COPY_DONE) + S,
        parsed + bound + err() + ready() + ready(),
        True,
    ),
    "notices and parameters between": (
        query_message("select 1"),
        wire.error_response("00000", "hi", kind=wire.NOTICE) + ANSWER + wire.message(wire.NOTIFICATION, b"\0\0\0\2a\0b\0") + ready(),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("step", [0, 1, 7], ids=["whole", "byte by byte", "seven bytes"])
def test_everything_passes_as_it_is_and_the_server_is_free_when_it_may_be(name, step):
    sent, answered, free = EXCHANGES[name]
    talk = linked()
    assert fed(talk.client, sent, step, talk.session.frontend) == sent
    assert fed(talk.server, answered, step) == answered
    assert talk.session.releasable is free


def fed(take, data, step, frontend=None):
    """All that comes out, where `data` comes in pieces of `step` bytes."""
    pieces = [data] if not step else [data[pos : pos + step] for pos in range(0, len(data), step)]
    out = b""
    for piece in pieces:
        out += take((frontend.remainder if frontend is not None else b"") + piece)
    return out


def test_copying_syncs_are_not_awaited_while_the_server_reads_data():
    talk = linked()
    talk.client(parse_message("", "copy") + bind_message("") + E + S)
    talk.server(parsed + bound + copy_in)
    talk.client(wire.message(wire.COPY_DATA, b"1\n") + S + H + wire.message(wire.COPY_DONE) + S)
    talk.server(done("COPY 1") + ready())
    assert talk.session.releasable


def test_nothing_but_a_sync_goes_on_after_an_error():
    talk = linked()
    talk.client(parse_message("", "a") + H)
    talk.server(err())
    assert talk.client(bind_message("") + E + query_message("c")) == b""
    assert talk.client(S) == S
    assert not talk.session.releasable
    talk.server(ready())
    assert talk.session.releasable


def test_what_comes_after_the_sync_that_ends_the_skipping_is_not_skipped():
    talk = linked()
    talk.client(parse_message("", "a") + H)
    talk.server(err())
    assert talk.client(bind_message("") + S + parse_message("", "b") + S) == S + parse_message("", "b") + S
    assert talk.server(ready() + parsed + ready()) == ready() + parsed + ready()
    assert talk.session.releasable


def test_a_long_row_passes_in_pieces():
    talk = linked()
    talk.client(query_message("select"))
    row = wire.data_row([b"x" * 100_000])
    data = rows + row + done() + ready()
    assert talk.server(data[:5000]) == data[:5000]
    assert talk.server(data[5000:50_000]) == data[5000:50_000]
    assert talk.server(data[50_000:]) == data[50_000:]
    assert talk.session.releasable


@pytest.mark.parametrize("kind", [wire.BIND, wire.QUERY, wire.COPY_DATA])
def test_a_long_message_goes_on_before_it_is_whole(kind):
    talk = linked()
    if kind == wire.BIND:
        assert kinds(talk.client(parse_message("s", "select $1"))) == "P"
        data = bind_message("s", value=b"x" * 3_000_000)
    else:
        data = wire.message(kind, b"x" * 3_000_000 + b"\0")
    sent = talk.client(data[:1_500_000])
    assert len(sent) > 1_000_000
    assert talk.session.frontend.remainder == b""
    assert talk.session.frontend.mid_message
    sent += talk.client(data[1_500_000:] + S)
    assert kinds(sent) == chr(kind) + "S"
    assert not talk.session.frontend.mid_message


@pytest.mark.parametrize(
    "data",
    [
        b"R\0\0\0\x08\0\0\0\0",
        b"Q\0\0\0\x03",
        b"\x16\x03\x01\x02\0",
        b"D\0\0\0\x04",
        b"C\0\0\0\x06Xa",
        b"P\0\0\0\x05a",
        b"B\0\0\0\x05\0",
    ],
)
def test_what_is_no_message_of_a_client_ends_it(data):
    with pytest.raises(ProtocolError):
        linked().client(data)


@pytest.mark.parametrize("data", [b"Q\0\0\0\x05\0", b"Z\0\0\0\x03", b"T\xff\xff\xff\xff", b"\0\0\0\0\0"])
def test_what_is_no_message_of_a_server_ends_it(data):
    talk = linked()
    talk.client(query_message("select 1"))
    with pytest.raises(ValueError, match="no message"):
        talk.server(data)


@given(st.lists(st.sampled_from(sorted(EXCHANGES)), min_size=1, max_size=6), st.integers(1, 200), st.integers(1, 200))
def test_any_exchanges_in_any_pieces(names, near, far):
    """Only those after which the server is free or in a transaction that the next one can go on with."""
    talk = linked()
    for name in names:
        sent, answered, free = EXCHANGES[name]
        if not free:
            continue
        assert fed(talk.client, sent, near, talk.session.frontend) == sent
        assert fed(talk.server, answered, far) == answered
        talk.release()
        talk.link()


# ── state that follows its client ────────────────────────────────────────────────────────────────


def probe_answer(**settings):
    lines = [wire.data_row([b"s", name.replace("__", ".").encode(), value]) for name, value in settings.items()]
    return rows + b"".join(lines) + done() + ready()


BASE = {"application_name": b"", "client_encoding": b"UTF8"}


def test_a_set_is_asked_for_when_its_transaction_has_ended_and_set_again_elsewhere():
    talk = linked()
    talk.client(query_message("begin"))
    talk.server(done("BEGIN") + ready("T"))
    talk.client(query_message("set search_path to a"))
    talk.server(done("SET") + ready("T"))
    assert talk.behind() == b""
    talk.client(query_message("commit"))
    assert talk.server(done("COMMIT") + ready()) == done("COMMIT") + ready()
    assert b"pg_settings" in talk.behind()
    assert not talk.session.releasable
    assert talk.server(probe_answer(search_path=b"a", **BASE)) == b""
    talk.release()
    ahead, _ = talk.link()
    assert b"set_config(E'search_path', E'a', false)" in ahead
    assert talk.session.blocked
    assert talk.server(rows + ROW + done() + ready()) == b""
    assert not talk.session.blocked
    assert not talk.session.releasable
    assert talk.client(query_message("select 1")) == query_message("select 1")


def test_the_same_server_again_needs_nothing():
    talk, backend = Talk(), server()
    talk.link(backend)
    talk.client(query_message("set a.b to 1"))
    talk.server(done("SET") + ready())
    talk.server(probe_answer(a__b=b"1", **BASE))
    talk.release()
    assert talk.link(backend) == (b"", b"")


def test_the_next_client_finds_none_of_it_and_need_not_wait():
    first, second, backend = Talk(), Talk(number=2), server()
    first.link(backend)
    first.client(query_message("set role bob; set a.b to 1"))
    first.server(done("SET") + done("SET") + ready())
    first.server(probe_answer(a__b=b"1", role=b"bob", **BASE))
    first.release()
    ahead, _ = second.link(backend)
    assert ahead == wire.query_message(b'RESET "role";RESET "a"."b";')
    assert not second.session.blocked
    second.client(query_message("select 1"))
    assert second.server(done("RESET") * 2 + ready() + ANSWER + ready()) == ANSWER + ready()
    assert second.session.releasable


@pytest.mark.parametrize(
    "text", ["set local a = 1", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;", "update t set a = 1", "select 1"]
)
def test_what_ends_with_its_transaction_is_not_asked_about(text):
    talk = linked()
    talk.client(query_message(text))
    talk.server(done("SET" if text.lower().startswith("set") else "SELECT 1") + ready())
    assert talk.behind() == b""
    assert talk.session.releasable


def test_a_server_that_cannot_be_set_serves_nobody_and_its_client_is_told():
    talk, backend = Talk(name="mine"), server()
    talk.link(backend)
    talk.server(err("42501", "permission denied") + ready())
    assert kinds(talk.session.fatal_error) == "E"
    assert "permission denied" in wire.error_fields(talk.session.fatal_error[5:])["M"]


def test_with_always_a_server_is_reset_for_every_other_client():
    first, second, backend = Talk(), Talk(number=2), server()
    assert kinds(first.link(backend, always=True)[0]) == "Q"
    first.client(query_message("select 1"))
    first.server(done("RESET") + done("RESET") + ready() + ANSWER + ready())
    first.release()
    assert first.link(backend, always=True) == (b"", b"")
    first.client(query_message("select 1"))
    first.server(ANSWER + ready())
    first.release()
    ahead, _ = second.link(backend, always=True)
    assert b"RESET ALL" in ahead
    assert not second.session.blocked


def test_a_client_is_told_where_its_server_reports_something_else():
    talk = Talk()
    backend = server(params={**PARAMS, b"TimeZone": b"Asia/Tokyo"})
    assert talk.link(backend) == (b"", wire.parameter_status(b"TimeZone", b"Asia/Tokyo"))


def test_an_application_name_of_its_own_is_set_and_seen():
    talk = Talk(name="mine", params={**PARAMS, b"application_name": b"mine"})
    ahead, reported = talk.link(server(name="theirs", params={**PARAMS, b"application_name": b"theirs"}))
    assert b"set_config(E'application_name', E'mine', false)" in ahead
    assert reported == b""
    assert talk.server(wire.parameter_status(b"application_name", b"mine") + ANSWER + ready()) == b""


# ── what pins ────────────────────────────────────────────────────────────────────────────────────


def held(flag):
    return rows + wire.data_row([str(flag).encode(), b"", b""]) + done() + ready()


@pytest.mark.parametrize(
    ("text", "tag", "asked", "flag"),
    [
        ("listen a", "LISTEN", b"pg_listening_channels", 16),
        ("create temp table t (a int)", "CREATE TABLE", b"pg_my_temp_schema", 2),
        ("select pg_advisory_lock(1)", "SELECT 1", b"pg_locks", 4),
        ("select pg_try_advisory_lock_shared(1)", "SELECT 1", b"pg_locks", 4),
        ("declare c cursor with hold for select 1", "DECLARE CURSOR", b"pg_cursors", 8),
        ("prepare p as select 1", "PREPARE", b"pg_prepared_statements", 32),
    ],
)
def test_what_cannot_follow_keeps_its_server_while_it_is_there(text, tag, asked, flag):
    talk = linked()
    talk.client(query_message(text))
    assert talk.session.frontend.has_pin is ("try" not in text)
    talk.server(done(tag) + ready())
    assert asked in talk.behind()
    talk.server(held(flag))
    assert talk.session.pinned
    assert not talk.session.releasable
    undone = {16: "UNLISTEN", 2: "DROP TABLE", 8: "CLOSE CURSOR", 32: "DEALLOCATE"}.get(flag, "SELECT 1")
    talk.client(query_message("select pg_advisory_unlock(1)"))
    talk.server(done(undone) + ready())
    talk.server(rows + done("SELECT 0") + ready())
    assert not talk.session.pinned
    assert talk.given_up == 1
    talk.release()


@pytest.mark.parametrize("text", ["select pg_advisory_xact_lock(1)", "select 'attempt'", "unlisten *", "preparedness"])
def test_what_only_looks_like_it_pins_nothing(text):
    talk = linked(slots=False)
    assert talk.client(query_message(text)) == query_message(text)


@pytest.mark.parametrize("batch", [query_message("listen a"), parse_message("", "listen a") + bind_message("") + E + S])
def test_where_no_slot_is_left_it_waits_without_a_server(batch):
    talk = linked(slots=False)
    assert talk.client(batch) == b""
    assert talk.session.frontend.remainder == batch
    assert talk.session.blocked
    talk.release()
    talk.session.frontend.resolve_pin()
    talk.link()
    assert talk.client(batch) == batch


@pytest.mark.parametrize(
    ("batch", "sent"),
    [(query_message("listen a"), "Q"), (parse_message("", "listen a") + bind_message("") + E + S, "PBES")],
)
def test_and_is_refused_in_the_end_by_an_error_of_that_statement(batch, sent):
    talk = linked(slots=False)
    talk.client(batch)
    talk.session.frontend.resolve_pin(wire.error_response("53300", "no slot"))
    assert kinds(talk.client(batch)) == sent
    assert b"listen" not in talk.client(b"")
    assert wire.error_fields(talk.server(err() + ready())[5:])["M"] == "no slot"
    assert talk.session.releasable


def test_load_keeps_its_server_for_good():
    talk = linked()
    talk.client(query_message("load 'x'"))
    talk.server(done("LOAD") + ready())
    assert not talk.session.releasable
    assert talk.session.begin_cleanup() is None


def test_session_mode_keeps_its_server_and_cleans_it_in_the_end():
    talk = linked(keep=True, slots=False)
    talk.client(query_message("listen a"))
    talk.server(done("LISTEN") + ready())
    talk.behind()
    talk.server(held(16))
    assert not talk.session.releasable
    assert not talk.session.fatal_error
    assert talk.session.begin_cleanup() == wire.query_message(b"DISCARD ALL")
    talk.server(done("DISCARD ALL") + ready())
    assert talk.session.releasable


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sent", "answered", "cleaned", "replies"),
    [
        (query_message("begin"), done("BEGIN") + ready("T"), query_message("ROLLBACK"), done("ROLLBACK") + ready()),
        (query_message("oops"), err() + ready("E"), query_message("ROLLBACK"), done("ROLLBACK") + ready()),
        (parse_message("", "a") + H, parsed, "ES", err() + ready()),
        (parse_message("", "a") + bind_message("") + E + H, parsed, "ES", err() + ready()),
        (query_message("copy t from stdin"), copy_in, "f", err() + ready()),
        (parse_message("", "copy") + bind_message("") + E + S, parsed + bound + copy_in, "fS", err() + ready()),
        (query_message("select 1"), rows, "", ROW + done() + ready()),
    ],
)
def test_a_client_that_leaves_in_the_middle_leaves_a_clean_server(sent, answered, cleaned, replies):
    talk = linked()
    talk.client(sent)
    talk.server(answered)
    left = talk.session.begin_cleanup()
    assert left == cleaned or kinds(left) == cleaned
    talk.server(replies)
    assert talk.session.releasable


def test_a_client_that_leaves_before_the_copy_began_still_ends_it():
    talk = linked()
    talk.client(query_message("copy t from stdin"))
    assert talk.session.begin_cleanup() == b""
    talk.server(copy_in)
    assert kinds(talk.behind()) == "f"
    talk.server(err() + ready())
    assert talk.session.releasable


def test_a_client_that_leaves_in_a_transaction_with_state_is_cleaned_in_two_steps():
    talk = linked()
    talk.client(query_message("begin; listen a"))
    talk.server(done("BEGIN") + done("LISTEN") + ready("T"))
    assert talk.session.begin_cleanup() == query_message("ROLLBACK")
    talk.server(done("ROLLBACK") + ready())
    assert talk.behind() == query_message("DISCARD ALL")
    talk.server(done("DISCARD ALL") + ready())
    assert talk.session.releasable
    assert talk.given_up == 1


def test_a_client_that_leaves_gives_its_slot_back_whatever_came_of_it():
    talk = linked()
    talk.client(parse_message("", "listen a") + S)
    talk.server(err() + ready("T"))
    assert talk.session.frontend.has_pin
    talk.session.begin_cleanup()
    talk.server(done("ROLLBACK") + ready())
    assert talk.session.releasable
    assert talk.given_up == 1


def test_a_client_that_leaves_before_the_database_told_what_it_left_is_cleaned():
    talk = linked()
    talk.client(query_message("set search_path to ''"))
    talk.server(done("SET") + ready())
    assert b"pg_settings" in talk.behind()
    assert talk.session.begin_cleanup() == b""
    talk.server(probe_answer(search_path=b"", **BASE))
    assert talk.behind() == query_message("DISCARD ALL")
    talk.server(done("DISCARD ALL") + ready())
    assert talk.session.releasable


def test_a_late_cancel_that_hits_the_cleaning_leaves_no_server_to_others():
    talk = linked()
    talk.client(query_message("set search_path to ''"))
    talk.server(done("SET") + ready())
    talk.behind()
    talk.session.begin_cleanup()
    talk.server(probe_answer(search_path=b"", **BASE))
    assert talk.behind() == query_message("DISCARD ALL")
    talk.server(err("57014") + ready())
    assert not talk.session.releasable
    assert b"DISCARD ALL did not do what it should" in talk.session.fatal_error


def test_half_a_message_cannot_be_taken_back():
    talk = linked()
    talk.client(wire.message(wire.COPY_DATA, b"x" * 1_000_000)[:100_000])
    assert talk.session.begin_cleanup() is None


def test_what_a_leaving_client_says_ends_it():
    talk = linked()
    talk.client(X)
    assert talk.session.frontend.terminated


# ── prepared statements ──────────────────────────────────────────────────────────────────────────


def prepared(talk, name="s", text="select $1"):
    sent = talk.client(parse_message(name, text) + describe_message(name) + S)
    talk.server(parsed + wire.message(wire.PARAMETER_DESCRIPTION, b"\0\0") + rows + ready())
    return named(sent, wire.PARSE)[5:].split(b"\0")[0].decode()


def test_a_statement_has_one_name_for_all_and_is_prepared_where_it_is_missing():
    one, other = server(), server()
    talk = Talk()
    talk.link(one)
    name = prepared(talk)
    assert name.startswith("outrigger_")
    talk.release()
    talk.link(other)
    batch = bind_message("s", value=b"1") + E + S
    sent = talk.client(batch)
    assert kinds(sent) == "PDH"  # it knows the shape of its rows, so that is compared first
    assert talk.session.blocked
    assert talk.server(parsed + wire.message(wire.PARAMETER_DESCRIPTION, b"\0\0") + rows) == b""
    assert not talk.session.blocked
    assert talk.client(batch) == bind_message(name, value=b"1") + E + S
    assert talk.server(bound + ANSWER + ready()) == bound + ANSWER + ready()
    talk.release()
    second = Talk(statements=talk.statements, number=2)
    second.link(one)
    assert kinds(second.client(parse_message("x", "select $1") + S)) == "S"
    assert second.server(ready()) == parsed + ready()


def test_a_statement_that_means_something_else_by_now_is_an_error_as_on_a_connection_of_its_own():
    talk = linked()
    prepared(talk)
    talk.release()
    talk.link()
    batch = bind_message("s") + E + S
    talk.client(batch)
    talk.server(parsed + wire.row_description(["a", "b"]))
    sent = talk.client(batch)
    assert kinds(sent) == "BES"
    assert wire.error_fields(talk.server(err("26000") + ready())[5:])["M"] == "cached plan must not change result type"
    talk.release()
    talk.link()
    assert (
        kinds(talk.client(close_message("s") + parse_message("s", "select $1") + bind_message("s") + E + S)) == "PBES"
    )


def test_the_database_saying_so_has_it_prepared_anew():
    backend = server()
    talk, other = Talk(), Talk(number=2)
    other.statements = talk.statements
    talk.link(backend)
    name = prepared(talk)
    talk.client(bind_message("s") + E + S)
    talk.server(err("0A000", "cached plan must not change result type") + ready())
    talk.release()
    second = Talk(statements=talk.statements, number=2)
    second.link(backend)
    assert prepared(second) != name


def test_after_a_change_of_the_schema_a_text_is_prepared_anew():
    backend = server()
    talk = Talk()
    talk.link(backend)
    name = prepared(talk)
    talk.client(query_message("alter table t add b int"))
    talk.server(done("ALTER TABLE") + ready())
    assert prepared(talk, "s2") != name


def test_closing_a_statement_is_ours_to_answer():
    talk = linked()
    prepared(talk)
    assert talk.client(close_message("s") + S) == S
    assert talk.server(ready()) == closed + ready()
    assert (
        talk.client(bind_message("s") + S) == bind_message("s") + S
    )  # the server says that there is none, by its right name


def test_answers_of_ours_come_in_their_order():
    talk = linked()
    prepared(talk)
    sent = talk.client(parse_message("a", "select 2") + close_message("s") + parse_message("b", "select 3") + S)
    assert kinds(sent) == "PPS"
    assert talk.server(parsed) == parsed + closed
    assert talk.server(parsed + ready()) == parsed + ready()


def test_an_answer_of_ours_comes_at_a_flush_though_the_server_says_nothing():
    talk = linked()
    prepared(talk)
    talk.client(close_message("s") + H)
    assert talk.session.outstanding.pop_local_replies() == closed


def test_what_failed_before_it_was_not_closed():
    talk = linked()
    prepared(talk)
    talk.client(parse_message("", "oops") + close_message("s") + S)
    assert kinds(talk.server(err() + ready())) == "EZ"
    assert "s" in {name.decode() for name in talk.session.frontend.statements}


def test_a_statement_that_fails_is_known_to_nobody():
    backend, talk = server(), Talk()
    talk.link(backend)
    talk.client(parse_message("s", "oops") + S)
    talk.server(err() + ready())
    assert not talk.session.frontend.statements
    assert not backend.prepared


def test_a_name_twice_is_refused_by_the_server_under_the_name_that_the_client_gave():
    talk = linked()
    name = prepared(talk)
    sent = talk.client(parse_message("s", "select 2") + S)
    assert named(sent, wire.PARSE) == parse_message(name, "select 2")
    said = talk.server(err("42P05", f'prepared statement "{name}" already exists') + ready())
    assert wire.error_fields(said[5:])["M"] == 'prepared statement "s" already exists'


def test_the_unnamed_statement_follows_its_client():
    talk = linked()
    talk.client(parse_message("", "select 1") + S)
    talk.server(parsed + ready())
    talk.release()
    talk.link()
    assert talk.client(bind_message("") + E + S) == parse_message("", "select 1") + bind_message("") + E + S
    assert talk.server(parsed + bound + done() + ready()) == bound + done() + ready()


def test_what_we_ask_between_ends_no_unnamed_statement_of_a_client():
    talk = linked()
    talk.client(parse_message("", "listen a") + bind_message("") + E + S)
    talk.server(parsed + bound + done("LISTEN") + ready())
    talk.behind()
    talk.server(held(16))
    assert kinds(talk.session.process_requests(bind_message("") + E + S)) == "PBES"


def test_nobody_gets_the_unnamed_statement_of_another():
    first, second, backend = Talk(), Talk(number=2), server()
    first.link(backend)
    first.client(parse_message("", "select 1") + S)
    first.server(parsed + ready())
    first.release()
    second.link(backend)
    assert kinds(second.client(bind_message("") + E + S)) == "CBES"
    assert second.server(closed + err("26000") + ready()) == err("26000") + ready()


def test_a_query_ends_the_unnamed_statement():
    talk = linked()
    talk.client(parse_message("", "select 1") + S)
    talk.server(parsed + ready())
    talk.client(query_message("select 2"))
    talk.server(ANSWER + ready())
    assert talk.client(bind_message("") + S) == bind_message("") + S


def test_a_server_keeps_a_bounded_number_of_statements(monkeypatch):
    monkeypatch.setattr("proxy.postgres.frontend.MAX_PREPARED", 2)
    talk = linked()
    for index in range(2):
        prepared(talk, f"s{index}", f"select {index}")
    sent = talk.client(parse_message("s2", "select 2") + S)
    assert kinds(sent) == "CPS"
    assert talk.server(closed + parsed + ready()) == parsed + ready()


@pytest.mark.parametrize("how", ["DEALLOCATE s", 'deallocate prepare "s";'])
@pytest.mark.parametrize("extended", [False, True])
def test_deallocate_in_sql_means_the_statement_that_the_client_named(how, extended):
    backend, talk = server(), Talk()
    talk.link(backend)
    name = prepared(talk)
    sent = talk.client(parse_message("", how) + bind_message("") + E + S if extended else query_message(how))
    assert f'DEALLOCATE "{name}"'.encode() in sent
    talk.server((parsed * 2 + bound if extended else b"") + done("DEALLOCATE") + ready())
    assert not talk.session.frontend.statements
    assert not backend.prepared


@pytest.mark.parametrize("tag", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_what_forgets_all_forgets_all(tag):
    backend, talk = server(), Talk()
    talk.link(backend)
    prepared(talk)
    talk.client(query_message(tag.lower()))
    talk.server(done(tag) + ready())
    assert not talk.session.frontend.statements
    assert not backend.prepared


def test_describing_what_returns_nothing():
    talk = linked()
    talk.client(parse_message("s", "begin") + describe_message("s") + S)
    assert kinds(talk.server(parsed + wire.message(wire.PARAMETER_DESCRIPTION, b"\0\0") + nothing + ready())) == "1tnZ"


# ── names over several batches at once ───────────────────────────────────────────────────────────


def through(talk, data, answers):
    """All that the server gets for `data`, where it answers each time that it is asked, and what the client gets."""
    got = heard = b""
    rest = data
    for answer in [*answers, b""]:
        while rest and not talk.session.blocked:
            got += talk.client(rest)
            rest = talk.session.frontend.remainder
        heard += talk.server(answer)
    assert rest == b""
    return got, heard


def test_a_parse_that_was_skipped_takes_no_name():
    talk = linked()
    got, heard = through(
        talk,
        describe_message("nope") + parse_message("q", "select 1") + S + parse_message("q", "select 2") + S,
        [err("26000") + ready(), parsed + ready()],
    )
    assert kinds(got) == "DPSHPS"
    assert kinds(heard) == "EZ1Z"
    got, heard = through(talk, parse_message("q", "select 3") + S, [err("42P05") + ready()])
    assert kinds(heard) == "EZ"


def test_a_name_that_is_taken_while_all_are_forgotten_is_the_later_one():
    talk = linked()
    got, heard = through(
        talk,
        parse_message("p", "deallocate all") + bind_message("p") + E + S + parse_message("p", "select 2") + S,
        [parsed + bound + done("DEALLOCATE ALL") + ready(), parsed + ready()],
    )
    assert kinds(heard) == "12CZ1Z"
    assert "p" in {name.decode() for name in talk.session.frontend.statements}


def test_names_of_ours_are_told_to_nobody():
    talk = linked()
    name = prepared(talk)
    talk.client(parse_message("", "deallocate s") + bind_message("") + E + S)
    talk.server(parsed + bound + done("DEALLOCATE") + ready())
    talk.server(rows + done("SELECT 0") + ready())
    talk.client(bind_message("") + E + S)
    said = talk.server(bound + err("26000", f'prepared statement "{name}" does not exist') + ready())
    assert name.encode() not in said
    assert b'statement "s" does not' in said


def test_an_unnamed_parse_that_was_skipped_leaves_the_one_before():
    talk = linked()
    through(talk, parse_message("", "select 1") + S, [parsed + ready()])
    through(
        talk,
        bind_message("") + parse_message("", "select 2") + parse_message("", "select 3") + S,
        [err("08P01") + ready()],
    )
    assert talk.session.frontend.unnamed.body.startswith(b"select 1")
    through(talk, parse_message("", "select 4") + parse_message("", "select 5") + S, [err("42601") + ready()])
    assert talk.session.frontend.unnamed.body is None


def test_which_unnamed_statement_there_is_hangs_on_what_came_of_the_last():
    talk = linked()
    got, heard = through(
        talk,
        bind_message("nope") + parse_message("", "select 1") + S + describe_message("") + S,
        [err("26000") + ready(), err("26000") + ready()],
    )
    assert kinds(got) == "BPSHDS"
    assert kinds(heard) == "EZEZ"


def elsewhere(talk, backend=None):
    """Its client goes on with a server that knows nothing of it."""
    talk.release()
    talk.link(backend)


def test_what_was_to_be_prepared_again_and_was_skipped_is_so_in_the_next_batch():
    talk = linked()
    through(talk, parse_message("q", "begin") + S, [parsed + ready()])
    elsewhere(talk)
    got, heard = through(
        talk,
        describe_message("nope") + bind_message("q") + S + bind_message("q") + S,
        [err("26000") + ready(), parsed + bound + ready()],
    )
    assert kinds(got).count("P") == 2
    assert kinds(heard) == "EZ2Z"


def test_a_taken_name_is_refused_by_the_server_wherever_it_was_given():
    backend, talk = server(), linked()
    prepared(talk, "p", "select 1")
    elsewhere(talk, backend)
    talk.client(query_message("begin; oops"))
    talk.server(err() + ready("E"))
    sent = talk.client(
        parse_message("p", "commit") + S
    )  # which is let through in a failed transaction, and `select 1` is not
    name = named(sent, wire.PARSE)[5:].split(b"\0")[0].decode()
    assert sent == parse_message(name, "commit") * 2 + S
    said = talk.server(parsed + err("42P05", f'prepared statement "{name}" already exists') + ready("E"))
    assert wire.error_fields(said[5:])["M"] == 'prepared statement "p" already exists'
    assert talk.session.frontend.statements[b"p"].body.startswith(b"select 1")
    talk.client(parse_message("p", "select 2") + S)
    assert wire.error_fields(talk.server(err("25P02") + ready("E"))[5:])["C"] == "25P02"
    assert len(backend.prepared) == 1


def test_the_server_is_asked_to_parse_where_it_may_have_failed_before():
    talk = linked()
    prepared(talk, "p", "select 1")
    talk.client(query_message("begin"))
    talk.server(done("BEGIN") + ready("T"))
    assert kinds(talk.client(describe_message("nope") + S + parse_message("q", "select 1") + S)) == "DSPS"
    assert kinds(talk.server(err("26000") + ready("E") + err("25P02") + ready("E"))) == "EZEZ"
    assert b"q" not in talk.session.frontend.statements


@pytest.mark.parametrize("extended", [False, True])
def test_what_a_deallocate_means_hangs_on_what_came_of_the_parse_before_it(extended):
    talk = linked()
    deallocate = (
        parse_message("", "deallocate p") + bind_message("") + E + S if extended else query_message("deallocate p")
    )
    got, heard = through(
        talk,
        describe_message("nope") + parse_message("p", "select 1") + S + deallocate,
        [err("26000") + ready(), err("26000") + ready()],
    )
    assert b"deallocate p" in got
    assert kinds(heard) == "EZEZ"


SKIPPED = err("26000") + ready()


@pytest.mark.parametrize(
    ("batches", "answers", "left"),
    [
        (describe_message("nope") + parse_message("", "select 2") + S, [SKIPPED], b"select 1"),
        (describe_message("nope") + close_message("") + S, [SKIPPED], b"select 1"),
        (describe_message("nope") + query_message("select 2") + S, [SKIPPED], b"select 1"),
        ((describe_message("nope") + parse_message("", "select 2") + S) * 2, [SKIPPED * 2], b"select 1"),
        (
            describe_message("nope") + parse_message("", "select 2") + S + parse_message("", "select 3") + S,
            [SKIPPED + parsed + ready()],
            b"select 3",
        ),
        (
            describe_message("nope") + parse_message("", "select 2") + S + parse_message("", "oops") + S,
            [SKIPPED + err() + ready()],
            None,
        ),
        (
            describe_message("nope") + query_message("select 2") + S + query_message("select 3"),
            [SKIPPED + ANSWER + ready()],
            None,
        ),
        (
            close_message("") + S + describe_message("nope") + parse_message("", "select 2") + S,
            [closed + ready() + SKIPPED],
            None,
        ),
    ],
)
def test_the_unnamed_statement_is_the_last_that_was_parsed_and_not_ended(batches, answers, left):
    backend, talk = server(), Talk()
    talk.link(backend)
    through(talk, parse_message("", "select 1") + S, [parsed + ready()])
    through(talk, batches, answers)
    rest = talk.session.frontend.unnamed.body
    assert (rest and rest.split(b"\0")[0]) == left
    assert backend.unnamed_body == rest  # so nobody else gets it, and it need not be parsed again


def test_an_unnamed_statement_outlives_that_all_is_discarded():
    talk = linked()
    through(
        talk,
        parse_message("", "discard all") + bind_message("") + E + S,
        [parsed + bound + done("DISCARD ALL") + ready()],
    )
    assert talk.session.frontend.unnamed.body.startswith(b"discard all")


def test_what_an_unnamed_statement_may_leave_behind_is_known_though_another_was_skipped():
    talk = linked()
    through(talk, parse_message("", "select set_config('a', 'b', false)") + S, [parsed + ready()])
    through(talk, describe_message("nope") + parse_message("", "select 2") + S, [SKIPPED])
    talk.client(bind_message("") + E + S)
    talk.server(bound + ANSWER + ready())
    assert kinds(talk.behind()) == "Q"


def test_an_unnamed_statement_outlives_that_it_could_not_be_parsed_again():
    talk = linked()
    through(talk, parse_message("", "select 1") + S, [parsed + ready()])
    elsewhere(talk)
    through(
        talk, parse_message("b", "begin") + bind_message("b") + E + S, [parsed + bound + done("BEGIN") + ready("T")]
    )
    through(talk, describe_message("nope") + S, [err("26000") + ready("E")])
    assert kinds(talk.client(bind_message("") + E + S)) == "PBES"
    assert kinds(talk.server(err("25P02") + ready("E"))) == "EZ"
    assert talk.session.frontend.unnamed.body is not None


def test_of_what_is_not_answered_a_bounded_part_is_remembered():
    talk = linked()
    talk.client((parse_message("", "select 1") + bind_message("") + E + S) * 500)
    assert talk.session.blocked
    asked = sum(entry.kind == wire.SYNC for entry in talk.session.outstanding.queue)
    assert asked < 200
    talk.server((parsed + bound + ANSWER + ready()) * asked)
    assert not talk.session.blocked
