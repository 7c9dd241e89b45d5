"""What the gateway shows of itself: readiness, its parts' health and gauges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.app.memory_usage import machine_memory, memory_limit
from proxy.observe.health import ComponentHealth, ComponentState
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.timeseries.history import GaugeLevels
from proxy.policy.schema.policy import Policy

if TYPE_CHECKING:
    from proxy.gateway import Gateway


class HealthReport:
    """Asked by the endpoints and at each scrape; cheap, and true at that moment."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def record_sample(self, sample: ResourceSample) -> None:
        """Once a second: since when a part is as it is must not depend on who asks."""
        self._gateway.health.check_components()
        self._gateway.door.accounting.growth.record_sample(self._gateway.app.pid, sample.app_bytes)

    def check_readiness(self) -> tuple[bool, str]:
        """Whether a request would be served now, and why not."""
        app = self._gateway.app
        if self._gateway.stopping:
            return False, "the gateway is draining"
        if not app.is_ready:
            return False, f"the app is {app.state}: {app.reason}"
        return True, "a request would be served now"

    def check_app(self) -> ComponentHealth:
        app = self._gateway.app
        state: ComponentState = "ok" if app.is_ready else "degraded" if app.is_replacing else "down"
        return ComponentHealth(state, f"{app.state}: {app.reason}", app.since)

    def check_memory(self) -> ComponentHealth:
        share, warn = self._gateway.runtime.latest.memory_share, self._gateway.policy.app.memory.warn
        if share is None:
            return ComponentHealth("ok", "no limit is known")
        return ComponentHealth("degraded" if share > warn else "ok", f"{share:.0%} of the limit is in use")

    def check_store(self) -> ComponentHealth:
        return ComponentHealth("ok", "counts are kept in this instance's memory")

    def check_connections(self) -> ComponentHealth:
        door = self._gateway.door
        trouble = door.connection_limits.current_trouble()
        if trouble is not None:
            return ComponentHealth("degraded", trouble)
        return ComponentHealth("ok", f"{len(door.listener.connections)} of {door.connection_limits.total} are open")

    def read_levels(self) -> GaugeLevels:
        """What the history keeps beside counts."""
        latest, database = self._gateway.runtime.latest, self._gateway.database
        pool = database.pool if database is not None else None
        return GaugeLevels(
            app_bytes=latest.app_bytes or 0,
            gateway_bytes=latest.gateway_bytes,
            pool_in_use=len(pool.servers) - len(pool.idle) if pool is not None else 0,
            pool_waiting=len(pool.waiters) if pool is not None else 0,
        )

    def fill_gauges(self) -> None:
        """Set the gauges that are cheaper asked for than kept."""
        gateway = self._gateway
        metrics, door = gateway.metrics, gateway.door
        metrics.app_up.set(1 if gateway.app.is_ready else 0)
        gateway.egress.spend.set_gauges(metrics)
        for name, grown in door.accounting.growth.growth_by_route().items():
            metrics.app_memory_growth_bytes.labels(name).set(grown.amount)
        door.update_gauges()
        metrics.concurrency_limit.set(door.admission.limit or 0)
        for route in gateway.policy.routes:
            metrics.http_in_flight.labels(route.name).set(door.accounting.in_flight[route.name])
            metrics.http_queued.labels(route.name).set(door.admission.queued(route.name))


def resolve_memory_limit(policy: Policy) -> int | None:
    """Bytes that gateway and app may use together: the policy's word, else the container's, else all that the machine
    has; None where nothing of that is to be seen."""
    wanted = policy.app.memory.limit
    return (memory_limit() or machine_memory()) if wanted == "auto" else wanted
