"""Databases for the tests of the database door."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

import pytest
from postgres_cluster import Cluster
from postgres_gateway import PostgresGateway, PostgresGateways
from postgres_pair import SCHEMA

FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for all; each test has databases of its own in it."""
    cluster = Cluster.made(max_connections=200)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def mortal() -> Iterator[Cluster]:
    cluster = Cluster.made()
    yield cluster
    cluster.close()


@pytest.fixture
def own(mortal: Cluster) -> Iterator[Cluster]:
    """One that a test may stop and kill; its database is `app`."""
    if not mortal.running:
        mortal.start()
    mortal.drop("app")
    mortal.make("app", *SCHEMA)
    yield mortal
    if not mortal.running:
        mortal.start()
    with mortal.control() as control:
        control.execute("alter role app connection limit -1")


@pytest.fixture
def poolers(cluster: Cluster) -> PostgresGateways:
    return PostgresGateways(cluster)


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    with PostgresGateways(cluster).database() as name:
        yield name


class Shelf:
    """One door for one test of a module after the other (`POOL` connections, two where it does not say); a test that
    fails takes it with it."""

    def __init__(self, poolers: PostgresGateways, size: int) -> None:
        self._poolers, self._size = poolers, size
        self._stack = contextlib.ExitStack()
        self._pooler: PostgresGateway | None = None

    def pooler(self) -> PostgresGateway:
        if self._pooler is None:
            self._pooler = self._stack.enter_context(self._poolers(pool={"min": 0, "max": self._size, "wait": "15s"}))
        return self._pooler

    def drop(self) -> None:
        self._pooler = None
        self._stack.close()


@pytest.fixture(scope="module")
def shelf(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Shelf]:
    shelf = Shelf(PostgresGateways(cluster), getattr(request.module, "POOL", 2))
    yield shelf
    shelf.drop()


@pytest.fixture
def shared(shelf: Shelf, request: pytest.FixtureRequest) -> Iterator[PostgresGateway]:
    yield shelf.pooler()
    if request.node.stash.get(FAILED, False):
        shelf.drop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report
