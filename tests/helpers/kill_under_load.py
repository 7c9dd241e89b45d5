"""A gateway that is killed under load, again and again, and the reckoning afterwards."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web
from egress_gateway import CHAT, Vendor, says
from gateway_process import GatewayProcess, gateway

PRICE = 17_000  # nano-dollars of an answer with the usual usage
CALLERS = 20
GRACE = 1.5  # seconds: the second that may be lost, and half a one for a machine that is busy


@dataclass
class Found:
    """`older_lost`: answers that were whole for longer than GRACE when the gateway was killed, and have no row.
    `unrecorded`: calls that were under way for longer than that, and have none."""

    kills: int
    served: int
    rows: int
    open_rows: int
    lost: int
    older_lost: int
    unrecorded: int
    doubled: int
    cost: int
    least: int


async def crash_and_reconcile(tmp: Path, *, kills: int) -> Found:
    """Twenty callers at once, `kills` times, each for about a second and a half."""
    rng = random.Random(7)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(rng.uniform(0.005, 0.05) if rng.random() < 0.95 else 3.0)
        return await says()(request)

    vendor = Vendor(answer)
    await vendor.start()
    began: dict[str, float] = {}
    ended: dict[str, float] = {}  # user of each call → when its answer was whole
    killed: list[float] = []
    text = f"""
app: {{attribution: "off"}}
upstreams:
  openai:
    base_url: http://127.0.0.1:{vendor.port}/v1
    prices: {{gpt-4o-mini: {{input: 1, output: 2}}}}
ledger: {{url: "sqlite:///{tmp}/ledger.db"}}
log: {{level: warning}}
"""
    try:
        while (turn := len(killed)) < kills:
            async with gateway(tmp, "sleep 1000", policy=text) as g:
                if not await calling(g):
                    continue  # somebody took one of its ports first
                until = time.monotonic() + rng.uniform(1.8, 2.4)
                callers = [asyncio.create_task(_caller(g.egress, f"{turn}-{n}", began, ended)) for n in range(CALLERS)]
                await asyncio.sleep(until - time.monotonic())
                killed.append(time.monotonic())
                g.signal(signal.SIGKILL)
                await g.ended()
                await asyncio.gather(*callers)
    finally:
        await vendor.stop()
    return _reckon(tmp / "ledger.db", kills, began, ended, killed)


async def calling(g: GatewayProcess) -> bool:
    """Until the gateway takes calls; False where it cannot have its addresses."""
    async with aiohttp.ClientSession() as session:
        for _ in range(1500):
            try:
                async with session.get(f"http://127.0.0.1:{g.egress}/nobody") as answer:
                    if answer.status == 404:
                        return True
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)
            if g.process.returncode is not None:
                break
    if "is taken by another process" in g.output():
        return False
    raise AssertionError(f"it takes no calls:\n{g.output()[-4000:]}")


async def _caller(egress: int, name: str, began: dict[str, float], ended: dict[str, float]) -> None:
    """Calls one after the other, each under a user of its own, until the gateway is gone."""
    url = f"http://127.0.0.1:{egress}/openai/v1/chat/completions"
    number = 0
    async with aiohttp.ClientSession() as session:
        while True:
            number += 1
            user = f"{name}-{number}"
            began[user] = time.monotonic()
            try:
                async with session.post(url, json={**CHAT, "user": user, "max_tokens": 5}) as answer:
                    await answer.read()
                    assert answer.status == 200, await answer.text()
            except (aiohttp.ClientError, ConnectionError):
                return
            ended[user] = time.monotonic()


def _reckon(file: Path, kills: int, began: dict[str, float], ended: dict[str, float], killed: list[float]) -> Found:
    with closing(sqlite3.connect(file)) as ledger:
        rows = ledger.execute("select user_id, outcome, cost from outrigger_calls").fetchall()
    named = [user for user, _, _ in rows]
    known = set(named)
    lost = [user for user in ended if user not in known]
    older = [user for user in lost if ended[user] < killed[int(user.split("-")[0])] - GRACE]
    long = [user for user in began if user not in ended and began[user] < killed[int(user.split("-")[0])] - GRACE]
    return Found(
        kills=kills,
        served=len(ended),
        rows=len(rows),
        open_rows=sum(outcome == "open" for _, outcome, _ in rows),
        lost=len(lost),
        older_lost=len(older),
        unrecorded=sum(user not in known for user in long),
        doubled=len(named) - len(known),
        cost=sum(cost for _, _, cost in rows),
        least=PRICE * (len(ended) - len(lost)),
    )
