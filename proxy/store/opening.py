"""The store that a policy names.

What a side needs (hiredis, asyncpg) is imported only if the policy names it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from secrets import token_hex

from proxy import __version__
from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.store.interface import Member, StoreBackend
from proxy.store.memory import MemoryStore
from proxy.store.store import Store

MEMORY = "memory://"
MONEY_TIMEOUT = 2.0  # seconds that a far database for caps has, in the background


def make_member(region: str) -> Member:
    """This instance: an id that no other has, and what people know it by."""
    host = os.environ.get("RENDER_INSTANCE_ID") or socket.gethostname()
    return Member(token_hex(6), host, region, __version__, time.time(), time.time())


def open_store(
    policy: schema.Store, member: Member, *, emit: EmitEvent, metrics: Metrics, clock: Callable[[], float]
) -> MemoryStore | Store:
    """The store of `store.url`, not yet started."""
    if policy.url == MEMORY:
        metrics.store_up.set(1)
        return MemoryStore(policy, member)
    return Store(policy, open_backend(policy.url, policy.prefix), member, emit=emit, metrics=metrics, clock=clock)


def open_money_store(
    policy: schema.Store,
    member: Member,
    shared: MemoryStore | Store,
    *,
    emit: EmitEvent,
    metrics: Metrics,
    clock: Callable[[], float],
) -> MemoryStore | Store:
    """The store of `store.money`, not yet started; `shared` itself if the policy names none."""
    if policy.money is None:
        return shared
    backend = open_backend(policy.money, policy.prefix)
    return Store(policy, backend, member, emit=emit, metrics=metrics, clock=clock, timeout=MONEY_TIMEOUT)


def open_backend(url: str, prefix: str) -> StoreBackend:
    from proxy.store.scripts import SCHEMA_PARTS, SCRIPTS

    if url.startswith("redis"):
        from proxy.store.valkey import ValkeyBackend

        return ValkeyBackend(url, prefix, SCRIPTS)
    from proxy.store.postgres import PostgresBackend

    return PostgresBackend(url, prefix, SCRIPTS, SCHEMA_PARTS)
