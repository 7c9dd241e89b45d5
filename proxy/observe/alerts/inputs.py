"""The inputs that the rules are evaluated on; they are asked for at each evaluation, some of them once a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.observe.health import ComponentHealth
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.timeseries.window_stats import WindowStats


@dataclass(frozen=True, slots=True)
class BreakerInput:
    """The state of a circuit breaker. `open` is None while it is half-open. `forced`: an operator set it. `changed` is
    how many seconds ago it last opened or closed; None: never."""

    open: bool | None
    why: str
    forced: bool = False
    changed: float | None = None


@dataclass(frozen=True, slots=True)
class CapInput:
    """The spending on one upstream, in dollars. `total_share` is None without a total cap. `users` is how many users
    are past the asked share of a cap of their own; alerts do not name them."""

    spent_today: float
    projected_today: float
    total: str = ""
    total_share: float | None = None
    users: int = 0


class AlertInputs(Protocol):
    def is_stopping(self) -> bool:
        """Whether the gateway is stopping: what fails now is expected."""

    def parts(self) -> Mapping[str, ComponentHealth]: ...

    def is_app_absence_expected(self) -> bool:
        """Whether the app is away on purpose: its first start, a requested replacement, the end."""

    def breakers(self) -> Mapping[str, BreakerInput]: ...

    def sample(self) -> ResourceSample: ...

    def timeouts(self) -> Mapping[str, float | None]:
        """The timeout of every route, None without one."""

    def caps(self, share: float) -> Mapping[str, CapInput]: ...

    def bypassed_calls(self, seconds: float) -> Mapping[str, int]:
        """How many calls bypassed an upstream, for each that was bypassed in the last so many seconds."""

    def pool_waits(self) -> Sequence[float]:
        """How many seconds each client that waits for a database connection now has waited."""

    def pool_holders(self) -> str:
        """A sentence on whose idle transactions hold connections; empty if none do."""

    def task_waits(self) -> Mapping[str, float]:
        """How many seconds the task that waits longest for its turn has waited, by route; delayed ones do not wait."""

    def policy_refused(self) -> str:
        """Why the newest policy is not in force; empty if it is."""

    def window(self, seconds: float) -> WindowStats: ...
