"""What a running gateway has seen, as its metrics, status and history say."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families


@dataclass(slots=True)
class Spread:
    """A histogram: so many at most each bound, the last bound infinite."""

    bounds: list[float] = field(default_factory=list)
    at_most: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        return int(self.at_most[-1]) if self.at_most else 0

    def quantile(self, share: float) -> float:
        """The bound that this share of all was at most; infinite where no finite one says it."""
        return self.bounds[bisect_left(self.at_most, share * self.count)] if self.count else 0.0

    @property
    def highest(self) -> float:
        """The bound that all were at most."""
        return self.quantile(1.0)


@dataclass(slots=True)
class Traffic:
    """Of one route, since the gateway started."""

    requests: int = 0
    seconds: Spread = field(default_factory=Spread)
    at_once: Spread = field(default_factory=Spread)
    limited: dict[str, int] = field(default_factory=dict)  # by decision: allowed, refused, shadow
    shadow: dict[str, int] = field(default_factory=dict)  # by the name of the refusal that was not made


@dataclass(slots=True)
class Evidence:
    """`uptime` in seconds. `spent` is what the calls of the last day cost by the history, in dollars; `dearest` the
    dearest hour of it."""

    uptime: float
    routes: dict[str, Traffic] = field(default_factory=dict)
    calls: dict[str, Spread] = field(default_factory=dict)  # seconds of calls out, by upstream
    spent: float = 0.0


def read_evidence(metrics: str, status: Mapping[str, object], history: Mapping[str, object]) -> Evidence:
    """Raises ValueError for what is no answer of a gateway."""
    try:
        health = status["health"]
        assert isinstance(health, Mapping)
        found = Evidence(float(health["uptime_s"]), spent=_spent(history))
    except (KeyError, TypeError, AssertionError):
        raise ValueError("it answers, but not as a gateway does") from None
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels = sample.labels
            route = found.routes.setdefault(labels["route"], Traffic()) if "route" in labels else Traffic()
            match sample.name.removeprefix("outrigger_"):
                case "http_requests_total":
                    route.requests += int(sample.value)
                case "http_request_duration_seconds_bucket":
                    _take(route.seconds, labels["le"], sample.value)
                case "http_concurrency_bucket":
                    _take(route.at_once, labels["le"], sample.value)
                case "upstream_call_duration_seconds_bucket":
                    _take(found.calls.setdefault(labels["upstream"], Spread()), labels["le"], sample.value)
                case "rate_limit_total":
                    decision = labels["decision"]
                    route.limited[decision] = route.limited.get(decision, 0) + int(sample.value)
                case "shadow_total":
                    route.shadow[labels["name"]] = route.shadow.get(labels["name"], 0) + int(sample.value)
    return found


def _take(spread: Spread, bound: str, value: float) -> None:
    spread.bounds.append(math.inf if bound == "+Inf" else float(bound))
    spread.at_most.append(value)


def _spent(history: Mapping[str, object]) -> float:
    """Of the last day: its points, and those of the last quarter of an hour that are not yet among them."""
    whole = history.get("history")
    total = 0.0
    if isinstance(whole, Mapping):
        day, recent = whole["day"], whole["recent"]
        total += sum(day["cost_usd"])
        last = day["at"][-1] if day["at"] else 0.0
        total += sum(cost for at, cost in zip(recent["at"], recent["cost_usd"], strict=True) if at > last)
    return total
