"""The database goes away in every way there is: who works on is told, who waits is served, nobody is needed."""

from __future__ import annotations

import threading
import time

import pytest
from faulty_network import faulty_network
from postgres_cluster import Cluster
from postgres_gateway import until
from postgres_wire_client import SYNC, Gone, Refused, Wire, bind, copy_data, execute, fields, parse, query


def outcome(wire: Wire, sql: str = "select 'served'") -> str:
    """What a query comes to: a value, an SQLSTATE, or `gone`."""
    try:
        return wire.value(sql) or ""
    except Refused as refused:
        return refused.code
    except Gone:
        return "gone"


def whole(wire: Wire) -> bool:
    """Whether an answer that has begun ends as if it were all. Cut within a message there is no room for an error."""
    return bool({"C", "Z"} & {each.kind for each in wire.ended()})


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_idle_client_never_learns_of_a_restart(own: Cluster, poolers, how: str) -> None:
    with poolers(own) as pooler:
        wires = [Wire(pooler.url) for _ in range(4)]
        for k, wire in enumerate(wires):
            wire.ask(query(f"set work_mem = '{k + 2}MB'"))
            wire.ask(parse("select $1::int + 1", "p"), SYNC)
        getattr(own, how)()
        own.start()
        for k, wire in enumerate(wires):
            assert outcome(wire) == "served"
            assert wire.value("show work_mem") == f"{k + 2}MB"
            assert [each.kind for each in wire.ask(bind([1], "p"), execute(), SYNC)] == ["2", "D", "C", "Z"]
            wire.bye()
        pooler.clean()


@pytest.mark.parametrize(("how", "code"), [("stop", "57P01"), ("kill", "")])
def test_a_transaction_that_loses_its_server_is_told_and_closed(own: Cluster, poolers, how: str, code: str) -> None:
    with poolers(own) as pooler:
        wire = Wire(pooler.url)
        wire.ask(query("begin"))
        getattr(own, how)()
        said = wire.ended()
        errors = [fields(each.body) for each in said if each.kind == "E"]
        assert len(errors) == 1, said  # the server's own where it said one
        assert errors[0]["S"] == "FATAL"
        assert errors[0]["C"] == code or errors[0]["C"][:2] in ("57", "08")
        wire.drop()
        own.start()
        with Wire(pooler.url) as after:
            assert outcome(after) == "served"
        pooler.clean()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_query_that_loses_its_server_is_never_answered_as_if_whole(own: Cluster, poolers, how: str) -> None:
    with poolers(own) as pooler:
        wire = Wire(pooler.url)
        wire.send(query("select repeat('x', 1000) from generate_series(1, 200000)"))
        wire.read()
        getattr(own, how)()
        assert whole(wire) is False
        wire.drop()
        own.start()
        pooler.clean()


def test_work_that_comes_while_the_server_is_away_waits_for_it(own: Cluster, poolers) -> None:
    with poolers(own, pool={"min": 0, "max": 2, "wait": "15s", "connect": "2s"}) as pooler:
        wires = [Wire(pooler.url) for _ in range(5)]
        for wire in wires:
            assert outcome(wire) == "served"
        own.stop()
        for wire in wires:
            wire.send(query("select 'served'"))
        assert wires[0].quiet(0.3)
        own.start()
        for wire in wires:
            assert [each.kind for each in wire.answer()] == ["T", "D", "C", "Z"]
            wire.bye()
        pooler.clean()


def test_work_waits_no_longer_than_wait_and_the_client_stays(own: Cluster, poolers) -> None:
    with poolers(own, pool={"min": 0, "max": 2, "wait": "500ms", "connect": "1s"}) as pooler:
        simple, extended = Wire(pooler.url), Wire(pooler.url)
        assert outcome(simple) == "served"
        own.stop()
        began = time.monotonic()
        code = outcome(simple)
        assert code[:2] in ("57", "08"), code
        found = extended.ask(parse("select 1"), bind(), execute(), SYNC)
        assert [each.kind for each in found] == ["E", "Z"]
        assert 0.4 < time.monotonic() - began < 10
        own.start()
        until(lambda: outcome(simple) == "served", "service")
        assert outcome(extended) == "served"
        simple.bye(), extended.bye()
        pooler.clean()


