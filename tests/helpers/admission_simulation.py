"""A simulated app behind `Admission`, in simulated time: what the overload tests and the bench look at."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, TypeVar

from proxy.errors import Refusal
from proxy.ingress.admission.controller import AdmissionController
from proxy.policy.schema import AdaptiveLimit, FixedLimit, Overload, Route

T = TypeVar("T")

OFF = Overload()
ADAPTIVE = Overload(mode="adaptive", adaptive=AdaptiveLimit())


class _Jump(selectors.DefaultSelector):
    """Waits for nothing: time is moved on to the next timer instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing will ever happen again")
        self.now += max(0.0, timeout)
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def simulate(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)


class App:
    """`workers` serve at once, `service` seconds each, slower the more requests there are beyond them."""

    def __init__(self, *, workers: int = 8, service: float = 0.02, spread: float = 0.1, seed: int = 1) -> None:
        self.workers = workers
        self.service = service
        self.spread = spread
        self.inside = 0
        self._random = random.Random(seed)
        self._free = asyncio.Semaphore(workers)

    async def work(self, service: float | None = None) -> None:
        self.inside += 1
        try:
            async with self._free:
                crowd = max(0, self.inside - self.workers) / self.workers
                natural = self._random.lognormvariate(0.0, self.spread)
                await asyncio.sleep((service or self.service) * natural * (1 + 0.1 * crowd))
        finally:
            self.inside -= 1


@dataclass
class Report:
    """Times are seconds from arrival to answer, of what was answered."""

    seconds: float
    times: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)  # when
    shed: Counter[str] = field(default_factory=Counter)

    def goodput(self, since: float = 0.0) -> float:
        """Answers a second."""
        return sum(1 for at in self.finished if since <= at < self.seconds) / (self.seconds - since)

    def percentile(self, share: float) -> float:
        return quantiles(self.times, n=100)[round(share * 100) - 1]


class Scene:
    """An app, an admission, and what becomes of the requests that are thrown at them."""

    def __init__(self, overload: Overload, app: App, *, seed: int = 2) -> None:
        self.loop = asyncio.get_running_loop()
        self.app = app
        self.reasons: Counter[str] = Counter()
        self.admission = AdmissionController(overload, clock=self.loop.time, on_shed=self._on_shed)
        self.random = random.Random(seed)

    def _on_shed(self, reason: str) -> None:
        self.reasons[reason] += 1

    async def request(
        self, report: Report, route: Route, *, service: float | None = None, model: float = 0.0, reported: bool = True
    ) -> None:
        """One request. `model`: seconds in an outgoing call, which admission is `told` of as it happens."""
        arrived = self.loop.time()
        try:
            permit = self.admission.try_admit(route) or await self.admission.admit(route, "free", "")
        except Refusal as refusal:
            report.shed[refusal.name] += 1
            return
        try:
            entered = self.loop.time()
            if model:
                if reported:
                    permit.call_began()
                await asyncio.sleep(model)
                if reported:
                    permit.call_ended()
            await self.app.work(service)
            permit.record_app_seconds(self.loop.time() - entered)
            permit.release_app()
        finally:
            permit.release()
        report.times.append(self.loop.time() - arrived)
        report.finished.append(self.loop.time())

    async def load(self, rate: float, seconds: float, route: Route = Route("quick"), **request: Any) -> Report:
        """Arrivals at random, `rate` a second, and the answers to all of them."""
        began = self.loop.time()
        report = Report(seconds)
        async with asyncio.TaskGroup() as group:
            while (now := self.loop.time()) < began + seconds:
                group.create_task(self.request(report, route, **request))
                await asyncio.sleep(max(0.0, now + self.random.expovariate(rate) - self.loop.time()))
        report.finished = [at - began for at in report.finished]
        return report


def fixed(limit: int, queue: int = 4) -> Overload:
    return Overload(mode="fixed", fixed=FixedLimit(limit=limit, queue=queue, wait=10.0))
