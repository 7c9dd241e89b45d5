"""Servers that instances share, and stores of instances that are not gateways: cheap, several in one loop."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postgres_cluster import Cluster
from valkey_process import Valkey, valkey

from proxy.observe.metrics import Metrics
from proxy.policy.loading import PolicySource, load_policy
from proxy.store.opening import make_member, open_store
from proxy.store.store import Store


@dataclass
class StoreServer:
    """`url` leads to it; a fresh `prefix` for each test keeps tests apart. It can be killed, frozen and started anew."""

    url: str
    kind: str
    server: Any
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()


@contextmanager
def valkey_server(*settings: str) -> Iterator[StoreServer]:
    with tempfile.TemporaryDirectory(prefix="outrigger-valkey-") as folder, valkey(Path(folder), *settings) as server:
        yield StoreServer(server.url, "valkey", server)


@contextmanager
def postgres_server(cluster: Cluster) -> Iterator[StoreServer]:
    name = f"store_{uuid.uuid4().hex[:10]}"
    cluster.make(name)
    try:
        yield StoreServer(cluster.url(name), "postgresql", cluster)
    finally:
        if cluster.running:
            cluster.drop(name)


@dataclass
class Instance:
    """An instance's store, what it logged and counted."""

    store: Store
    metrics: Metrics
    events: list[tuple[str, str]]

    def count(self, name: str, *labels: str) -> float:
        return getattr(self.metrics, name).labels(*labels).value


def new_instance(server: StoreServer, *, url: str = "", region: str = "", **keys: object) -> Instance:
    """Not yet started. `keys` are of the policy's section `store`."""
    reported: dict[str, object] = {"url": url or server.url, "prefix": server.prefix, "region": region, **keys}
    text = "store: {" + ", ".join(f"{key}: '{value}'" for key, value in reported.items()) + "}"
    policy = load_policy(PolicySource("tests", None, text), {}).store
    metrics = Metrics(load_policy(PolicySource("tests", None, ""), {}).metrics, version="tests")
    events: list[tuple[str, str]] = []

    def emit(event: str, message: str, **_: object) -> None:
        events.append((event, message))

    clock = asyncio.get_running_loop().time
    store = open_store(policy, make_member(region), emit=emit, metrics=metrics, clock=clock)  # type: ignore[arg-type]
    return Instance(store, metrics, events)  # type: ignore[arg-type]


@asynccontextmanager
async def instances(server: StoreServer, count: int = 2, **keys: object) -> AsyncIterator[list[Instance]]:
    """So many instances, all started."""
    made = [new_instance(server, **keys) for _ in range(count)]
    try:
        for one in made:
            await one.store.start()
        yield made
    finally:
        for one in made:
            await one.store.stop()


__all__ = ["Instance", "StoreServer", "Valkey", "instances", "new_instance", "postgres_server", "valkey_server"]
