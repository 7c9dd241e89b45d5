"""What the rules are judged by: asked of the house at each judging, some of it once a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.observe.health import ComponentHealth
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.timeseries.window_stats import WindowStats


@dataclass(frozen=True, slots=True)
class BreakerInput:
    """`open` is None while it lets a probe through: neither here nor there. `forced`: an operator's own word.
    `changed`: how many seconds ago it last opened or closed; None: never."""

    open: bool | None
    why: str
    forced: bool = False
    changed: float | None = None


@dataclass(frozen=True, slots=True)
class CapInput:
    """Of one upstream; dollars. `total_share` is None without a total cap; `users` is how many users are past the
    share that was asked for of a cap of their own: who they are is nobody's business here."""

    spent_today: float
    projected_today: float
    total: str = ""
    total_share: float | None = None
    users: int = 0


class AlertInputs(Protocol):
    def is_stopping(self) -> bool:
        """Whether the gateway stops: what fails now is no news."""

    def parts(self) -> Mapping[str, ComponentHealth]: ...

    def is_app_absence_expected(self) -> bool:
        """Whether the app is away on purpose: its first start, a replacement that somebody asked for, the end."""

    def breakers(self) -> Mapping[str, BreakerInput]: ...

    def sample(self) -> ResourceSample: ...

    def timeouts(self) -> Mapping[str, float | None]:
        """Of every route."""

    def caps(self, share: float) -> Mapping[str, CapInput]: ...

    def bypassed_calls(self, seconds: float) -> Mapping[str, int]:
        """How many calls, of the upstreams that were gone past in the last so many seconds."""

    def pool_waits(self) -> Sequence[float]:
        """For how many seconds each client that now waits for a database connection has done so."""

    def pool_holders(self) -> str:
        """Whose transactions hold connections and do nothing, in words; empty where none do."""

    def policy_refused(self) -> str:
        """Why the newest policy is not in force; empty where it is."""

    def window(self, seconds: float) -> WindowStats: ...
