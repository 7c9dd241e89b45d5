"""One instance alone (`memory://`): nothing is shared, so there is nobody to ask and nobody to tell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.observe.health import ComponentHealth
from proxy.policy import schema
from proxy.store.interface import (
    FallbackOf,
    Member,
    MessageHandler,
    ReturnHandler,
    Script,
    StoreAway,
    StoreKind,
    WaitBudget,
)

ALONE = "store.url is memory://, which shares nothing"


class MemoryStore:
    """The store of an instance that shares nothing: limits, caps and caches stay where they are, in their own rooms."""

    kind: StoreKind = "memory"
    where = "memory://"
    is_shared = False
    is_up = False
    instances = 1

    def __init__(self, policy: schema.Store, member: Member) -> None:
        self.policy = policy
        self.instance_id = member.id
        self._member = member

    @property
    def members(self) -> tuple[Member, ...]:
        """This instance, seen now."""
        me = self._member
        return (Member(me.id, me.host, me.region, me.version, me.started, time.time()),)

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    def apply(self, policy: schema.Store) -> None:
        self.policy = policy

    async def execute(
        self, script: Script, keys: Sequence[str], args: Sequence[str], budget: WaitBudget | None = None
    ) -> list[Any]:
        raise StoreAway(ALONE)

    async def get(self, key: str, budget: WaitBudget | None = None) -> bytes | None:
        return None

    async def set(self, key: str, value: bytes, ttl: float, budget: WaitBudget | None = None) -> None: ...

    async def add(self, key: str, value: bytes, ttl: float, budget: WaitBudget | None = None) -> bool:
        return True

    async def delete(self, *keys: str) -> None: ...

    async def delete_if(self, key: str, value: bytes) -> bool:
        return True

    def publish(self, topic: str, message: Mapping[str, Any]) -> None: ...
    def subscribe(self, topic: str, handler: MessageHandler) -> None: ...
    def on_return(self, handler: ReturnHandler) -> None: ...

    def to_store_time(self, loop_time: float) -> int:
        return round(time.time() * 1e6)

    def count_fallback(self, what: FallbackOf) -> None: ...

    def health(self) -> ComponentHealth:
        return ComponentHealth("ok", "counts are kept in this instance's memory")
