"""A process that settles calls for ever, telling of each on its output what was done and when; for killing.

Lines: `open|put|drop ID COST MONOTONIC`, written after the ledger was told.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import uuid

from proxy.ledger.ledger import Ledger
from proxy.ledger.record import CallRecord
from proxy.observe.metrics import Metrics
from proxy.policy import schema


def entry(id: str, cost: int, at: float | None = None, outcome: str = "ok") -> CallRecord:
    user = f"user{random.randrange(20)}"
    return CallRecord(
        id, time.time() if at is None else at, None, user, "free", "ask", "openai", "gpt", cost=cost, outcome=outcome
    )


def tell(what: str, id: str, cost: int) -> None:
    os.write(1, f"{what} {id} {cost} {time.monotonic()}\n".encode())


async def call(ledger: Ledger) -> None:
    """One call: reserved, then settled at another cost, or dropped."""
    id = uuid.uuid4().hex
    reserved = random.randrange(1, 10**9)
    ledger.record_open(entry(id, reserved))
    tell("open", id, reserved)
    await asyncio.sleep(random.choice([0.0, 0.01, 0.5, 2.0]))
    if random.random() < 0.1:
        ledger.discard(id)
        tell("drop", id, 0)
    else:
        cost = random.randrange(1, 10**9)
        ledger.record(entry(id, cost))
        tell("put", id, cost)


async def main() -> None:
    def emit(event: str, message: str, *, level: str = "info", **facts: object) -> None:
        print(message, file=sys.stderr, flush=True)

    policy = schema.Ledger(url=sys.argv[1])
    ledger = Ledger(policy, emit=emit, metrics=Metrics(schema.Metrics(), version="1"), clock=time.monotonic)
    await ledger.start()
    calls = set()
    while True:
        calls.add(asyncio.create_task(call(ledger)))
        calls = {one for one in calls if not one.done()}
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(main())
