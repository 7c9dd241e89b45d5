"""How many requests the app can work on at once, found out from how long it takes over them.

Of each route the time the app itself spends is followed as a running geometric mean (of about ten
requests; a few slow ones among them do not move it much), and the least that this mean has been is kept.
The ratio of the two, over all routes as they are used, tells how far the app is slowed by its own load:

    target = 1 + (tolerance - 1) / 2
    limit  = clamp(limit × clamp(target / ratio, 0.5, 1) + grow, min, max)
    grow   = √limit / 2 where the limit was reached, else 0

The limit settles where growth and gradient balance, a little above `target` and below `tolerance`.

What is known to go wrong with such limits, and what is done about it:

- An app that has become slower for good, or requests that take now 5 ms, now 500, keep the ratio high and
  the limit at its minimum for ever. So after PINNED steps at the minimum, the time taken there is what
  counts as unloaded, and the limit grows again.
- A least learnt under load lets the limit drift up. So after PROBE seconds at the limit without a pause the
  limit is halved for one step: if the app is as quick then as before, nothing was lost, else a truer least
  was found.
- A quiet app tells nothing about its limits: the limit does not grow until it is reached.
- Requests that take a minute give no samples for a minute: a limit that is reached grows without them.
- The least ages: it rises towards the mean by half in HALF_LIFE seconds in which the limit is not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt

from proxy.policy.model import AdaptiveLimit

STEP = 0.1  # seconds between two changes of the limit, at least
STEP_SAMPLES = 10  # and that many samples; fewer do after SLOW_STEP
SLOW_STEP = 1.0
PINNED = 5
PROBE = 15.0
HALF_LIFE = 300.0
SMOOTHING = 0.1
SHORTEST = 0.001  # seconds; below, clocks and schedulers are what is measured


class _Pace:
    """How a route does: logarithms of seconds."""

    __slots__ = ("count", "least", "mean")

    def __init__(self, first: float) -> None:
        self.mean = first
        self.least = first
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.mean += (value - self.mean) * max(SMOOTHING, 1 / self.count)
        if self.count < 1 / SMOOTHING or self.mean < self.least:
            self.least = self.mean


class Gradient:
    """The adaptive limit. `overloaded`: from when the app is slowed until the limit is no more reached."""

    def __init__(self, policy: AdaptiveLimit, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._target = 1 + (policy.tolerance - 1) / 2
        self._limit = sqrt(policy.min * max(policy.min, policy.max))
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

    def sample(self, route_name: str, seconds: float) -> None:
        """The app itself spent so many seconds on a request that it answered."""
        value = log(max(seconds, SHORTEST))
        pace = self._paces.get(route_name)
        if pace is None:
            pace = self._paces[route_name] = _Pace(value)
        pace.add(value)
        self._sum += exp(pace.mean - pace.least)
        self._count += 1

    def step(self) -> bool:
        """Change the limit where it is time to; whether it was time."""
        now = self._clock()
        elapsed = now - self._since
        if elapsed < (STEP if self._count >= STEP_SAMPLES else SLOW_STEP):
            return False
        ratio = self._sum / self._count if self._count else 1.0
        self._change(ratio, now)
        if not self._reached:
            self._age(elapsed)
        self._since, self._sum, self._count, self._reached = now, 0.0, 0, False
        return True

    def _change(self, ratio: float, now: float) -> None:
        limit = self._limit
        if self._before_probe is not None:  # the halved step is over
            limit, self._before_probe = self._before_probe, None
            self._busy_since = now
        low, high = float(self._policy.min), float(max(self._policy.min, self._policy.max))
        slowed = ratio > self._target
        limit *= min(1.0, max(0.5, self._target / ratio))
        if self._reached:
            limit += sqrt(limit) / 2
            self.overloaded = self.overloaded or slowed
        else:
            self.overloaded = False
        self._limit = min(high, max(low, limit))
        self._learn(slowed=slowed and self._limit < low + 1)
        self._probe(now, low)

    def _learn(self, *, slowed: bool) -> None:
        self._at_minimum = self._at_minimum + 1 if slowed else 0
        if self._at_minimum >= PINNED:
            self._at_minimum = 0
            for pace in self._paces.values():
                pace.least = pace.mean

    def _probe(self, now: float, low: float) -> None:
        if not self._reached:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since >= PROBE and self._count:
            self._before_probe = self._limit
            self._limit = max(low, self._limit / 2)

    def _age(self, elapsed: float) -> None:
        share = 1 - 0.5 ** (elapsed / HALF_LIFE)
        for pace in self._paces.values():
            pace.least += (pace.mean - pace.least) * share
