"""What the rules of the alerts are judged by, asked of every part of the house."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from proxy.egress.circuit_breaker import CLOSED, HALF_OPEN
from proxy.observe.alerts.inputs import BreakerInput, CapInput
from proxy.observe.health import ComponentHealth
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.timeseries.window_stats import WindowStats
from proxy.units import NANOS

if TYPE_CHECKING:
    from proxy.egress.upstream import Upstream
    from proxy.gateway import Gateway

POOL_HOLDERS_SECONDS = 60.0  # seconds for which it is remembered who held the database's connections


class GatewayAlertInputs:
    """`AlertInputs` of observe.alerts."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._held = ("", 0.0)

    def sample_pool_holders(self, _: ResourceSample) -> None:
        """Once a second: at the next judging they may be gone."""
        self._look_at_pool()

    def _look_at_pool(self) -> None:
        """Who holds connections while others wait."""
        database = self._gateway.database
        if database is not None and database.pool.waiters:
            idle = [server.client for server in database.pool.servers if server.state == "idle_in_transaction"]
            if idle:
                routes = Counter(client.route or "no request" for client in idle if client is not None)
                named = ", ".join(f"{route} ({count})" for route, count in routes.most_common(3))
                self._held = (f"{len(idle)} idle in transactions of {named}", self._gateway.history.clock())

    def is_stopping(self) -> bool:
        return self._gateway.stopping

    def parts(self) -> Mapping[str, ComponentHealth]:
        return self._gateway.health.check_components()

    def is_app_absence_expected(self) -> bool:
        app = self._gateway.app
        if app.state in ("stopping", "ended") or app.is_replacing:
            return True
        waited = self._gateway.history.clock() - app.since
        return app.state == "starting" and waited < self._gateway.policy.app.start_timeout

    def breakers(self) -> Mapping[str, BreakerInput]:
        found = {}
        now = self._gateway.history.clock()
        for name, upstream in self._gateway.egress.upstreams.items():
            breaker = upstream.breaker
            state = breaker.state
            opened = None if state == HALF_OPEN else state != CLOSED
            changed = now - breaker.since if breaker.why else None
            found[name] = BreakerInput(opened, breaker.why, breaker.forced is not None, changed)
        return found

    def sample(self) -> ResourceSample:
        return self._gateway.runtime.latest

    def timeouts(self) -> Mapping[str, float | None]:
        return {route.name: route.timeout for route in self._gateway.policy.routes}

    def caps(self, share: float) -> Mapping[str, CapInput]:
        upstreams = self._gateway.egress.upstreams
        tier_of = self._gateway.egress.pipeline.tiers.of
        return {
            name: _read_cap(upstream, share, tier_of)
            for name, upstream in upstreams.items()
            if upstream.billing.metered
        }

    def bypassed_calls(self, seconds: float) -> Mapping[str, int]:
        bypass = self._gateway.egress.bypass
        return {name: bypass.seen[name].count for name in bypass.within(seconds)}

    def pool_waits(self) -> Sequence[float]:
        database = self._gateway.database
        if database is None:
            return ()
        now = self._gateway.history.clock()
        return [now - client.since for client in database.pool.waiters]

    def pool_holders(self) -> str:
        self._look_at_pool()
        text, at = self._held
        return text if text and self._gateway.history.clock() - at < POOL_HOLDERS_SECONDS else ""

    def policy_refused(self) -> str:
        return self._gateway.reloader.refused or ""

    def window(self, seconds: float) -> WindowStats:
        return self._gateway.history.window(seconds)


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
