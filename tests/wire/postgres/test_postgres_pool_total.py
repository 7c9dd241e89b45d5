"""`postgres.pool.total`: the connections of all instances together, as the database itself counts them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from postgres_gateway import PostgresGateway, until
from store_servers import postgres_server, valkey_server

TOTAL = 6
PATIENCE = 30.0


class Load:
    """So many clients of a gateway, each with one short transaction after the other."""

    def __init__(self, url: str, clients: int) -> None:
        self._going = True
        self.done = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(url,), daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str) -> None:
        try:
            with psycopg.connect(url, autocommit=True) as client:
                while self._going:
                    client.execute("select pg_sleep(0.02)")
                    self.done += 1
        except psycopg.Error as error:
            self.failed.append(str(error))

    def stop(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join(PATIENCE)


class Watch:
    """The most connections to a database that were there at once."""

    def __init__(self, cluster, database: str) -> None:
        self._cluster, self._database = cluster, database
        self.most = 0
        self._going = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._cluster.control() as control:
            while self._going:
                asked = "select count(*) from pg_stat_activity where datname = %s"
                self.most = max(self.most, control.execute(asked, (self._database,)).fetchone()[0])
                time.sleep(0.004)

    def stop(self) -> int:
        self._going = False
        self._thread.join(PATIENCE)
        return self.most


@pytest.fixture(params=["valkey", "postgresql"])
def store(request, cluster) -> Iterator[dict[str, object]]:
    with valkey_server() if request.param == "valkey" else postgres_server(cluster) as server:
        yield {"url": server.url, "prefix": server.prefix, "timeout": "2s"}


@pytest.fixture
def database(cluster) -> Iterator[str]:
    name = f"total_{time.monotonic_ns()}"
    cluster.make(name)
    yield name
    cluster.drop(name)


def servers(gateway: PostgresGateway) -> int:
    return sum(gateway.status()["servers"].values())


def opened(cluster, database: str, store: dict[str, object], **pool: int) -> PostgresGateway:
    return PostgresGateway(cluster, database, store=store, pool={"max": TOTAL, "total": TOTAL, **pool})


def test_two_gateways_never_have_more_connections_than_the_total(cluster, database, store):
    watch = Watch(cluster, database)
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(opened(cluster, database, store))
        first = Load(one.url, 12)
        stack.callback(first.stop)
        until(lambda: servers(one) == TOTAL, "all of them for the only one")
        # A newcomer whom nobody knows may have one; it has more only when the other gave some back.
        two = stack.enter_context(opened(cluster, database, store))
        second = Load(two.url, 12)
        stack.callback(second.stop)
        until(lambda: servers(one) == servers(two) == TOTAL // 2, "an even share each")
        assert watch.stop() <= TOTAL + 1
        watch = Watch(cluster, database)
        stack.callback(watch.stop)
        before = first.done, second.done
        until(lambda: first.done > before[0] + 50 and second.done > before[1] + 50, "both work")
        # What one does not use the other may have.
        second.stop()
        until(lambda: servers(one) == TOTAL - 1, "all but one for the busy one")
        assert watch.stop() <= TOTAL
        assert not first.failed
        assert not second.failed


def test_what_an_instance_had_that_ends_is_free_at_once(cluster, database, store):
    with opened(cluster, database, store) as one:
        with opened(cluster, database, store, min=3) as two:
            until(lambda: servers(two) == 3, "three ahead of need")
            load = Load(one.url, 10)
            until(lambda: servers(one) == 3, "what is left")
        until(lambda: servers(one) == TOTAL, "all of them")
        load.stop()
        assert not load.failed


def test_one_instance_alone_has_the_total_as_its_maximum(cluster, database):
    with PostgresGateway(cluster, database, pool={"max": 5, "total": 2}) as alone:
        load = Load(alone.url, 6)
        until(lambda: servers(alone) == 2, "two")
        time.sleep(0.5)
        assert servers(alone) == 2
        load.stop()
        assert not load.failed
