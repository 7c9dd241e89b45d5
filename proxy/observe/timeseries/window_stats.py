"""What happened in a stretch of time: the difference of two rows of counts, by its names."""

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
    """`errors` are answers of 500 and above, `refused` those of ours below 500 (limits, caps, sizes; no blocks);
    `buckets` how many took at most so long, +Inf the last."""

    requests: float = 0.0
    errors: float = 0.0
    buckets: Sequence[float] = ()
    refused: float = 0.0

    @property
    def error_share(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def quantile(self, share: float) -> float | None:
        """Seconds, as near as the buckets tell; None where nothing was answered."""
        return histogram_quantile(DURATION_BUCKETS, self.buckets, share)


@dataclass(frozen=True, slots=True)
class WindowStats:
    """`seconds` is how long it really was: less than asked for, where the process is younger. `calls` and
    `attempts` by upstream, then outcome; `waits` for a database connection as `buckets`; `cost` in dollars by
    upstream."""

    seconds: float
    routes: Mapping[str, RouteStats] = field(default_factory=dict)
    calls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    attempts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    waits: Sequence[float] = ()
    throttled: float = 0.0

    @property
    def throttled_share(self) -> float:
        return self.throttled / self.seconds if self.seconds > 0 else 0.0

    def total_routes(self) -> RouteStats:
        """All routes together."""
        return merge_routes(self.routes.values())

    def wait_quantile(self, share: float) -> float | None:
        """Seconds that this share of the clients waited at most; None where none asked."""
        return histogram_quantile(WAIT_BUCKETS, self.waits, share)

    def count_waits_over(self, seconds: float) -> float:
        """How many waited longer, in whole buckets: those of the bucket that holds `seconds` are not counted."""
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
    for key, at in places.items():
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
        elif key == WAIT:
            waits = row[at : at + WAIT_WIDTH].tolist()
        elif key == THROTTLED:
            throttled = row[at]
    return WindowStats(seconds, routes, calls, attempts, cost, waits, throttled)


def merge_routes(routes: Iterable[RouteStats]) -> RouteStats:
    requests = errors = refused = 0.0
    buckets = [0.0] * (len(DURATION_BUCKETS) + 1)
    for route in routes:
        requests += route.requests
        errors += route.errors
        refused += route.refused
        if route.requests:
            buckets = [a + b for a, b in zip(buckets, route.buckets, strict=True)]
    return RouteStats(requests, errors, buckets, refused)


def histogram_quantile(bounds: Sequence[float], cumulative: Sequence[float], share: float) -> float | None:
    """As histogram_quantile of Prometheus: straight within a bucket, and at most the last bound."""
    if not cumulative or cumulative[-1] <= 0:
        return None
    wanted = share * cumulative[-1]
    below, low = 0.0, 0.0
    for bound, count in zip(bounds, cumulative, strict=False):
        if count >= wanted:
            return low + (bound - low) * ((wanted - below) / (count - below)) if count > below else bound
        below, low = count, bound
    return bounds[-1]
