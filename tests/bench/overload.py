"""What the adaptive limit is worth: `python tests/bench/overload.py [--real]`.

An app of 8 workers at 20 ms (400 requests a second) that grows slower when crowded gets three times what it
can do. Figures are of simulated time unless --real.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]

from admission_sim import ADAPTIVE, OFF, App, Report, Scene, fixed, simulate  # noqa: E402

from proxy.policy.model import Overload, Route  # noqa: E402

CAPACITY = 400.0


def row(name: str, report: Report, scene: Scene) -> str:
    shed = report.shed.total() / max(1, report.shed.total() + len(report.times))
    return (
        f"{name:34} {len(report.times):6} answered {report.goodput():5.0f}/s  p50 {report.percentile(0.5) * 1000:7.1f} ms"
        f"  p95 {report.percentile(0.95) * 1000:7.1f} ms  shed {shed:5.1%}  limit {scene.admission.limit or '-'}"
    )


async def steady(name: str, overload: Overload, rate: float, seconds: float) -> Report:
    scene = Scene(overload, App())
    report = await scene.load(rate, seconds)
    print(row(name, report, scene))
    return report


async def comparison(seconds: float, *, simulated: bool) -> None:
    unloaded = await steady("unloaded (10 %)", OFF, CAPACITY * 0.1, seconds)
    if simulated:  # in real time its queue would take minutes to clear
        await steady("3 x capacity, no limit", OFF, CAPACITY * 3, 5.0)
    best: list[Report] = []
    for limit in (6, 8, 10, 12, 16):
        best.append(await steady(f"3 x capacity, fixed {limit}", fixed(limit), CAPACITY * 3, seconds))
    adaptive = await steady("3 x capacity, adaptive", ADAPTIVE, CAPACITY * 3, seconds)
    top = max(report.goodput() for report in best)
    print(f"adaptive goodput: {adaptive.goodput() / top:.1%} of the best fixed limit's")
    print(f"adaptive p95: {adaptive.percentile(0.95) / unloaded.percentile(0.5):.2f} x the unloaded median")
    print(f"              {adaptive.percentile(0.95) / unloaded.percentile(0.95):.2f} x the unloaded p95")


async def model_route() -> None:
    for told in (True, False):
        scene = Scene(ADAPTIVE, App())
        quick = asyncio.create_task(scene.load(40.0, 180.0))
        slow = await scene.load(1.0, 120.0, Route("model"), model=60.0, told=told)
        await quick
        calls = "reported" if told else "unseen"
        print(row(f"60 s model, 1/s, calls {calls}", slow, scene))


async def recovery() -> None:
    scene = Scene(ADAPTIVE, App())
    for name, rate, seconds in (("before", 0.3, 10.0), ("burst", 5.0, 20.0), ("after", 0.3, 10.0)):
        print(row(f"recovery: {name} ({rate:g} x)", await scene.load(CAPACITY * rate, seconds), scene))


def main() -> None:
    real = "--real" in sys.argv[1:]
    run: Any = asyncio.run if real else simulate
    parts: list[Coroutine[Any, Any, None]] = [comparison(6.0 if real else 60.0, simulated=not real)]
    if not real:
        parts += [model_route(), recovery()]
    for part in parts:
        run(part)


if __name__ == "__main__":
    main()
