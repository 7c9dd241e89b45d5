"""Gateways that are killed under load, again and again, over one store: the vendor's own count against the cap."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from contextlib import AsyncExitStack

import aiohttp
import pytest
from egress_gateway import CHAT, Vendor, says
from gateway_process import GatewayProcess, gateway
from kill_under_load import calling
from shared_egress import PRICE

from proxy.units import NANOS

CALLS = 800  # that the cap has room for
GRACE = 1.5  # seconds before a kill of which nothing may be on record, and half a one for a machine that is busy
POLICY = """
app: {{attribution: "off"}}
store: {{url: "{store}", prefix: {prefix}, timeout: 2s}}
ledger: {{url: "{ledger}"}}
upstreams:
  openai:
    base_url: http://127.0.0.1:{port}/v1
    prices: {{gpt-4o-mini: {{input: 1, output: 2}}}}
    cap: {{total: "${cap}/month"}}
log: {{level: warning}}
"""


class Books:
    """What the vendor has billed, by the instance that called, with the time of each."""

    def __init__(self) -> None:
        self.calls: dict[str, list[float]] = defaultdict(list)
        self.vendor = Vendor(self._answer)
        self._rng = random.Random(3)

    async def _answer(self, request):
        body = self.vendor.requests[-1][3]
        name = body.partition(b'"user": "')[2].partition(b'"')[0].decode()
        self.calls[name].append(time.monotonic())
        self.vendor.requests.clear()
        await asyncio.sleep(self._rng.uniform(0.005, 0.05))
        return await says()(request)

    @property
    def count(self) -> int:
        return sum(map(len, self.calls.values()))


async def call_until_gone(g: GatewayProcess, name: str, refused: list[int]) -> None:
    url = f"http://127.0.0.1:{g.egress}/openai/v1/chat/completions"
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.post(url, json={**CHAT, "user": name, "max_tokens": 5}) as answer:
                    await answer.read()
                    assert answer.status in (200, 429), await answer.text()
                    if answer.status == 429:
                        refused.append(1)
                        await asyncio.sleep(0.05)
            except aiohttp.ClientError:
                return


@pytest.mark.parametrize("shares_ledger", [True, False])
async def test_a_cap_holds_over_instances_that_are_killed_under_load(server, tmp_path, own, shares_ledger):
    books = Books()
    await books.vendor.start()
    name = f"ledger_kill_{time.monotonic_ns()}"
    if shares_ledger:
        own.make(name)
    text = POLICY.format(
        store=server.url, prefix=server.prefix, port=books.vendor.port, cap=f"{CALLS * PRICE / NANOS:f}",
        ledger=own.url(name) if shares_ledger else f"sqlite:///{tmp_path}/ledger.db",
    )  # fmt: skip
    rng = random.Random(5)
    lost = 0
    refused: list[int] = []
    try:
        async with AsyncExitStack() as stack:
            running: dict[str, tuple[GatewayProcess, list[asyncio.Task[None]]]] = {}

            async def start(number: int) -> None:
                g = await stack.enter_async_context(gateway(tmp_path, "sleep 1000", policy=text))
                assert await calling(g)
                callers = [asyncio.create_task(call_until_gone(g, f"i{number}", refused)) for _ in range(6)]
                running[f"i{number}"] = g, callers

            await asyncio.gather(*(start(number) for number in range(3)))
            for number in range(3, 9):
                await asyncio.sleep(rng.uniform(0.6, 1.4))
                victim = rng.choice(list(running))
                g, callers = running.pop(victim)
                killed = time.monotonic()
                g.signal(signal.SIGKILL)
                await g.ended()
                await asyncio.gather(*callers)
                # What it had not told: no more than it did in the second before.
                lost += sum(at > killed - GRACE for at in books.calls[victim])
                await start(number)
            deadline = time.monotonic() + 90
            while len(refused) < 60 and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            for g, callers in running.values():
                for caller in callers:
                    caller.cancel()
                await g.stop()
    finally:
        await books.vendor.stop()
    assert books.count <= CALLS + lost, (books.count, CALLS, lost)
    assert refused
    # The slices of the dead count for a minute, so a part of the cap may still be theirs.
    assert books.count >= CALLS * 0.7, books.count
