"""What a running gateway has seen, as its metrics, status and history say."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families


@dataclass(slots=True)
class Histogram:
    """A Prometheus histogram: `cumulative[i]` observations were at most `bounds[i]`, the last bound is infinite."""

    bounds: list[float] = field(default_factory=list)
    cumulative: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        return int(self.cumulative[-1]) if self.cumulative else 0

    def quantile(self, share: float) -> float:
        """The lowest bound that this share of all was at most; infinite if only the last one is."""
        return self.bounds[bisect_left(self.cumulative, share * self.count)] if self.count else 0.0

    @property
    def highest(self) -> float:
        """The bound that all were at most."""
        return self.quantile(1.0)


@dataclass(slots=True)
class RouteStats:
    """What one route saw since the gateway started."""

    requests: int = 0
    seconds: Histogram = field(default_factory=Histogram)
    concurrency: Histogram = field(default_factory=Histogram)
    rate_decisions: dict[str, int] = field(default_factory=dict)  # by decision: allowed, refused, shadow
    shadow: dict[str, int] = field(default_factory=dict)  # by the name of the refusal that was not made


@dataclass(slots=True)
class GatewayStats:
    """What a gateway saw since it started.

    Attributes:
        uptime: in seconds.
        routes: by name.
        calls: seconds of calls out, by upstream.
        last_day_spend: what the calls of the last day cost by the history, in dollars.
    """

    uptime: float
    routes: dict[str, RouteStats] = field(default_factory=dict)
    calls: dict[str, Histogram] = field(default_factory=dict)
    last_day_spend: float = 0.0


def parse_stats(metrics: str, status: Mapping[str, object], history: Mapping[str, object]) -> GatewayStats:
    """Raises ValueError for what is no answer of a gateway."""
    try:
        health = status["health"]
        assert isinstance(health, Mapping)
        found = GatewayStats(float(health["uptime_s"]), last_day_spend=_last_day_spend(history))
    except (KeyError, TypeError, AssertionError):
        raise ValueError("it answers, but not as a gateway does") from None
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels = sample.labels
            # A sample without a route gets one that nobody keeps.
            route = found.routes.setdefault(labels["route"], RouteStats()) if "route" in labels else RouteStats()
            match sample.name.removeprefix("outrigger_"):
                case "http_requests_total":
                    route.requests += int(sample.value)
                case "http_request_duration_seconds_bucket":
                    _add_bucket(route.seconds, labels["le"], sample.value)
                case "http_concurrency_bucket":
                    _add_bucket(route.concurrency, labels["le"], sample.value)
                case "upstream_call_duration_seconds_bucket":
                    _add_bucket(found.calls.setdefault(labels["upstream"], Histogram()), labels["le"], sample.value)
                case "rate_limit_total":
                    decision = labels["decision"]
                    route.rate_decisions[decision] = route.rate_decisions.get(decision, 0) + int(sample.value)
                case "shadow_total":
                    route.shadow[labels["name"]] = route.shadow.get(labels["name"], 0) + int(sample.value)
    return found


def _add_bucket(spread: Histogram, bound: str, value: float) -> None:
    # Buckets come by rising bounds, as the text format has them (prometheus.io, exposition formats).
    spread.bounds.append(math.inf if bound == "+Inf" else float(bound))
    spread.cumulative.append(value)


def _last_day_spend(history: Mapping[str, object]) -> float:
    """The points of the last day, and those of the last quarter of an hour that are not yet among them."""
    whole = history.get("history")
    total = 0.0
    if isinstance(whole, Mapping):
        day, recent = whole["day"], whole["recent"]
        total += sum(day["cost_usd"])
        last = day["at"][-1] if day["at"] else 0.0
        total += sum(cost for at, cost in zip(recent["at"], recent["cost_usd"], strict=True) if at > last)
    return total
