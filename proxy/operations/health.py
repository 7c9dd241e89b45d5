"""Readiness, the health of the parts that have no check of their own, and the gauges that are set at a scrape."""

from __future__ import annotations

from collections import Counter

from proxy.app.memory_usage import machine_memory, memory_limit
from proxy.observe.health import ComponentHealth, ComponentState
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.timeseries.history import GaugeLevels
from proxy.parts import Parts
from proxy.policy import schema


class HealthReport:
    """Read by the endpoints and at each scrape; cheap, and true at that moment."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def record_sample(self, sample: ResourceSample) -> None:
        """Once a second: since when a part has been in its state must not depend on who asks."""
        self._parts.health.check_components()
        self._parts.ingress.accounting.growth.record_sample(self._parts.app.pid, sample.app_bytes)

    def check_readiness(self) -> tuple[bool, str]:
        """Whether a request would be served now, and why not."""
        app = self._parts.app
        if self._parts.state.stopping:
            return False, "the gateway is draining"
        if not app.is_ready:
            return False, f"the app is {app.state}: {app.reason}"
        return True, "a request would be served now"

    def check_app(self) -> ComponentHealth:
        app = self._parts.app
        # An app that is being replaced is missed by nobody yet: its requests wait for it (app.hold).
        state: ComponentState = "ok" if app.is_ready else "degraded" if app.is_replacing else "down"
        return ComponentHealth(state, f"{app.state}: {app.reason}", app.since)

    def check_memory(self) -> ComponentHealth:
        share, warn = self._parts.process_sampler.latest.memory_share, self._parts.policy.app.memory.warn
        # Without a limit there is no share to be above; that is not a failure.
        if share is None:
            return ComponentHealth("ok", "no limit is known")
        return ComponentHealth("degraded" if share > warn else "ok", f"{share:.0%} of the limit is in use")

    def check_store(self) -> ComponentHealth:
        shared, money = self._parts.store.health(), self._parts.money_store.health()
        return shared if shared.state != "ok" else money if money.state != "ok" else shared

    def check_connections(self) -> ComponentHealth:
        ingress = self._parts.ingress
        trouble = ingress.connection_limits.current_trouble()
        if trouble is not None:
            return ComponentHealth("degraded", trouble)
        return ComponentHealth(
            "ok", f"{len(ingress.listener.connections)} of {ingress.connection_limits.total} are open"
        )

    def read_levels(self) -> GaugeLevels:
        """What the history keeps beside counters."""
        latest, database = self._parts.process_sampler.latest, self._parts.postgres
        pool = database.pool if database is not None else None
        return GaugeLevels(
            app_bytes=latest.app_bytes or 0,
            gateway_bytes=latest.gateway_bytes,
            pool_in_use=len(pool.servers) - len(pool.idle) if pool is not None else 0,
            pool_waiting=len(pool.waiters) if pool is not None else 0,
            tasks_waiting=self._count_tasks("queued"),
            tasks_running=self._count_tasks("running"),
        )

    def _count_tasks(self, wanted: str) -> float:
        """How many tasks of all routes and instances are in a state, as the queue's own loop last saw them."""
        return sum(gauge.value for (_, state), gauge in self._parts.metrics.tasks.children() if state == wanted)

    def fill_gauges(self) -> None:
        """Set the gauges that are cheaper to read at a scrape than to keep up to date."""
        parts = self._parts
        metrics, ingress = parts.metrics, parts.ingress
        metrics.app_up.set(1 if parts.app.is_ready else 0)
        regions = Counter(member.region for member in parts.store.members)
        for (region,), _ in list(metrics.instances.children()):
            if region not in regions:
                metrics.instances.remove(region)
        for region, count in regions.items():
            metrics.instances.labels(region).set(count)
        parts.egress.spend.set_gauges(metrics)
        for name, grown in ingress.accounting.growth.growth_by_route().items():
            metrics.app_memory_growth_bytes.labels(name).set(grown.bytes_grown)
        ingress.update_gauges()
        metrics.concurrency_limit.set(ingress.admission.limit or 0)
        # Every route has its gauge, at 0 too, so that a graph does not begin with a gap.
        for route in parts.policy.routes:
            metrics.http_in_flight.labels(route.name).set(ingress.accounting.in_flight[route.name])
            metrics.http_queued.labels(route.name).set(ingress.admission.queued(route.name))


def resolve_memory_limit(policy: schema.Policy) -> int | None:
    """Bytes that gateway and app may use together: the policy's limit, else the container's, else the machine's memory;
    None if none of them can be read."""
    wanted = policy.app.memory.limit
    return (memory_limit() or machine_memory()) if wanted == "auto" else wanted
