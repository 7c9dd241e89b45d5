"""The process number that a client is told (BackendKeyData): its own notifications bear it, and nobody else's."""

from __future__ import annotations

import threading

import psycopg
import pytest
from postgres_gateway import PostgresGateway, PostgresGateways
from postgres_wire_client import Message, Wire, query

HIGHEST = 1 << 22  # a process number on Linux is at most this


def heard(wire: Wire) -> tuple[int, bytes]:
    """Who notified, and of what."""
    found: Message = next(each for each in iter(wire.read, None) if each.kind == "A")
    return int.from_bytes(found.body[:4], "big"), found.body[4:]


def test_a_client_hears_its_own_notification_from_its_own_process(shared: PostgresGateway) -> None:
    with Wire(shared.url) as wire:
        wire.ask(query("listen news"))
        wire.send(query("notify news, 'mine'"))
        assert heard(wire) == (wire.key[0], b"news\0mine\0")


@pytest.mark.parametrize("way", ["through the door", "direct"])
def test_another_s_notification_comes_from_another_process(shared: PostgresGateway, way: str) -> None:
    with Wire(shared.url) as wire, Wire(shared.url if way == "through the door" else shared.direct) as other:
        wire.ask(query("listen news"))
        pid = int(other.rows("select pg_backend_pid() from pg_notify('news', 'theirs')")[0][0] or 0)
        assert heard(wire) == (pid, b"news\0theirs\0")
        assert pid != wire.key[0]


def test_in_session_mode_too(poolers: PostgresGateways) -> None:
    with poolers(mode="session") as pooler, Wire(pooler.url) as wire:
        wire.ask(query("listen news"))
        wire.send(query("select pg_notify('news', 'a'), pg_notify('news', 'b')"))
        assert [heard(wire) for _ in range(2)] == [(wire.key[0], b"news\0a\0"), (wire.key[0], b"news\0b\0")]


def test_a_driver_that_terminates_what_it_was_told_terminates_nobody(shared: PostgresGateway) -> None:
    """No process can have that number, so no other client of the database is hit by chance."""
    with psycopg.connect(shared.url, autocommit=True) as one:
        assert one.info.backend_pid > HIGHEST
        with shared.cluster.control() as control:
            found = control.execute("select pg_terminate_backend(%s)", [one.info.backend_pid]).fetchone()
        assert found == (False,)
        assert one.execute("select 1").fetchone() == (1,)


def test_cancelling_goes_by_that_number_as_ever(shared: PostgresGateway) -> None:
    with psycopg.connect(shared.url, autocommit=True) as one:
        threading.Thread(target=lambda: (shared.until(lambda: shared.asleep() == 1), one.cancel_safe())).start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            one.execute("select pg_sleep(30)")


# ── mode: session ────────────────────────────────────────────────────────────────────────────


def test_in_session_mode_the_number_is_that_of_the_server_process_as_direct(poolers: PostgresGateways) -> None:
    with poolers(mode="session") as pooler, psycopg.connect(pooler.url, autocommit=True) as one:
        assert one.execute("select pg_backend_pid()").fetchone() == (one.info.backend_pid,)
        with psycopg.connect(pooler.url, autocommit=True) as other:
            assert other.execute("select pg_terminate_backend(%s)", [one.info.backend_pid]).fetchone() == (True,)
        with pytest.raises(psycopg.errors.AdminShutdown):
            one.execute("select 1")


def test_in_session_mode_a_query_is_cancelled_by_the_driver_and_by_sql(poolers: PostgresGateways) -> None:
    with poolers(mode="session") as pooler, psycopg.connect(pooler.url, autocommit=True) as one:

        def by_sql() -> None:
            with psycopg.connect(pooler.url, autocommit=True) as other:
                other.execute("select pg_cancel_backend(%s)", [one.info.backend_pid])

        for cancel in (one.cancel_safe, by_sql):
            thread = threading.Thread(target=lambda each=cancel: (pooler.until(lambda: pooler.asleep() == 1), each()))
            thread.start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                one.execute("select pg_sleep(30)")
            thread.join()


def test_in_session_mode_who_finds_no_connection_free_is_let_in_and_waits_with_its_first_query(
    poolers: PostgresGateways,
) -> None:
    with poolers(mode="session", pool={"max": 1, "wait": "300ms"}) as pooler:
        with psycopg.connect(pooler.url, autocommit=True) as one, psycopg.connect(pooler.url, autocommit=True) as two:
            assert two.info.backend_pid > HIGHEST
            with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
                two.execute("select 1")
            assert one.execute("select 1").fetchone() == (1,)
            one.close()
            assert two.execute("select 1").fetchone() == (1,)
        with psycopg.connect(pooler.url, application_name="next") as three:
            assert three.execute("show application_name").fetchone() == ("next",)
            assert three.info.parameter_status("application_name") == "next"


def test_in_session_mode_who_leaves_before_it_is_let_in_takes_nothing(poolers: PostgresGateways) -> None:
    with poolers(mode="session", pool={"max": 1}) as pooler:
        with psycopg.connect(pooler.url):
            pass
        for _ in range(3):
            Wire(pooler.url).drop()
        with psycopg.connect(pooler.url) as last:
            assert last.execute("select 1").fetchone() == (1,)
        assert pooler.waiting() == 0
