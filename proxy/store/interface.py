"""What several instances share, as the rest of the gateway sees it: one small interface with three sides.

A store decides: each decision is one script that runs atomically in the store, by the store's clock, in one round
trip (Valkey: Lua; PostgreSQL: a function). The sides are memory (one instance alone, nothing is shared), Valkey or
Redis, and PostgreSQL. Whoever uses it also has a way to go on without it: `StoreAway` is an ordinary answer.

Keys: begin with `store.prefix`, name users by a hash only (`hash_user`), and expire.
"""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, Protocol

from proxy.errors import OutriggerError
from proxy.observe.health import ComponentHealth
from proxy.policy import schema

StoreKind = Literal["memory", "valkey", "postgresql"]
FallbackOf = Literal["limit", "cap", "pace", "cache"]
MessageHandler = Callable[[Mapping[str, Any]], None]
ReturnHandler = Callable[[], Awaitable[None]]

MAX_MESSAGE_BYTES = 8 * 1024  # of one message, as JSON
MAX_VALUE_BYTES = 1 << 20  # of one kept value


class StoreAway(OutriggerError):
    """The store does not answer in time, cannot be reached, or refuses. The text says why in a clause."""


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic decision, in the language of each side. Called with keys and arguments, all text; replies with a flat
    list of integers and texts, the same on both sides.

    - `name`: the label `op` of `store_operation_seconds`.
    - `lua`: the body of a Lua script. KEYS have the prefix in front; a local `now` is the store's time in microseconds.
    - `sql`: the name of a function `(keys text[], args text[]) RETURNS jsonb` in the schema, made by a SchemaPart. KEYS
      come without prefix, since the schema is one. A call is one transaction. The time is `SCHEMA.clock_us()`, asked
      for after every row lock is held, so that times within a row never go back.
    """

    name: str
    lua: str
    sql: str


@dataclass(frozen=True, slots=True)
class SchemaPart:
    """The tables and functions of one subject in PostgreSQL, in steps; `{schema}` stands for the schema.

    Never change a step that was released: databases in the field have run it. Add one at the end, and give a function
    whose arguments or meaning change another name, since an older instance may still call it. Each table in `expiring`
    has a column `expires` (microseconds of the store's clock); rows past it are deleted.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    expiring: tuple[str, ...] = ()


class WaitBudget:
    """How long a request may still wait for the store in all, however many operations; `left` is in seconds."""

    __slots__ = ("left",)

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def __repr__(self) -> str:
        return f"<WaitBudget {self.left * 1000:.0f} ms>"


@dataclass(frozen=True, slots=True)
class Member:
    """An instance that was heard of. `started` and `seen` are Unix seconds, `seen` by the store's clock."""

    id: str
    host: str
    region: str
    version: str
    started: float
    seen: float


class SharedStore(Protocol):
    """What several instances share. For the loop's thread alone.

    - `is_shared`: False for one instance alone: then decide locally, and call neither `execute` nor `get`.
    - `is_up`: whether the store answers; if not, operations raise StoreAway at once.
    - `policy`: the section `store` that is in force.
    - `members`: the instances alive, this one among them; `instances`: how many were when the store was last there, one
      if it was never.
    """

    instance_id: str
    policy: schema.Store

    @property
    def kind(self) -> StoreKind: ...

    @property
    def where(self) -> str:
        """Its address without the password."""

    @property
    def members(self) -> tuple[Member, ...]: ...

    @property
    def is_shared(self) -> bool: ...

    @property
    def is_up(self) -> bool: ...

    @property
    def instances(self) -> int: ...

    async def execute(
        self, script: Script, keys: Sequence[str], args: Sequence[str], budget: WaitBudget | None = None
    ) -> list[Any]:
        """One decision, in one round trip. Without a budget it may take `store.timeout`. Raises StoreAway, after which
        it may or may not have been made: give decisions ids, so that making one twice counts once."""

    async def get(self, key: str, budget: WaitBudget | None = None) -> bytes | None:
        """A value that is kept, None if there is none. Raises StoreAway."""

    async def set(self, key: str, value: bytes, ttl: float, budget: WaitBudget | None = None) -> None:
        """Keep a value for `ttl` seconds. Raises StoreAway; ValueError above MAX_VALUE_BYTES."""

    async def add(self, key: str, value: bytes, ttl: float, budget: WaitBudget | None = None) -> bool:
        """Keep a value if there is none yet; whether there was none. Raises StoreAway."""

    async def delete(self, *keys: str) -> None:
        """Raises StoreAway."""

    async def delete_if(self, key: str, value: bytes) -> bool:
        """Delete a value if it is this one; whether it was. Raises StoreAway."""

    def publish(self, topic: str, message: Mapping[str, Any]) -> None:
        """Tell every other instance, within a second. Never waits, never raises but ValueError for a message above
        MAX_MESSAGE_BYTES; what cannot be sent is sent within a minute, or lost."""

    def subscribe(self, topic: str, handler: MessageHandler) -> None:
        """Call `handler` with what other instances publish under a topic."""

    def on_return(self, handler: ReturnHandler) -> None:
        """Await `handler` whenever the store is there, the first time or again, before anybody else may use it: what
        was decided meanwhile is written to it, what may have been missed is read. Inside, operations work already."""

    def to_store_time(self, loop_time: float) -> int:
        """A moment of the loop's clock by the store's clock, in microseconds: never too early, and late by a round trip
        at most. By this machine's clock if the store was never there."""

    def count_fallback(self, what: FallbackOf) -> None:
        """Count a decision that was made without the store."""

    def health(self) -> ComponentHealth: ...


def hash_user(*parts: str) -> str:
    """A user, with whatever else names the count, as 22 characters that nobody can read."""
    digest = blake2b("\n".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return urlsafe_b64encode(digest)[:22].decode()


class StoreConnection(Protocol):
    """One connection to a store, on which operations overtake nobody: replies come in the order of the calls.

    A call returns at once; its bytes leave with those of all calls of this turn of the loop. A future fails with
    StoreAway if the connection ends before its reply.
    """

    def execute(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> asyncio.Future[list[Any]]: ...
    def get(self, key: str) -> asyncio.Future[bytes | None]: ...
    def set(self, key: str, value: bytes, ttl: float, *, only_new: bool) -> asyncio.Future[bool]: ...
    def delete(self, keys: Sequence[str]) -> asyncio.Future[Any]: ...
    def delete_if(self, key: str, value: bytes) -> asyncio.Future[bool]: ...

    async def describe(self) -> Mapping[str, str]:
        """For doctor: `server`, `version`, and `eviction policy` where there is one and it may be seen."""

    def sweep(self) -> None:
        """Have what has expired deleted, where the store does not do so by itself. Waits for nothing."""

    def abort(self, reason: str) -> None:
        """End it now; what waits for a reply fails with StoreAway(reason)."""


class StoreBackend(Protocol):
    """A side of the store: how to connect to it."""

    @property
    def kind(self) -> StoreKind: ...

    @property
    def where(self) -> str: ...

    async def connect(self, on_lost: Callable[[str], None]) -> StoreConnection:
        """A connection that is logged in and has every script; `on_lost` is called once with the reason when it ends.
        Raises StoreAway. The caller bounds the time."""
