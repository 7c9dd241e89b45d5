"""`alerts`, `sentry` and `faults`: whom Outrigger notifies, and the faults that operators inject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from proxy.policy import urls, value_types
from proxy.policy.alert_condition import Condition
from proxy.policy.alert_condition_parser import CONDITION, parse_condition
from proxy.policy.values import Label, Period, Seconds, Share

Severity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class Cooldown:
    warning: Seconds = 900.0
    critical: Seconds = 300.0


@dataclass(frozen=True, slots=True)
class AlertRule:
    when: Annotated[Condition, CONDITION]
    severity: Severity = "warning"


SHIPPED_RULES: Mapping[str, AlertRule] = MappingProxyType(
    {
        "app_down": AlertRule(parse_condition("app is down for 10s"), "critical"),
        "breaker_open": AlertRule(parse_condition("breaker is open for 5s"), "critical"),
        "error_rate": AlertRule(parse_condition("errors > 5% over 5m"), "critical"),
        "slow": AlertRule(parse_condition("p95 > 50% of timeout over 5m")),
        "memory": AlertRule(parse_condition("memory > 85% for 1m")),
        "cost_cap": AlertRule(parse_condition("cost > 80% of cap")),
        "pool_exhausted": AlertRule(parse_condition("pool wait > 1s over 1m")),
        "cpu_throttled": AlertRule(parse_condition("throttled > 25% over 5m")),
        "bypass": AlertRule(parse_condition("calls bypass an upstream")),
        "store_lost": AlertRule(parse_condition("store is down for 10s")),
        "tasks_stuck": AlertRule(parse_condition("task wait > 5m")),
    }
)


def _shipped_rules() -> Mapping[str, AlertRule]:
    return SHIPPED_RULES


@dataclass(frozen=True, slots=True)
class Alerts:
    # `foreign`: the app may use this variable itself, so a value that does not fit is only warned of.
    slack: Annotated[str, urls.WEBHOOK] | None = field(
        default=None, repr=False, metadata={"absent": "${SLACK_WEBHOOK_URL:-}", "foreign": True}
    )
    webhook: Annotated[str, urls.WEBHOOK] | None = None
    every: Period = 15.0
    cooldown: Cooldown = Cooldown()
    rules: Annotated[Mapping[Label, AlertRule], "alert_rules"] = field(default_factory=_shipped_rules)


@dataclass(frozen=True, slots=True)
class Sentry:
    dsn: Annotated[str, urls.SENTRY_DSN] | None = field(
        default=None, repr=False, metadata={"absent": "${SENTRY_DSN:-}", "foreign": True}
    )
    environment: Annotated[str, value_types.TEXT] = field(
        default="local", metadata={"absent": "${RENDER_SERVICE_NAME:-local}", "foreign": True}
    )


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """On a share of an upstream's attempts or a route's requests: wait `delay`, answer `status`, or `cut` the
    answer off half-way (upstreams only)."""

    upstream: Label | None = None
    route: Label | None = None
    status: Annotated[int, value_types.whole_number(400, 599)] | None = None
    delay: Period | None = None
    cut: bool = False
    share: Share = 1.0
