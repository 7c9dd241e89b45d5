"""A client that goes away at any moment: its transaction is rolled back, its connection free and clean at once."""

from __future__ import annotations

import struct

import pytest
from postgres_gateway import PostgresGateway
from postgres_wire_client import (
    FLUSH,
    SYNC,
    V3,
    Wire,
    bind,
    cancel_request,
    copy_data,
    describe,
    execute,
    message,
    parse,
    query,
    startup,
)

HOWS = (Wire.drop, Wire.reset, Wire.bye)


def waiting_for_an_answer(wire: Wire) -> None:
    wire.send(query("select pg_sleep(30)"))


def with_rows_unread(wire: Wire) -> None:
    wire.send(query("select repeat('x', 10000) from generate_series(1, 20000)"))
    wire.read()


STATES = {
    "fresh": lambda wire: None,
    "after a query": lambda wire: wire.ask(query("select 1")),
    "within a transaction": lambda wire: wire.ask(query("begin; insert into common values (99, 'x')")),
    "within a failed transaction": lambda wire: wire.ask(query("begin; select 1/0")),
    "running a query": waiting_for_an_answer,
    "running an extended query": lambda wire: wire.send(parse("select pg_sleep(30)"), bind(), execute(), SYNC),
    "running a query in a transaction": lambda wire: (wire.ask(query("begin")), waiting_for_an_answer(wire)),
    "with rows unread": with_rows_unread,
    "parsed and flushed, without a Sync": lambda wire: (wire.send(parse("select 1"), describe("S"), FLUSH), wire.read()),
    "executed without a Sync": lambda wire: (
        wire.send(parse("insert into common values (98, 'x')"), bind(), execute(), FLUSH), wire.answer("CE"),
    ),
    "with a portal suspended": lambda wire: (
        wire.send(parse("select generate_series(1, 9)"), bind(), execute(2), FLUSH), wire.answer("s"),
    ),
    "in an error without a Sync": lambda wire: (wire.send(parse("select nope"), FLUSH), wire.answer("E")),
    "in the middle of a message": lambda wire: wire.send(query("select 'half a message'")[:-9]),
    "in the middle of a message of a transaction": lambda wire: (
        wire.ask(query("begin")), wire.send(query("select 'half a message'")[:-9]),
    ),
    "after half a header": lambda wire: wire.send(b"Q\0\0"),
    "copying in": lambda wire: (
        wire.send(query("copy common from stdin")), wire.answer("G"), wire.send(copy_data(b"97\tx\n")),
    ),
    "copying in by the extended protocol": lambda wire: (
        wire.send(parse("copy common from stdin"), bind(), execute(), FLUSH), wire.answer("G"), wire.send(copy_data(b"97\tx\n")),
    ),
    "copying in, half a message": lambda wire: (
        wire.send(query("copy common from stdin")), wire.answer("G"), wire.send(copy_data(b"97\tx\n" * 9)[:-7]),
    ),
    "copying out": lambda wire: (
        wire.send(query("copy (select repeat('x', 10000) from generate_series(1, 20000)) to stdout")), wire.answer("d"),
    ),
    "listening": lambda wire: wire.ask(query("listen news")),
    "with a temp table": lambda wire: wire.ask(query("create temp table scratch (a int)")),
    "with an advisory lock": lambda wire: wire.ask(query("select pg_advisory_lock(1)")),
    "with a cursor held": lambda wire: wire.ask(query("declare h cursor with hold for select 1")),
    "with settings": lambda wire: wire.ask(query("set search_path = other; set work_mem = '3MB'; set app.tenant = 'x'")),
    "with a role": lambda wire: wire.ask(query("set role other")),
    "with statements prepared": lambda wire: wire.ask(parse("select 1", "p"), SYNC, query("prepare p2 as select 2")) + wire.answer(),
    "within a savepoint with settings": lambda wire: wire.ask(query("begin; savepoint s; set work_mem = '3MB'")),
    "pipelined, much at once": lambda wire: wire.send(*[query("select pg_sleep(0.01)")] * 100),
}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "how"),
    [
        *((state, Wire.reset) for state in STATES),
        # After a goodbye what was sent before it is done first, for a while.
        *((state, Wire.bye) for state in STATES if not state.startswith("running a query")),
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_a_client_that_leaves_leaves_nothing(shared: PostgresGateway, state: str, how) -> None:
    wire = Wire(shared.url)
    STATES[state](wire)
    how(wire)
    shared.clean()
    with Wire(shared.direct) as direct:  # what was not committed is not there
        assert direct.rows("delete from common where k > 90 returning *") == []


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
def test_a_client_that_leaves_with_its_last_answer_leaves_nothing(shared: PostgresGateway, how) -> None:
    """As pg_dump does; whatever the door still has to find out about it, the next client must not find first."""
    for sql in ("select set_config('search_path', '', false)", "create temp table scratch (a int)", "listen news") * 4:
        wire = Wire(shared.url)
        wire.ask(query(sql))
        how(wire)
        shared.clean()


NEXT = {
    "a batch begun": lambda wire: (wire.send(parse("select 1"), FLUSH), wire.read()),
    "a batch begun, unanswered": lambda wire: wire.send(parse("select 1"), FLUSH),
    "a copy begun": lambda wire: (wire.send(query("copy public.common from stdin")), wire.answer("G")),
    "a query": lambda wire: wire.send(query("select pg_sleep(30)")),
}


@pytest.mark.parametrize("then", NEXT)
def test_a_client_that_hardly_waited_leaves_nothing(shared: PostgresGateway, then: str) -> None:
    """Its next message may come while the door still looks at what the one before has left."""
    for turn, sql in enumerate(("create temp table scratch (a int)", "listen news", "set search_path = other") * 8):
        wire = Wire(shared.url)
        wire.ask(query(sql))
        NEXT[then](wire)
        HOWS[turn % 2](wire)
        shared.clean()


def test_clients_that_leave_while_they_wait_are_forgotten(shared: PostgresGateway) -> None:
    holders = [Wire(shared.url) for _ in range(shared.max)]
    for wire in holders:
        wire.ask(query("begin"))
    waiting = [Wire(shared.url) for _ in range(10)]
    for wire in waiting:
        wire.send(query("insert into common values (96, 'never')"))
    for wire, how in zip(waiting, HOWS * 4):
        how(wire)
    last = Wire(shared.url)
    last.send(query("select 'served'"))
    for wire in holders:
        wire.bye()
    assert [each.kind for each in last.answer()] == ["T", "D", "C", "Z"]
    assert last.rows("select count(*) from common where k = 96") == [("0",)]
    last.bye()
    shared.clean()


@pytest.mark.parametrize(
    "said",
    [
        b"", b"\0", b"\0\0\0\x08", startup({"user": "app"}, V3)[:-3], struct.pack("!II", 8, 80877103),
        startup({"user": "app", "database": "x"}, V3), cancel_request(1, b"abcd"), cancel_request(1, b"abcd")[:-2],
    ],
    ids=["nothing", "a byte", "a length", "half a startup", "SSLRequest", "a startup", "a cancel", "half a cancel"],
)  # fmt: skip
def test_a_client_that_leaves_while_it_logs_in_leaves_nothing(shared: PostgresGateway, said: bytes) -> None:
    for how in HOWS[:2]:
        wire = Wire(shared.url, login=False)
        wire.send(said)
        how(wire)
    wire = Wire(shared.url, login=False)
    wire.send(startup({"user": wire.user, "database": wire.database}))
    assert wire.read().kind == "R"
    wire.send(message(b"p", b"SCRAM-SHA-256\0\0\0\0\x10n,,n=,r=abcdefgh"))
    wire.drop()
    shared.clean()