def test_a_login_while_the_server_is_away_is_told_so_and_the_next_one_served(own: Cluster, poolers) -> None:
    with poolers(own, pool={"min": 0, "max": 2, "wait": "500ms", "connect": "1s"}) as pooler:
        own.stop()
        try:
            with Wire(pooler.url) as wire:  # where what Postgres says at a login is known already
                code = outcome(wire)
        except Refused as refused:
            code = refused.code
        assert code[:2] in ("57", "08"), code
        own.start()

        def served() -> bool:
            try:
                with Wire(pooler.url) as wire:
                    return outcome(wire) == "served"
            except Refused:
                return False

        until(served, "service")
        pooler.clean()


def test_a_promoted_standby_takes_over(own: Cluster, poolers) -> None:
    standby = own.standby()
    try:
        url = own.url("app").replace(f":{own.port}/", f":{own.port},127.0.0.1:{standby.port}/")
        with poolers(
            own, url=f"{url}?target_session_attrs=read-write", pool={"min": 0, "max": 2, "wait": "15s"}
        ) as pooler:
            with Wire(pooler.url) as wire:
                wire.ask(query("create table kept (a int)"))
                assert outcome(wire, "select pg_is_in_recovery()") == "f"
                with standby.control("app") as replica:
                    until(lambda: replica.execute("select to_regclass('kept')").fetchone() != (None,), "replication")
                own.kill()
                standby.promote()
                assert outcome(wire, "select count(*) from kept") == "0"
                assert outcome(wire, "select inet_server_port()") == str(standby.port)
    finally:
        standby.close()


def test_the_primary_is_found_among_several_hosts(own: Cluster, poolers) -> None:
    standby = own.standby()
    try:
        url = own.url("app").replace(f":{own.port}/", f":{standby.port},127.0.0.1:{own.port}/")
        with poolers(own, url=f"{url}?target_session_attrs=primary") as pooler, Wire(pooler.url) as wire:
            assert outcome(wire, "select pg_is_in_recovery()") == "f"
    finally:
        standby.close()


# ── a bad network ────────────────────────────────────────────────────────────────────────────


def test_connections_cut_while_idle_are_replaced_unseen(own: Cluster, poolers) -> None:
    with faulty_network(own.port) as shim, poolers(own, url=own.url("app", port=shim.port)) as pooler:
        with Wire(pooler.url) as wire:
            for _ in range(3):
                assert outcome(wire) == "served"
                shim.cut()
                until(lambda: not pooler.status()["servers"], "the news of it")
        pooler.clean()


def test_a_connection_cut_mid_answer_is_an_error(own: Cluster, poolers) -> None:
    with faulty_network(own.port) as shim, poolers(own, url=own.url("app", port=shim.port)) as pooler:
        wire = Wire(pooler.url)
        outcome(wire)
        wire.send(query("select repeat('x', 1000) from generate_series(1, 200000)"))
        wire.read()
        shim.cut()
        assert whole(wire) is False
        wire.drop()
        pooler.clean()


@pytest.mark.parametrize("way", ["in", "out"])
def test_a_connection_cut_mid_copy_is_an_error(own: Cluster, poolers, way: str) -> None:
    with faulty_network(own.port) as shim, poolers(own, url=own.url("app", port=shim.port)) as pooler:
        wire = Wire(pooler.url)
        if way == "in":
            wire.send(query("copy common from stdin"), copy_data(b"1000\tx\n"))
            wire.answer("G")
        else:
            wire.send(query("copy (select repeat('x', 1000) from generate_series(1, 200000)) to stdout"))
            wire.answer("d")
        shim.cut()
        assert whole(wire) is False
        wire.drop()
        with Wire(pooler.url) as after:
            assert outcome(after, "select count(*) from common where k = 1000") == "0"
        pooler.clean()


def test_a_network_that_stalls_mid_answer_holds_nobody_but_its_client(own: Cluster, poolers) -> None:
    with faulty_network(own.port) as shim, poolers(own, url=own.url("app", port=shim.port)) as pooler:
        victim = Wire(pooler.url, patience=30)
        outcome(victim)
        victim.send(query("select repeat('x', 1000) from generate_series(1, 20000)"))
        victim.read()
        shim.stall()
        victim.drop()
        time.sleep(0.1)
        shim.flow()
        with Wire(pooler.url) as after:
            assert outcome(after) == "served"
        pooler.clean()


