"""The conditions of alert rules, typed; the text of each (`str`) is how a policy writes it.

`for_seconds` is how long it must have been true (`for 1m`); `window_seconds` is the window that is counted
(`over 5m`). Shares are 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from proxy import units

COMPONENTS = ("app", "upstreams", "postgres", "store", "ledger", "tasks", "memory", "connections")
ComponentName = Literal["app", "upstreams", "postgres", "store", "ledger", "tasks", "memory", "connections"]


@dataclass(frozen=True, slots=True)
class ComponentIs:
    """A component's health; `degraded` is true of a component that is down, too."""

    part: ComponentName
    state: Literal["down", "degraded"]
    for_seconds: float

    def __str__(self) -> str:
        return f"{self.part} is {self.state} for {units.format_duration(self.for_seconds)}"


@dataclass(frozen=True, slots=True)
class BreakerOpen:
    """The breaker of one upstream is open, or that of any, each by itself."""

    upstream: str | None
    for_seconds: float

    def __str__(self) -> str:
        of = f" of {self.upstream}" if self.upstream is not None else ""
        return f"breaker{of} is open for {units.format_duration(self.for_seconds)}"


@dataclass(frozen=True, slots=True)
class ErrorRateAbove:
    """The share of responses that are errors, of one route or of all together."""

    share: float
    route: str | None
    window_seconds: float

    def __str__(self) -> str:
        share, window = units.format_share(self.share), units.format_duration(self.window_seconds)
        return f"errors > {share}{_on_name(self.route)} over {window}"


@dataclass(frozen=True, slots=True)
class LatencyAbove:
    """A percentile of the latency, against `seconds` or a share of the route's own timeout; of one route or of each by
    itself."""

    percent: int
    seconds: float | None
    share: float | None
    route: str | None
    window_seconds: float

    def __str__(self) -> str:
        if self.seconds is not None:
            most = units.format_duration(self.seconds)
        else:
            most = f"{units.format_share(self.share or 0.0)} of timeout"
        return f"p{self.percent} > {most}{_on_name(self.route)} over {units.format_duration(self.window_seconds)}"


@dataclass(frozen=True, slots=True)
class MemoryAbove:
    share: float
    for_seconds: float

    def __str__(self) -> str:
        return f"memory > {units.format_share(self.share)} for {units.format_duration(self.for_seconds)}"


@dataclass(frozen=True, slots=True)
class CapSpentAbove:
    """The share of a cap that is spent, each upstream by itself."""

    share: float

    def __str__(self) -> str:
        return f"cost > {units.format_share(self.share)} of cap"


@dataclass(frozen=True, slots=True)
class SpentTodayAbove:
    """Dollars spent today at all upstreams together."""

    amount: Decimal

    def __str__(self) -> str:
        return f"cost > {units.format_money(self.amount)} today"


@dataclass(frozen=True, slots=True)
class PoolWaitAbove:
    seconds: float
    window_seconds: float

    def __str__(self) -> str:
        return f"pool wait > {units.format_duration(self.seconds)} over {units.format_duration(self.window_seconds)}"


@dataclass(frozen=True, slots=True)
class ThrottledAbove:
    share: float
    window_seconds: float

    def __str__(self) -> str:
        return f"throttled > {units.format_share(self.share)} over {units.format_duration(self.window_seconds)}"


@dataclass(frozen=True, slots=True)
class CallErrorRateAbove:
    """The share of calls that failed or were answered by a fallback, of one upstream or of each by itself."""

    share: float
    upstream: str | None
    window_seconds: float

    def __str__(self) -> str:
        share, over = units.format_share(self.share), units.format_duration(self.window_seconds)
        return f"call errors > {share}{_on_name(self.upstream)} over {over}"


@dataclass(frozen=True, slots=True)
class RefusalRateAbove:
    """The share of requests that a rate limit refused, of one route or of all together."""

    share: float
    route: str | None
    window_seconds: float

    def __str__(self) -> str:
        share, window = units.format_share(self.share), units.format_duration(self.window_seconds)
        return f"refusals > {share}{_on_name(self.route)} over {window}"


@dataclass(frozen=True, slots=True)
class TaskWaitAbove:
    """How many seconds the task that waits longest has waited for its turn, of one route or of each by itself."""

    seconds: float
    route: str | None

    def __str__(self) -> str:
        return f"task wait > {units.format_duration(self.seconds)}{_on_name(self.route)}"


@dataclass(frozen=True, slots=True)
class FailedTasksAbove:
    """The share of the tasks which ended that failed, of one route or of all together."""

    share: float
    route: str | None
    window_seconds: float

    def __str__(self) -> str:
        share, over = units.format_share(self.share), units.format_duration(self.window_seconds)
        return f"failed tasks > {share}{_on_name(self.route)} over {over}"


@dataclass(frozen=True, slots=True)
class PolicyRefused:
    def __str__(self) -> str:
        return "policy is refused"


@dataclass(frozen=True, slots=True)
class CallsBypass:
    def __str__(self) -> str:
        return "calls bypass an upstream"


# Every form of the language; the alerts' evaluator has one rule for each.
Condition = (
    ComponentIs
    | BreakerOpen
    | ErrorRateAbove
    | CallErrorRateAbove
    | RefusalRateAbove
    | LatencyAbove
    | MemoryAbove
    | CapSpentAbove
    | SpentTodayAbove
    | PoolWaitAbove
    | ThrottledAbove
    | TaskWaitAbove
    | FailedTasksAbove
    | CallsBypass
    | PolicyRefused
)


def _on_name(name: str | None) -> str:
    return f" on {name}" if name is not None else ""
