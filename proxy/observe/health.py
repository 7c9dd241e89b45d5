"""Health checks: each component reports its state and the reason, and one word for the whole follows from these."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

ComponentState = Literal["ok", "degraded", "down", "off"]
OverallStatus = Literal["ok", "degraded", "down"]

COMPONENTS = ("app", "upstreams", "postgres", "store", "ledger", "tasks", "memory", "connections")
APP_DOWN_GRACE = 60.0  # seconds without a ready app after which the whole is down


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """The state of a component. `reason` is a sentence for people; `since` is by the monotonic clock, None if the
    component does not know."""

    state: ComponentState
    reason: str
    since: float | None = None


NOT_CONFIGURED = ComponentHealth("off", "not set")

HealthCheck = Callable[[], ComponentHealth]


class HealthCheckRegistry:
    """Runs the check of every component each time it is asked, so that an answer is never old. Checks must be cheap and
    must not block.

    The whole is `down` only if the app has been down for 60 s: a platform restarts the instance then, and must not do
    so because a vendor or the database has a fault. A fault of any other component makes the whole `degraded`, and so
    does an app that has been down for less than 60 s, its first start included.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        version: str,
        now: Callable[[], float] = time.time,
        patience: float = APP_DOWN_GRACE,
    ) -> None:
        self._clock = clock
        self._now = now
        self._version = version
        self._down_grace = patience
        self._started = clock()
        self._checks: dict[str, HealthCheck] = {}
        self._last_states: dict[str, tuple[ComponentState, float]] = {}

    def register(self, part: str, check: HealthCheck) -> None:
        if part not in COMPONENTS:
            raise ValueError(f"{part} is no part of health; the parts are {', '.join(COMPONENTS)}")
        self._checks[part] = check

    def check_components(self) -> dict[str, ComponentHealth]:
        """The state of every component with `since` filled in. Called once a second, so that `since` is right to a
        second."""
        now = self._clock()
        return {part: self._check_component(part, now) for part in COMPONENTS}

    def overall_status(self) -> OverallStatus:
        return self._summarize_states(self.check_components())

    def report(self) -> dict[str, object]:
        """The body of healthz."""
        parts = self.check_components()
        body: dict[str, object] = {
            "status": self._summarize_states(parts),
            "version": self._version,
            "uptime_s": round(self._clock() - self._started, 1),
        }
        for part, state in parts.items():
            body[part] = {"state": state.state, "reason": state.reason, "since": self._format_since(state.since)}
        return body

    def _check_component(self, part: str, now: float) -> ComponentHealth:
        check = self._checks.get(part)
        if check is None:
            found = NOT_CONFIGURED
        else:
            try:
                found = check()
            except Exception as error:  # a fault of one check must not take the instance out of service
                found = ComponentHealth("degraded", f"its check failed: {type(error).__name__}: {error}")
        before = self._last_states.get(part)
        if before is None or before[0] != found.state:
            first = self._started if before is None else now
            before = self._last_states[part] = (found.state, first)
        return ComponentHealth(found.state, found.reason, before[1] if found.since is None else found.since)

    def _summarize_states(self, parts: dict[str, ComponentHealth]) -> OverallStatus:
        # Only the app: restarting the instance mends neither a vendor nor the database.
        app = parts["app"]
        if app.state == "down" and app.since is not None and self._clock() - app.since >= self._down_grace:
            return "down"
        if any(state.state in ("degraded", "down") for state in parts.values()):
            return "degraded"
        return "ok"

    def _format_since(self, since: float | None) -> str | None:
        if since is None:
            return None
        # Converted at each report, since the wall clock may be set while the process runs.
        moment = datetime.fromtimestamp(self._now() - (self._clock() - since), UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}Z"
