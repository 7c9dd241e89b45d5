"""What tasks cost: accepted a second, the wait that an idle queue adds, memory at ten thousand that wait.

Through the whole gateway, on SQLite and on PostgreSQL, before an app that answers at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import aiohttp
from aiohttp import web
from bench_tools import table
from gateway_process import GatewayProcess, gateway
from postgres_process import postgres

WAITING = int(os.environ.get("OUTRIGGER_BENCH_TASKS", "10000"))
CLIENTS = 32
IDLE_TRIES = 60
PREFER = {"Prefer": "respond-async"}


async def start_app() -> tuple[web.ServerRunner, int]:
    """An app in this process, which answers `hold` after a minute and everything else at once."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/hold":
            await asyncio.sleep(600)
        return web.Response(body=b"%.6f" % time.time())

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, runner.addresses[0][1]


def policy_of(app: int, url: str | None) -> str:
    background = {"mode": "prefer", "concurrency": 1, "max_queued": 10 * WAITING}
    routes = [
        {"name": "held", "match": {"path": "/hold"}, "background": background},
        {"name": "default", "background": {**background, "concurrency": 32}},
    ]
    named = "" if url is None else f"routes: {json.dumps(routes)}\ntasks: {{url: '{url}'}}\n"
    return f"app: {{url: 'http://127.0.0.1:{app}'}}\nlog: {{access: 'off'}}\n{named}"


def resident(pid: int) -> float:
    """MiB resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def put(session: aiohttp.ClientSession, base: str, count: int) -> float:
    """Tasks accepted a second, by CLIENTS at once."""
    left = count

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with session.post(f"{base}/hold", headers=PREFER, data=b"x" * 200) as answer:
                assert answer.status == 202, await answer.text()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count / (time.perf_counter() - began)


async def idle_waits(session: aiohttp.ClientSession, base: str) -> list[float]:
    """Milliseconds from a request's first byte to the app's begin of it, at a queue with nothing in it."""
    waits = []
    for _ in range(IDLE_TRIES):
        sent = time.time()
        async with session.post(f"{base}/now", headers={"Prefer": "respond-async, wait=10"}) as answer:
            waits.append((float(await answer.read()) - sent) * 1000)
        await asyncio.sleep(0.02)
    return waits


async def measure(g: GatewayProcess) -> tuple[float, list[float], float]:
    await g.ready()
    base = f"http://127.0.0.1:{g.port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        waits = await idle_waits(session, base)
        rate = await put(session, base, WAITING)
        await asyncio.sleep(3)
        return rate, waits, resident(g.pid)


async def main() -> None:
    runner, app = await start_app()
    with tempfile.TemporaryDirectory() as name, postgres(Path(name)) as server:
        folder, rows = Path(name), []
        async with gateway(folder, policy=policy_of(app, None)) as g:
            await g.ready()
            await asyncio.sleep(3)
            bare = resident(g.pid)
        for kind, url in (("SQLite", f"sqlite:///{folder}/tasks.db"), ("PostgreSQL", server.url)):
            async with gateway(folder, policy=policy_of(app, url)) as g:
                await g.ready()
                await asyncio.sleep(3)
                named = resident(g.pid)
                rate, waits, full = await measure(g)
            quick, slow = statistics.median(waits), statistics.quantiles(waits, n=20)[18]
            rows.append(
                [
                    kind,
                    f"{rate:,.0f}",
                    f"{quick:.1f} ms",
                    f"{slow:.1f} ms",
                    f"+ {named - bare:.1f}",
                    f"+ {full - bare:.1f}",
                ]
            )
        wait = "wait at an idle queue"
        table(["queue", "accepted/s", f"{wait}, p50", "p95", "MiB, named", f"MiB, {WAITING:,} waiting"], rows)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
