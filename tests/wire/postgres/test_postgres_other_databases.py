"""One door before one server: other databases of it are reached as on connections of one's own, and dropped so too."""

from __future__ import annotations

import time
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from postgres_gateway import PostgresGateway, PostgresGateways, until


def at(url: str, database: str) -> str:
    """The same address, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def one(connection: psycopg.Connection, text: str) -> object:
    row = connection.execute(text).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def other(poolers: PostgresGateways):
    with poolers.database() as name:
        yield name


def test_another_database_of_the_server_is_reached_as_on_a_connection_of_ones_own(
    shared: PostgresGateway, other: str
) -> None:
    with psycopg.connect(shared.url, autocommit=True) as here, psycopg.connect(at(shared.url, other)) as there:
        for _ in range(3):
            assert one(here, "select current_database()") == shared.database
            assert one(there, "select current_database()") == other


def test_one_text_prepared_in_two_databases_has_the_rows_of_each(shared: PostgresGateway, other: str) -> None:
    with (
        psycopg.connect(shared.url, autocommit=True) as here,
        psycopg.connect(at(shared.url, other), autocommit=True) as there,
    ):
        here.execute("create table of_two (word text)")
        there.execute("create table of_two (number int, more int)")
        here.execute("insert into of_two values ('a')")
        there.execute("insert into of_two values (1, 2)")
        for _ in range(3):
            assert here.execute("select * from of_two", prepare=True).fetchall() == [("a",)]
            assert there.execute("select * from of_two", prepare=True).fetchall() == [(1, 2)]


def test_a_database_that_is_not_there_is_refused_by_the_server_and_nothing_else_suffers(
    shared: PostgresGateway,
) -> None:
    with pytest.raises(psycopg.OperationalError, match='database "nowhere" does not exist'):
        psycopg.connect(at(shared.url, "nowhere"))
    with psycopg.connect(shared.url) as here:
        assert one(here, "select 1") == 1
    assert "postgres.down" not in [event["event"] for event in shared.events()]


def test_a_database_is_made_used_and_dropped_as_test_runners_do(poolers: PostgresGateways) -> None:
    with poolers() as pooler:
        with pooler.cluster.control() as control:
            control.execute("alter role app createdb")
        try:
            for _ in range(2):
                with psycopg.connect(at(pooler.url, "postgres"), autocommit=True) as maintenance:
                    maintenance.execute("create database of_a_test")
                    with psycopg.connect(at(pooler.url, "of_a_test")) as made:
                        made.execute("create table things (id int)")
                        assert one(made, "select count(*) from things") == 0
                    maintenance.execute("drop database of_a_test")
                    with pytest.raises(psycopg.OperationalError, match="does not exist"):
                        psycopg.connect(at(pooler.url, "of_a_test"))
        finally:
            with pooler.cluster.control() as control:
                control.execute("alter role app nocreatedb")
        assert pooler.status()["servers"].keys() <= {"idle"}


def test_connections_to_other_databases_go_with_their_last_client(poolers: PostgresGateways, other: str) -> None:
    with poolers(pool={"min": 1, "max": 3}) as pooler:

        def there() -> int:
            with pooler.cluster.control() as control:
                found = control.execute("select count(*) from pg_stat_activity where datname = %s", [other]).fetchone()
            assert found is not None
            return int(found[0])

        with psycopg.connect(at(pooler.url, other)) as first, psycopg.connect(at(pooler.url, other)) as second:
            first.execute("select 1")
            second.execute("select 1")
            assert there() == 2
            second.rollback()
            second.close()
            first.execute("select 1")
            assert there() == 2  # it is kept while somebody may want it
        until(lambda: there() == 0, "no connection there")
        with psycopg.connect(pooler.url) as here:
            assert one(here, "select current_database()") == pooler.database


def test_all_databases_together_have_as_many_connections_as_there_may_be(poolers: PostgresGateways, other: str) -> None:
    with poolers(pool={"min": 0, "max": 1}) as pooler:
        with (
            psycopg.connect(pooler.url, autocommit=True) as here,
            psycopg.connect(at(pooler.url, other), autocommit=True) as there,
        ):
            for _ in range(3):
                assert one(here, "select current_database()") == pooler.database
                assert one(there, "select current_database()") == other
            assert sum(pooler.status()["servers"].values()) == 1


def test_clients_of_a_database_that_was_dropped_are_told_and_the_rest_goes_on(poolers: PostgresGateways) -> None:
    with poolers() as pooler, poolers.database() as doomed:
        there = psycopg.connect(at(pooler.url, doomed), autocommit=True)
        assert one(there, "select 1") == 1
        pooler.cluster.drop(doomed)
        started = time.monotonic()
        with pytest.raises(psycopg.Error, match="does not exist|terminating connection"):
            for _ in range(3):
                there.execute("select 1")
        assert time.monotonic() - started < 4
        there.close()
        with psycopg.connect(pooler.url) as here:
            assert one(here, "select 1") == 1
