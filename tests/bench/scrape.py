"""What metrics cost: python tests/bench/scrape.py

The hot path a request, ids and trace context a request, and a scrape with a hundred routes: its CPU time, and
how long it held the event loop at one go (goal: under 20 ms).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from proxy.observe.metrics import Metrics
from proxy.observe.request_ids import IdGenerator, parse_traceparent
from proxy.policy import schema

TURNS = 100_000
ROUTES = 100


def cost(act: Callable[[], object]) -> float:
    """Microseconds of CPU time a turn, median of five runs."""
    runs = []
    for _ in range(5):
        started = time.thread_time()
        for _ in range(TURNS):
            act()
        runs.append((time.thread_time() - started) / TURNS * 1e6)
    return statistics.median(runs)


async def scrape(metrics: Metrics, accept: str) -> tuple[float, float, int]:
    """Milliseconds of CPU time, the longest hold of the loop in it, and lines."""
    longest = 0.0

    async def neighbour() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest = max(longest, now - last)
            last = now

    task = asyncio.create_task(neighbour())
    await asyncio.sleep(0)
    started = time.thread_time()
    body, _ = await metrics.render(accept)
    spent = time.thread_time() - started
    task.cancel()
    return spent * 1e3, longest * 1e3, body.count(b"\n")


async def main() -> None:
    metrics = Metrics(schema.Metrics(), version="bench")
    request = cost(lambda: metrics.observe_request("default", "GET", 200, 0.012, 0.0003))
    print(f"Metrics.request           {request:6.2f} µs")
    ids = IdGenerator()
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    made = cost(lambda: (ids.choose_request_id(None), ids.new_token(), parse_traceparent(None)))
    taken = cost(lambda: (ids.choose_request_id("0f8fad5b-d9cb-469f-a165"), ids.new_token(), parse_traceparent(parent)))
    print(f"id and token made         {made:6.2f} µs")
    print(f"id and trace taken over   {taken:6.2f} µs")

    names = [f"route-{number}" for number in range(ROUTES)]
    metrics.declare_routes(names)
    metrics.declare_limits((name, tier) for name in names for tier in ("free", "premium", "admin"))
    for name in names:
        for method in ("GET", "POST"):
            for code in (200, 404, 500):
                metrics.observe_request(name, method, code, 0.1, 0.001)
    for title, accept in (("text", ""), ("OpenMetrics", "application/openmetrics-text")):
        runs = [await scrape(metrics, accept) for _ in range(5)]
        spent = statistics.median(run[0] for run in runs)
        longest = max(run[1] for run in runs)
        print(
            f"scrape, {ROUTES} routes, {title}: {runs[0][2]} lines, {spent:.1f} ms CPU, "
            f"loop held at most {longest:.1f} ms at one go"
        )


if __name__ == "__main__":
    asyncio.run(main())
