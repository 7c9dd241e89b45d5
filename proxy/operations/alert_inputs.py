"""What the alert rules are evaluated on, read from the parts of the gateway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from proxy.egress.circuit_breaker import CLOSED, HALF_OPEN
from proxy.egress.upstream import Upstream
from proxy.observe.alerts.inputs import BreakerInput, CapInput
from proxy.observe.health import ComponentHealth
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.timeseries.window_stats import WindowStats
from proxy.operations.reloader import Reloader
from proxy.parts import Parts
from proxy.units import NANOS

POOL_HOLDERS_SECONDS = 60.0  # for which it is remembered who held the database's connections


class GatewayAlertInputs:
    """`AlertInputs` of observe.alerts, read from the running gateway; cheap, and true at the moment of the call."""

    def __init__(self, parts: Parts, reloader: Reloader) -> None:
        self._parts = parts
        self._reloader = reloader
        self._pool_holders = ("", 0.0)  # who held connections while others waited, and when

    def sample_pool_holders(self, _: ResourceSample) -> None:
        """Once a second, since the holders may be gone when the rules are evaluated next."""
        self._find_pool_holders()

    def _find_pool_holders(self) -> None:
        database = self._parts.postgres
        # A connection that is idle in a transaction harms nobody until somebody waits for one.
        if database is not None and database.pool.waiters:
            idle = [server.link for server in database.pool.servers if server.state == "idle_in_transaction"]
            if idle:
                routes = Counter(link.route or "no request" for link in idle if link is not None)
                named = ", ".join(f"{route} ({count})" for route, count in routes.most_common(3))
                self._pool_holders = (f"{len(idle)} idle in transactions of {named}", self._parts.clock())

    def is_stopping(self) -> bool:
        return self._parts.state.stopping

    def parts(self) -> Mapping[str, ComponentHealth]:
        return self._parts.health.check_components()

    def is_app_absence_expected(self) -> bool:
        app = self._parts.app
        # A deploy or a restart by command must not page anybody; a crash is another state.
        if app.state in ("stopping", "ended") or app.is_replacing:
            return True
        waited = self._parts.clock() - app.since
        return app.state == "starting" and waited < self._parts.policy.app.start_timeout

    def breakers(self) -> Mapping[str, BreakerInput]:
        found = {}
        now = self._parts.clock()
        for name, upstream in self._parts.egress.upstreams.items():
            breaker = upstream.breakers
            state = breaker.state
            # While a probe is out it is open question whether the upstream is back: neither raise nor clear the alert.
            opened = None if state == HALF_OPEN else state != CLOSED
            changed = now - breaker.since if breaker.reason else None
            found[name] = BreakerInput(opened, breaker.reason, breaker.forced is not None, changed)
        return found

    def sample(self) -> ResourceSample:
        return self._parts.process_sampler.latest

    def timeouts(self) -> Mapping[str, float | None]:
        return {route.name: route.timeout for route in self._parts.policy.routes}

    def caps(self, share: float) -> Mapping[str, CapInput]:
        upstreams = self._parts.egress.upstreams
        tier_of = self._parts.egress.pipeline.tiers.match
        return {
            name: _read_cap(upstream, share, tier_of)
            for name, upstream in upstreams.items()
            if upstream.billing.metered
        }

    def bypassed_calls(self, seconds: float) -> Mapping[str, int]:
        bypass = self._parts.egress.bypass_detector
        return {name: bypass.bypassed[name].count for name in bypass.bypassed_within(seconds)}

    def pool_waits(self) -> Sequence[float]:
        database = self._parts.postgres
        if database is None:
            return ()
        now = self._parts.clock()
        return [now - client.since for client in database.pool.waiters]

    def pool_holders(self) -> str:
        self._find_pool_holders()
        text, at = self._pool_holders
        return text if text and self._parts.clock() - at < POOL_HOLDERS_SECONDS else ""

    def task_waits(self) -> Mapping[str, float]:
        # The tasks' own loop keeps the gauge: asking the database here would make an alert wait for it.
        return {route: gauge.value for (route,), gauge in self._parts.metrics.task_oldest_wait_seconds.children()}

    def policy_refused(self) -> str:
        return self._reloader.refused or ""

    def window(self, seconds: float) -> WindowStats:
        return self._parts.history.window(seconds)


def _read_cap(upstream: Upstream, share: float, tier_of: Callable[[str], str]) -> CapInput:
    limits = upstream.billing.limits
    total = limits.cap.total
    return CapInput(
        spent_today=limits.spent("d") / NANOS,
        projected_today=upstream.billing.projected_today() / NANOS,
        total="" if total is None else str(total),
        total_share=limits.total_share(),
        users=limits.count_users_above(share, tier_of),
    )
