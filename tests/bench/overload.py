"""What the adaptive limit is worth: `python tests/bench/overload.py [--real]`.

An app of 8 workers at 20 ms (400 requests a second) that grows slower when crowded gets three times what it
can do; then what happens where nothing is overloaded: a route's mix changes, what it waits for grows slow, bursts.
Beside Envoy's gradient and fixed limits. Figures are of simulated time unless --real.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from admission_simulation import ADAPTIVE, OFF, App, Report, Scene, fixed, simulate  # noqa: E402

from proxy.errors import Refusal  # noqa: E402
from proxy.policy.schema import Overload, Route  # noqa: E402

CAPACITY = 400.0


class EnvoyAdmission:
    """Envoy's adaptive concurrency with its defaults, from its documentation: p50 of windows of 100 ms, a least measured
    every 60 s over 50 requests at a limit of 3, a buffer of 25 %, and who finds no place is refused at once."""

    MINIMUM, MAXIMUM, EACH, MEASURED, EVERY, BUFFER = 3.0, 1000.0, 0.1, 50, 60.0, 1.25

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_flight = 0
        self._limit = self.MINIMUM
        self._kept = self.MINIMUM
        self._least: float | None = None
        self._times: list[float] = []
        self._since = self._measured_at = clock()

    @property
    def limit(self) -> int:
        return int(self._limit)

    def try_enter(self, route: Route) -> EnvoyPermit | None:
        if self._in_flight >= self.limit:
            return None
        self._in_flight += 1
        return EnvoyPermit(self)

    async def enter(self, route: Route, tier: str, user: str) -> EnvoyPermit:
        raise Refusal("overloaded", 503, "Overloaded", "")

    def leave(self) -> None:
        self._in_flight -= 1

    def sample(self, seconds: float) -> None:
        now = self._clock()
        self._times.append(seconds)
        if self._least is None:
            if len(self._times) >= self.MEASURED:
                self._least, self._measured_at = median(self._times), now
                self._limit, self._times, self._since = self._kept, [], now
            return
        if now - self._since >= self.EACH:
            gradient = min(2.0, max(0.5, self._least * self.BUFFER / median(self._times)))
            limit = self._limit * gradient
            self._limit = min(self.MAXIMUM, max(self.MINIMUM, limit + sqrt(limit)))
            self._times, self._since = [], now
            if now - self._measured_at >= self.EVERY:
                self._least, self._kept, self._limit = None, self._limit, self.MINIMUM


class EnvoyPermit:
    def __init__(self, admission: EnvoyAdmission) -> None:
        self._admission: EnvoyAdmission | None = admission

    def sample(self, seconds: float) -> None:
        assert self._admission is not None
        self._admission.sample(seconds)

    def release(self) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.leave()

    head_sent = release

    def call_began(self) -> None:
        pass

    call_ended = call_began


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
    for reported in (True, False):
        scene = Scene(ADAPTIVE, App())
        quick = asyncio.create_task(scene.load(40.0, 180.0))
        slow = await scene.load(1.0, 120.0, Route("model"), model=60.0, reported=reported)
        await quick
        calls = "reported" if reported else "unseen"
        print(row(f"60 s model, 1/s, calls {calls}", slow, scene))


async def recovery() -> None:
    scene = Scene(ADAPTIVE, App())
    for name, rate, seconds in (("before", 0.3, 10.0), ("burst", 5.0, 20.0), ("after", 0.3, 10.0)):
        print(row(f"recovery: {name} ({rate:g} x)", await scene.load(CAPACITY * rate, seconds), scene))


async def calm(seconds: float = 60.0) -> None:
    """Traces in which the app is never overloaded: whoever is refused there is refused for nothing."""
    limits = {"fixed 32": fixed(32, 100), "adaptive": ADAPTIVE, "Envoy's gradient": None}
    for name, overload in limits.items():
        for trace, load in TRACES.items():
            scene = Scene(overload or OFF, App(spread=0.5))
            if overload is None:
                scene.admission = EnvoyAdmission(scene.loop.time)  # type: ignore[assignment]
            await scene.load(20.0, seconds)
            refused = asked = 0
            for report in await load(scene):
                refused += report.shed.total()
                asked += report.shed.total() + len(report.times)
            limit = scene.admission.limit
            print(f"{name:17} {trace:52} refused {refused / asked:6.1%} of {asked:5}  limit at the end {limit}")


async def turned(scene: Scene) -> list[Report]:
    return [await scene.load(20.0, 60.0, model=2.0, reported=False)]


async def mixed(scene: Scene) -> list[Report]:
    return list(await asyncio.gather(scene.load(15.0, 180.0), scene.load(15.0, 180.0, model=1.0, reported=False)))


async def wavering(scene: Scene) -> list[Report]:
    waits = (0.1, 0.3, 1.0, 3.0, 1.0, 0.1, 0.0, 3.0, 0.0)
    return [await scene.load(10.0, 40.0, model=wait, reported=False) for wait in waits]


async def burst(scene: Scene) -> list[Report]:
    report = Report(60.0)
    async with asyncio.TaskGroup() as group:
        for _ in range(60):
            group.create_task(scene.request(report, Route("quick")))
    return [report, await scene.load(20.0, 60.0)]


TRACES: dict[str, Callable[[Scene], Coroutine[Any, Any, list[Report]]]] = {
    "a route's mix turns from 20 ms to waits of 2 s": turned,
    "half of a route's requests take 20 ms, half 1 s": mixed,
    "what it waits for: 0.1, 0.3, 1, 3, 1, 0.1, 0, 3, 0 s": wavering,
    "60 requests at once, then as before": burst,
}


def main() -> None:
    real = "--real" in sys.argv[1:]
    run: Any = asyncio.run if real else simulate
    parts: list[Coroutine[Any, Any, None]] = [comparison(6.0 if real else 60.0, simulated=not real)]
    if not real:
        parts += [model_route(), recovery(), calm()]
    for part in parts:
        run(part)


if __name__ == "__main__":
    main()