def test_a_client_that_leaves_a_stalled_server_frees_its_place(own: Cluster, poolers) -> None:
    """The server never answers again; its connection has to be given up within a bounded time, the place used anew."""
    with (
        faulty_network(own.port) as shim,
        poolers(own, url=own.url("app", port=shim.port), pool={"min": 0, "max": 1, "wait": "10s"}) as pooler,
    ):
        victim = Wire(pooler.url)
        victim.ask(query("begin"))
        victim.send(query("select pg_sleep(60)"))
        until(lambda: pooler.asleep() == 1, "the sleep")
        shim.stall()
        victim.drop()
        shim.down_limit = None
        time.sleep(0.2)

        until(lambda: not pooler.busy(), "the place's release")
        shim.flow()
        with Wire(pooler.url) as after:
            assert outcome(after) == "served"
        pooler.clean()


def test_a_server_that_stalls_during_its_login_keeps_nobody_for_ever(own: Cluster, poolers) -> None:
    with (
        faulty_network(own.port) as shim,
        poolers(
            own, url=own.url("app", port=shim.port), pool={"min": 0, "max": 2, "wait": "700ms", "connect": "500ms"}
        ) as pooler,
    ):
        with Wire(pooler.url) as first:
            assert outcome(first) == "served"
        shim.cut()
        shim.stall()
        began = time.monotonic()
        try:
            with Wire(pooler.url) as wire:
                code = outcome(wire)
        except Refused as refused:
            code = refused.code
        assert code[:2] in ("57", "08"), code
        assert time.monotonic() - began < 10
        shim.flow()

        def served() -> bool:
            try:
                with Wire(pooler.url) as wire:
                    return outcome(wire) == "served"
            except Refused:
                return False

        until(served, "service")
        pooler.clean()


def test_a_server_away_is_tried_again_without_a_stampede(own: Cluster, poolers) -> None:
    with (
        faulty_network(own.port) as shim,
        poolers(
            own, url=own.url("app", port=shim.port), pool={"min": 0, "max": 2, "wait": "3s", "connect": "1s"}
        ) as pooler,
    ):
        own.stop()
        before = shim.taken
        threads = []
        for _ in range(30):

            def come() -> None:
                try:
                    with Wire(pooler.url) as wire:
                        outcome(wire)
                except (Refused, Gone):
                    pass

            threads.append(threading.Thread(target=come))
            threads[-1].start()
        for thread in threads:
            thread.join()
        assert shim.taken - before < 40, "tries in about 3 s"
        own.start()


def test_a_server_that_takes_no_more_connections_is_no_outage(own: Cluster, poolers) -> None:
    """Too many clients already (53300) on the second connection: work goes on over the first."""
    with own.control() as control:
        control.execute("alter role app connection limit 1")
    with poolers(own, pool={"min": 0, "max": 4, "wait": "5s"}) as pooler:
        wires = [Wire(pooler.url) for _ in range(4)]
        for wire in wires:
            wire.send(query("select pg_sleep(0.1)"))
        for wire in wires:
            assert [each.kind for each in wire.answer()] == ["T", "D", "C", "Z"]
            wire.bye()


def test_a_retired_connection_is_gone_before_its_replacement_comes(own: Cluster, poolers) -> None:
    with own.control() as control:
        control.execute("alter role app connection limit 2")
    with poolers(own, pool={"min": 0, "max": 2, "wait": "5s", "lifetime": "200ms"}) as pooler:
        wires = [Wire(pooler.url) for _ in range(4)]
        seen = set()
        for _ in range(40):
            for wire in wires:
                wire.send(query("select pg_backend_pid() from pg_sleep(0.02)"))
            for wire in wires:
                found = wire.answer()
                assert [each.kind for each in found] == ["T", "D", "C", "Z"], found
                seen.add(found[1].body)
        for wire in wires:
            wire.bye()
        assert len(seen) > 4


def test_backends_killed_one_by_one_are_replaced(own: Cluster, poolers) -> None:
    with poolers(own) as pooler, own.control() as control, Wire(pooler.url) as wire:
        for _ in range(10):
            pid = wire.value("select pg_backend_pid()")
            control.execute("select pg_terminate_backend(%s, 5000)", [int(pid or 0)])
            assert outcome(wire) == "served"
