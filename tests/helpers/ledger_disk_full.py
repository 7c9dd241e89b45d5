"""A process whose disk is full for a while: files may not grow past a bound that is lifted later. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

from proxy.ledger.ledger import Ledger
from proxy.ledger.record import CallRecord
from proxy.observe.metrics import Metrics
from proxy.policy import schema


async def main(path: str, on_error: str) -> None:
    events: list[str] = []
    metrics = Metrics(schema.Metrics(), version="1")
    policy = schema.Ledger(url=f"sqlite:///{path}", on_error=on_error)
    ledger = Ledger(policy, emit=lambda _, text, **__: events.append(text), metrics=metrics, clock=time.monotonic)
    await ledger.start()
    put = 0

    async def settle(count: int) -> None:
        nonlocal put
        for _ in range(count):
            put += 1
            ledger.record(
                CallRecord(f"{put}", 1000.0 + put, None, "ada", "", "", "openai", "gpt", cost=put, outcome="ok")
            )
        await asyncio.sleep(0.1)

    async def until(state: str) -> None:
        async with asyncio.timeout(30):
            while ledger.health().state != state:
                await settle(100)

    await settle(10)
    await until("ok")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, most))
    await until("degraded")
    await settle(1000)
    reason, refuses, waiting = ledger.health().reason, ledger.refuses_calls(), ledger.rows_waiting
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    await until("ok")
    await ledger.stop()
    print(json.dumps({"put": put, "reason": reason, "refuses": refuses, "waiting": waiting, "events": events}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
