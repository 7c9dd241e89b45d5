"""The database door in front of a cluster: in a thread of this process, on the loop that production has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar
from uuid import uuid4

import psycopg
import uvloop
from postgres_cluster import Cluster, backends
from postgres_pair import FACTS, SCHEMA, counts
from postgres_wire_client import Wire, query

from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.loading import PolicySource, load_policy
from proxy.postgres.service import PostgresService
from proxy.store.opening import make_member, open_store

T = TypeVar("T")
PATIENCE = 10.0


class PostgresGateway:
    """`url` is what an app gets, `direct` leads to the same database past the door."""

    def __init__(self, cluster: Cluster, database: str, url: str = "", **postgres: object) -> None:
        self.cluster, self.database, self.direct = cluster, database, cluster.url(database)
        pool = {"min": 0, "max": 2, **postgres.pop("pool", {})}
        store = postgres.pop("store", {})  # the policy's section, of what it shares with others
        policy = {"url": url or self.direct, "listen": "127.0.0.1:0", "pool": pool, **postgres}
        self.max: int = pool["max"]
        self._policy = load_policy(PolicySource("tests", None, json.dumps({"postgres": policy, "store": store})), {})
        self.url = ""
        self._control: psycopg.Connection | None = None
        self._fresh: list[tuple[str | None, ...]] = []
        self.metrics = Metrics(self._policy.metrics, version="tests")
        self._log = tempfile.TemporaryFile()
        self.faults: list[str] = []
        self._loop = uvloop.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, context: self.faults.append(repr(context)))
        self._thread = threading.Thread(target=self._loop.run_forever, name="pooler", daemon=True)

    def __enter__(self) -> PostgresGateway:
        self._thread.start()
        self._pooler: PostgresService = self._run(self._start())
        return self

    async def _start(self) -> PostgresService:
        self._lines = EventLog(self._policy.log, out=self._log.fileno())
        self._store = open_store(
            self._policy.store, make_member(""), emit=self._lines.emit, metrics=self.metrics, clock=self._loop.time
        )
        await self._store.start()
        pooler = PostgresService(
            self._policy.postgres,
            store=self._store,
            requests=RequestRegistry(self._loop.time),
            metrics=self.metrics,
            log=self._lines,
            environ={},
        )
        sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = sock.getsockname()[1]
        await pooler.start(sock)
        self.url = pooler.app_variables("127.0.0.1", self.port)["DATABASE_URL"]
        return pooler

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._pooler.stop())
            self._run(self._store.stop())
            self._run(_rest())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)
            self._loop.close()
            self._lines.close()
            self._log.close()
            if self._control is not None:
                self._control.close()
        assert not self.faults, self.faults

    def _run(self, work: object) -> object:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def events(self) -> list[Mapping[str, object]]:
        """What it has logged."""
        self._log.seek(0)
        return [json.loads(line) for line in self._log]

    def status(self) -> Mapping[str, object]:
        async def ask() -> Mapping[str, object]:
            return self._pooler.status()

        return self._run(ask())

    # ── what is behind it ───────────────────────────────────────────────────────────────────

    def waiting(self) -> int:
        return int(self.status()["waiting"])

    def asleep(self) -> int:
        """How many of the database's sessions are in pg_sleep."""
        with self.cluster.control() as control:
            return sum(
                each["state"] == "active" and "pg_sleep" in str(each["query"])
                for each in backends(control, self.database)
            )

    def busy(self) -> int:
        """Server connections that are not idle."""
        return sum(count for state, count in self.status()["servers"].items() if state != "idle")

    def until(self, condition: Callable[[], T], what: str = "it") -> T:
        return until(condition, what)

    def clean(self) -> None:
        """Nothing is left of clients that have gone: no transaction, lock or table, on no more connections than there
        may be; and whoever comes next finds each of them as if it were new."""
        control = self._watching()
        until(
            lambda: counts(control) == (0, 0, 0), "nothing left behind", said=lambda: (counts(control), self.status())
        )
        until(lambda: len(backends(control, self.database)) <= self.max, "as few connections as there may be")
        if not self._fresh:
            with Wire(self.direct) as direct:
                self._fresh = direct.rows(FACTS)
        with contextlib.ExitStack() as stack:
            for _ in range(self.max):
                wire = stack.enter_context(Wire(self.url))
                wire.ask(query("begin"))
                found = wire.rows(FACTS)
                assert found == self._fresh, f"a client before left {found} instead of {self._fresh}"

    def _watching(self) -> psycopg.Connection:
        """A superuser's look at the database, kept as long as its server lives."""
        try:
            assert self._control is not None
            self._control.execute("select")
        except (AssertionError, psycopg.OperationalError):
            if self._control is not None:
                self._control.close()
            self._control = self.cluster.control(self.database)
        return self._control


async def _rest() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def until(
    condition: Callable[[], T], what: str = "it", patience: float = PATIENCE, said: Callable[[], object] = lambda: ""
) -> T:
    """Waits until something holds; what it gave."""
    deadline = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} never held {said()}"
        time.sleep(0.01)


class PostgresGateways:
    """Makes doors, each before a database of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @contextlib.contextmanager
    def __call__(
        self, cluster: Cluster | None = None, *, url: str = "", schema: Sequence[str] = SCHEMA, **postgres: object
    ) -> Iterator[PostgresGateway]:
        """`cluster`: another than the session's, whose database `app` it leads to."""
        if cluster is not None:
            with PostgresGateway(cluster, "app", url, **postgres) as pooler:
                yield pooler
            return
        with self.database(schema) as name, PostgresGateway(self._cluster, name, url, **postgres) as pooler:
            yield pooler

    @contextlib.contextmanager
    def database(self, schema: Sequence[str] = SCHEMA) -> Iterator[str]:
        name = f"d{uuid4().hex[:10]}"
        self._cluster.make(name, *schema)
        try:
            yield name
        finally:
            self._cluster.drop(name)

    @contextlib.contextmanager
    def beside(self) -> Iterator[str]:
        """The URL of one more database of the same making, past every door."""
        with self.database() as name:
            yield self._cluster.url(name)
