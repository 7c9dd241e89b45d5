"""Instances over a real store whose clock the test sets, and between which and it the test is the network."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, Literal

from store_servers import StoreServer

from proxy.ingress.ratelimit.limiter import RateLimiter
from proxy.ingress.ratelimit.shared_limiter import SharedRateLimiter
from proxy.policy import schema
from proxy.store.interface import ReturnHandler, Script, StoreAway, StoreConnection, WaitBudget
from proxy.store.scripts import SCHEMA_PARTS, SCRIPTS

Network = Literal["up", "away", "lost answer"]
EPOCH = 1_700_000_000  # seconds; so that times have as many digits as they will have


class SimulatedServer:
    """`now` is the store's clock in seconds; it passes only if a test says so. Nothing expires by itself in it."""

    def __init__(self, server: StoreServer) -> None:
        self.server = server
        self.now = 0.0
        self._connection: StoreConnection | None = None

    async def connect(self) -> None:
        prefix = self.server.prefix
        if self.server.kind == "valkey":
            from proxy.store.valkey import ValkeyBackend

            clock = f"local now = tonumber(redis.call('GET', '{prefix}:clock'))\n"
            self._connection = await ValkeyBackend(self.server.url, prefix, SCRIPTS, clock=clock).connect(print)
        else:
            from proxy.store.postgres import PostgresBackend

            connection = await PostgresBackend(self.server.url, prefix, SCRIPTS, SCHEMA_PARTS).connect(print)
            await connection.run_text(f'CREATE TABLE IF NOT EXISTS "{prefix}".test_clock (now bigint)')
            await connection.run_text(f'INSERT INTO "{prefix}".test_clock VALUES (0)')
            await connection.run_text(
                f'CREATE OR REPLACE FUNCTION "{prefix}".clock_us() RETURNS bigint LANGUAGE sql VOLATILE AS'
                f' $$ SELECT now FROM "{prefix}".test_clock $$'
            )
            self._connection = connection

    async def set_clock(self, now: float) -> None:
        self.now = now
        micros = round((EPOCH + now) * 1e6)
        connection: Any = self._connection
        if self.server.kind == "valkey":
            await connection.command("SET", f"{self.server.prefix}:clock", str(micros))
        else:
            await connection.run_text(f'UPDATE "{self.server.prefix}".test_clock SET now = {micros}')

    async def execute(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> list[Any]:
        assert self._connection is not None
        return await self._connection.execute(script, keys, args)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort("the test is over")


class SimulatedInstance:
    """One instance: its limiter, and its way to the store, which `network` breaks."""

    is_shared = True
    kind = "valkey"
    where = "simulated"
    members = ()

    def __init__(self, server: SimulatedServer, number: int, instances: int, on_error: str) -> None:
        self.server = server
        self.network: Network = "up"
        self.instance_id = f"{secrets.token_hex(4)}{number}"
        self.instances = instances
        self.policy = schema.Store(url="redis://simulated", on_error=on_error)  # type: ignore[arg-type]
        self.asked = 0  # operations
        self.fallbacks = 0
        self._handlers: list[ReturnHandler] = []
        clock = lambda: server.now  # noqa: E731
        self.local = RateLimiter(clock)
        self.limiter = SharedRateLimiter(self, self.local, clock=clock, emit=lambda *_, **__: None)  # type: ignore[arg-type]

    @property
    def is_up(self) -> bool:
        return self.network == "up"

    async def execute(
        self, script: Script, keys: Sequence[str], args: Sequence[str], budget: WaitBudget | None = None
    ) -> list[Any]:
        self.asked += 1
        if self.network == "away":
            raise StoreAway("it is away")
        reply = await self.server.execute(script, keys, args)
        if self.network == "lost answer":
            raise StoreAway("its answer was lost")
        return reply

    def on_return(self, handler: ReturnHandler) -> None:
        self._handlers.append(handler)

    def to_store_time(self, loop_time: float) -> int:
        return round((EPOCH + loop_time) * 1e6)

    def count_fallback(self, what: str) -> None:
        self.fallbacks += 1

    async def heal(self) -> None:
        """The store can be reached again: what was decided meanwhile is written to it first."""
        if self.network != "up":
            self.network = "up"
            for handler in self._handlers:
                await handler()

    async def settle(self) -> None:
        """Wait for what it still has to tell the store."""
        while len(self.limiter._tasks):
            await asyncio.sleep(0)
            await self.limiter._tasks.wait()
