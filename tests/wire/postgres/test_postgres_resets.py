"""A RESET behind the pool leads where it leads on a connection of the client's own, told and seen at the same moment."""

from __future__ import annotations

import pytest
from postgres_pair import Pair
from postgres_wire_client import FLUSH, SYNC, Wire, bind, execute, parse, query


def extended(*texts: str) -> list[bytes]:
    return [part for text in texts for part in (parse(text), bind(), execute())]


SHOW = "show application_name"
MINE = query("set application_name = 'mine'")
# What is sent at once, and how many ReadyForQuery that makes; several of them one after another.
SAID = {
    "reset all, simple": [((query("reset all"), query(SHOW)), 2)],
    "discard all, simple": [((query("discard all"), query(SHOW)), 2)],
    "reset the one, simple": [((query('RESET "application_name"'), query(SHOW)), 2)],
    "to default": [((query("set application_name to default"), query(SHOW), query("set names default")), 3)],
    "another is reset": [((query("reset work_mem"), query(SHOW)), 2)],
    "after a SET": [((MINE, query("reset all"), query(SHOW)), 3)],
    "in a transaction": [((query("begin"),), 1), ((query("reset all"),), 1), ((query(SHOW),), 1), ((query("commit"), query(SHOW)), 2)],
    "in one that is rolled back": [((MINE, query("begin"), query("reset all"), query(SHOW), query("rollback"), query(SHOW)), 6)],
    "in one that has failed": [((MINE, query("begin"), query("select 1/0"), query("reset all"), query("rollback"), query(SHOW)), 6)],
    "before its isolation": [((query("begin"), query("reset all"), query("set transaction isolation level serializable"), query("commit")), 4)],
    "to what another client is called": [((query("set application_name = 'other'"),), 1), ((query(SHOW),), 1), ((query("reset all"), query(SHOW)), 2)],
    "extended, in one batch": [((*extended("reset all", SHOW), SYNC), 1)],
    "extended, discard all": [((*extended("discard all", SHOW), SYNC), 1)],
    "extended, discard all twice": [((*extended("discard all", "discard all"), SYNC, query(SHOW)), 2)],
    "extended, and then a failure": [((MINE,), 1), ((*extended("reset all", "select 1/0"), SYNC, query(SHOW)), 2)],
    "extended, discarded, and then a failure": [((MINE,), 1), ((*extended("discard all", "select 1/0"), SYNC, query(SHOW)), 2)],
    "extended, in a transaction": [((query("begin"), *extended("reset all"), SYNC), 2), ((*extended(SHOW, "rollback"), SYNC, query(SHOW)), 2)],
    "extended, in a failed one": [((query("begin; select 1/0"), *extended("reset all", SHOW), SYNC, query("rollback")), 3)],
    "bound in one batch, executed in another": [
        ((query("begin"), parse("reset all", "r"), bind((), "r", "x"), SYNC), 2), ((execute(0, "x"), *extended(SHOW), SYNC), 1),
        ((query("rollback"), query(SHOW)), 2),
    ],
    "a batch that a query ends": [((*extended("reset all"), query(SHOW), query(SHOW)), 2)],
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_reset_leads_to_what_the_client_was_started_with(shared, name: str) -> None:
    holder = Wire(shared.url, application_name="other")  # every connection is opened under another name
    holder.ask(query("select 1"))
    holder.bye()
    wrong: list[Exception] = []
    pair = Pair(shared.url, shared.direct, 0, wrong, application_name="app")
    pair.sql(SHOW)
    for parts, answers in SAID[name]:
        pair.ask(*parts, answers=answers)
    pair.sql(SHOW)
    pair.drop(Wire.bye)
    shared.clean()


def test_what_follows_a_reset_is_sent_on_as_it_comes(shared) -> None:
    with Wire(shared.url, application_name="app") as wire:
        wire.send(parse("reset all"), bind(), execute(), FLUSH)
        assert [each.kind for each in wire.answer("C")] == ["1", "2", "C"]
        wire.send(*extended(SHOW), SYNC)
        assert [each.body[6:] for each in wire.answer() if each.kind == "D"] == [b"app"]


DEALLOCATED = {
    "kept, and executed when there is something": [
        ((parse("deallocate p"), SYNC), 1), ((parse("select 1", "p"), SYNC), 1), ((bind(), execute(), SYNC), 1),
        ((bind((), "p"), execute(), SYNC), 1),
    ],
    "kept, and ended by a query": [
        ((parse("select 1", "p"), parse("deallocate p"), SYNC, query("select 1")), 2), ((bind(), execute(), SYNC), 1),
        ((bind((), "p"), execute(), SYNC), 1),
    ],
    "by name": [
        ((parse("select 1", "p"), parse("deallocate p", "d"), SYNC), 1), ((bind((), "d"), execute(), SYNC), 1),
        ((bind((), "d"), execute(), SYNC), 1), ((parse("select 2", "p"), bind((), "p"), execute(), SYNC), 1),
    ],
    "parsed and never executed": [
        ((parse("select 1", "p"), parse("select 1", "q"), SYNC), 1), ((parse("deallocate p"), SYNC), 1),
        ((*extended("deallocate q"), SYNC), 1), ((bind((), "p"), execute(), SYNC), 1), ((bind((), "q"), execute(), SYNC), 1),
    ],
    "failed, then another": [
        ((parse("select 1", "p"), parse("select 1", "q"), SYNC), 1),
        ((query("begin; select 1/0"), query("deallocate p"), query("rollback")), 3), ((query("deallocate q"),), 1),
        ((bind((), "p"), execute(), SYNC), 1), ((bind((), "q"), execute(), SYNC), 1),
    ],
    "all, bound in an earlier batch": [
        ((parse("select 1", "p"), SYNC, query("begin"), parse("deallocate all"), bind((), "", "x"), SYNC), 3),
        ((execute(0, "x"), bind((), "p"), execute(), SYNC), 1), ((query("rollback"),), 1), ((bind((), "p"), execute(), SYNC), 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", DEALLOCATED)
def test_a_statement_is_given_up_when_that_is_executed(shared, name: str) -> None:
    pair = Pair(shared.url, shared.direct, 0, [])
    for parts, answers in DEALLOCATED[name]:
        pair.ask(*parts, answers=answers)
    pair.drop(Wire.bye)


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_a_statement_is_given_up_on_a_connection_that_never_had_it(shared, how: str) -> None:
    pair = Pair(shared.url, shared.direct, 0, [])
    pair.ask(parse("select 1", "p"), SYNC)
    with Wire(shared.url) as holder:
        holder.ask(query("begin"))  # the connection used last
        given_up = [query("deallocate p")] if how == "simple" else [*extended("deallocate p"), SYNC]
        pair.ask(query("begin"), query("select 1/0"), *given_up, query("rollback"), answers=4)
        pair.ask(*given_up)
        pair.ask(*given_up)
        pair.ask(parse("select 2", "p"), bind((), "p"), execute(), SYNC)
    pair.drop(Wire.bye)
