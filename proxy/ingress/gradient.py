"""How many requests the app can work on at once, found out from how long it takes over them.

Of each route two things are followed, as running geometric means, which a few slow requests move little:
what the app takes now, and the least it takes, which is what it takes with hardly anything else to do. The
ratio of the two, over all routes as they are used, tells how far the app is slowed by its own load:

    target = 1 + (tolerance - 1) / 2
    limit  = clamp(limit × clamp(target / ratio, 0.5, 1) + grow, min, max)
    grow   = √limit / 2 where the limit was reached, limit / 4 where it was without a sample, else 0

The limit settles where growth and gradient balance, a little above `target` and below `tolerance`.

What is known to go wrong with such limits, and what is done about it:

- Requests that take now 5 ms, now 500, look slowed beside the quickest of them. So the least is a mean too:
  of requests that found the app idle, or nearly so.
- An app that has become slower for good would keep the limit at its minimum while the load lasts. So after
  PINNED steps at the minimum, what is taken there counts as the least, unless an idle app was seen lately.
- A least learnt under load lets the limit drift up. So after PROBE seconds at the limit without a pause the
  limit is halved for one step: if the app is as quick then as before, nothing was lost, else a truer least
  was found.
- A quiet app tells nothing about its limits: the limit does not grow until it is reached.
- Requests that take a minute give no samples for a minute: a limit that is reached grows without them,
  unless those in flight are late already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import exp, log, sqrt

from proxy.policy.model import AdaptiveLimit

STEP = 0.1  # seconds between two changes of the limit, at least
STEP_SAMPLES = 10  # and that many samples; fewer do after SLOW_STEP
SLOW_STEP = 1.0
PINNED = 5
PROBE = 15.0
RECENT = 60.0  # for so many seconds it is known what an idle app takes
SHORTEST = 0.001  # seconds; below, clocks and schedulers are what is measured

NOW = 0.1  # weight of a sample in the mean of the present
THEN = 0.02  # and in those that the least is found from


class _Pace:
    """How a route does: logarithms of seconds."""

    __slots__ = ("calm", "calm_at", "count", "least", "now", "slow")

    def __init__(self, first: float) -> None:
        self.now = self.slow = self.least = first
        self.count = 0
        self.calm = 0  # samples that found the app idle
        self.calm_at = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.now += (value - self.now) * max(NOW, 1 / self.count)
        self.slow += (value - self.slow) * max(THEN, 1 / self.count)
        self.least = min(self.least, self.slow)

    def add_calm(self, value: float, at: float) -> None:
        self.calm += 1
        self.calm_at = at
        self.least += (value - self.least) * max(THEN, 1 / self.calm)


class Gradient:
    """The adaptive limit. `overloaded`: from when the app is slowed until the limit is no more reached."""

    def __init__(self, policy: AdaptiveLimit, clock: Callable[[], float]) -> None:
        self._low = float(policy.min)
        self._high = float(max(policy.min, policy.max))
        self._calm = max(1, policy.min // 2)  # in flight, and the app counts as idle
        self._clock = clock
        self._target = 1 + (policy.tolerance - 1) / 2
        self._limit = sqrt(self._low * self._high)
        self._paces: dict[str, _Pace] = {}  # by route name: bounded as the policy is
        self._sum = 0.0  # of the ratios since the last step
        self._count = 0
        self._reached = False
        self._at_minimum = 0  # steps in a row
        self._since = clock()
        self._busy_since: float | None = None
        self._before_probe: float | None = None
        self.overloaded = False

    def __repr__(self) -> str:
        return f"<Gradient: {self.limit}{', overloaded' if self.overloaded else ''}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def reached(self) -> None:
        """A request found no place."""
        self._reached = True

    def sample(self, route_name: str, seconds: float, crowd: int) -> None:
        """The app itself spent so many seconds on a request that began as the `crowd`-th of those in flight."""
        value = log(max(seconds, SHORTEST))
        pace = self._paces.get(route_name)
        if pace is None:
            pace = self._paces[route_name] = _Pace(value)
        pace.add(value)
        if crowd <= self._calm:
            pace.add_calm(value, self._clock())
        self._sum += exp(pace.now - pace.least)
        self._count += 1

    def step(self, ages: Callable[[], Iterable[tuple[str, float]]]) -> bool:
        """Change the limit where it is time to; whether it was time.

        `ages` are route and seconds so far of the requests in flight, asked for where samples are few.
        """
        now = self._clock()
        if now - self._since < (STEP if self._count >= STEP_SAMPLES else SLOW_STEP):
            return False
        if self._count < STEP_SAMPLES and self._reached:
            self._count_late(ages())
        self._change(self._sum / self._count if self._count else 1.0, now)
        self._since, self._sum, self._count, self._reached = now, 0.0, 0, False
        return True

    def _count_late(self, ages: Iterable[tuple[str, float]]) -> None:
        for route_name, age in ages:
            pace = self._paces.get(route_name)
            if pace is not None and (ratio := age / exp(pace.least)) > self._target:
                self._sum += ratio
                self._count += 1

    def _change(self, ratio: float, now: float) -> None:
        limit = self._limit
        if self._before_probe is not None:  # the halved step is over
            limit, self._before_probe = self._before_probe, None
            self._busy_since = now
        slowed = ratio > self._target
        limit *= min(1.0, max(0.5, self._target / ratio))
        if self._reached:
            limit += sqrt(limit) / 2 if self._count else limit / 4
            self.overloaded = self.overloaded or slowed
        else:
            self.overloaded = False
        self._limit = min(self._high, max(self._low, limit))
        self._relearn(now, slowed=slowed and self._limit < self._low + 1)
        self._probe(now)

    def _relearn(self, now: float, *, slowed: bool) -> None:
        self._at_minimum = self._at_minimum + 1 if slowed else 0
        if self._at_minimum < PINNED:
            return
        self._at_minimum = 0
        for pace in self._paces.values():
            if now - pace.calm_at > RECENT:
                pace.least = pace.slow = pace.now

    def _probe(self, now: float) -> None:
        if not self._reached:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since >= PROBE and self._count:
            self._before_probe = self._limit
            self._limit = max(self._low, self._limit / 2)
