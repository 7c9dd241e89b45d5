"""Statistics of a window of time, from the difference of two snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.observe.metrics import DURATION_BUCKETS, WAIT_BUCKETS
from proxy.observe.timeseries.snapshot import (
    BUCKETS,
    ERRORS,
    REFUSED,
    REQUESTS,
    ROUTE_WIDTH,
    THROTTLED,
    WAIT,
    WAIT_WIDTH,
    Key,
    Snapshot,
)


@dataclass(frozen=True, slots=True)
class RouteStats:
    """The requests of a route. `errors` are responses of 500 and above, `refused` our own below 500 (limits, caps,
    sizes; not blocks); `buckets` is how many took at most each of DURATION_BUCKETS, +Inf the last."""

    requests: float = 0.0
    errors: float = 0.0
    buckets: Sequence[float] = ()
    refused: float = 0.0

    @property
    def error_share(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def quantile(self, share: float) -> float | None:
        """The duration in seconds, as exactly as the buckets tell; None if nothing was answered."""
        return histogram_quantile(DURATION_BUCKETS, self.buckets, share)


@dataclass(frozen=True, slots=True)
class WindowStats:
    """A window. `seconds` is how long it really is: shorter than asked for if the process is younger. `calls` and
    `attempts` are by upstream and outcome, `cost` is in dollars by upstream; `waits` counts the waits for a database
    connection by WAIT_BUCKETS, +Inf the last; `throttled` is in seconds; `tasks` counts those that ended, by route and
    outcome.
    """

    seconds: float
    routes: Mapping[str, RouteStats] = field(default_factory=dict)
    calls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    attempts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    waits: Sequence[float] = ()
    throttled: float = 0.0
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def throttled_share(self) -> float:
        return self.throttled / self.seconds if self.seconds > 0 else 0.0

    def total_routes(self) -> RouteStats:
        """All routes together."""
        return merge_routes(self.routes.values())

    def wait_quantile(self, share: float) -> float | None:
        """How many seconds this share of the clients waited at most; None if none asked."""
        return histogram_quantile(WAIT_BUCKETS, self.waits, share)

    def count_waits_over(self, seconds: float) -> float:
        """How many waited longer. Only whole buckets count: those of the bucket that contains `seconds` do not."""
        if not self.waits:
            return 0.0
        within = next((n for bound, n in zip(WAIT_BUCKETS, self.waits, strict=False) if bound >= seconds), None)
        return self.waits[-1] - within if within is not None else 0.0


def window_stats(seconds: float, row: Snapshot, places: Mapping[Key, int]) -> WindowStats:
    routes: dict[str, RouteStats] = {}
    calls: dict[str, dict[str, float]] = {}
    attempts: dict[str, dict[str, float]] = {}
    cost: dict[str, float] = {}
    waits: Sequence[float] = ()
    throttled = 0.0
    tasks: dict[str, dict[str, float]] = {}
    for key, at in places.items():
        # A route or an upstream that came after this snapshot was taken.
        if at >= len(row):
            continue
        if key[0] == "route":
            buckets = row[at + BUCKETS : at + ROUTE_WIDTH].tolist()
            routes[key[1]] = RouteStats(row[at + REQUESTS], row[at + ERRORS], buckets, row[at + REFUSED])
        elif key[0] == "calls":
            calls.setdefault(key[1], {})[key[2]] = row[at]
        elif key[0] == "attempts":
            attempts.setdefault(key[1], {})[key[2]] = row[at]
        elif key[0] == "cost":
            cost[key[1]] = row[at]
        elif key[0] == "tasks":
            tasks.setdefault(key[1], {})[key[2]] = row[at]
        elif key == WAIT:
            waits = row[at : at + WAIT_WIDTH].tolist()
        elif key == THROTTLED:
            throttled = row[at]
    return WindowStats(seconds, routes, calls, attempts, cost, waits, throttled, tasks)


def merge_routes(routes: Iterable[RouteStats]) -> RouteStats:
    requests = errors = refused = 0.0
    buckets = [0.0] * (len(DURATION_BUCKETS) + 1)
    for route in routes:
        requests += route.requests
        errors += route.errors
        refused += route.refused
        # One that was asked nothing may have no buckets at all.
        if route.requests:
            buckets = [a + b for a, b in zip(buckets, route.buckets, strict=True)]
    return RouteStats(requests, errors, buckets, refused)


def histogram_quantile(bounds: Sequence[float], cumulative: Sequence[float], share: float) -> float | None:
    """As `histogram_quantile` of Prometheus: linear within a bucket, and at most the last bound."""
    if not cumulative or cumulative[-1] <= 0:
        return None
    wanted = share * cumulative[-1]
    below, low = 0.0, 0.0
    for bound, count in zip(bounds, cumulative, strict=False):
        if count >= wanted:
            return low + (bound - low) * ((wanted - below) / (count - below)) if count > below else bound
        below, low = count, bound
    return bounds[-1]
