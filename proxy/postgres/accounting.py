"""What the database door shows of itself: health, gauges, counters, status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from proxy.observe.health import PartState
from proxy.observe.metrics import Metrics
from proxy.postgres.client import Client
from proxy.postgres.pool import Pool

CLIENT_STATES = ("login", "console", "idle", "waiting", "active", "idle_in_transaction", "pinned")
SERVER_STATES = ("connecting", "idle", "active", "idle_in_transaction", "pinned", "checking", "cancelling", "leaving")
LONG_WAIT = 1.0  # seconds that a client waits until the part is degraded


class Account:
    """Asked at each scrape and look; the pool counts for itself."""

    def __init__(self, pool: Pool, clients: Mapping[int, Client], metrics: Metrics) -> None:
        self._pool = pool
        self._clients = clients
        self._metrics = metrics
        self._seen: Counter[str] = Counter()
        for outcome in pool.outcomes:
            metrics.postgres_transactions_total.child(outcome)
        metrics.on_scrape(self.fill)
        self.fill()

    def fill(self) -> None:
        """Set the gauges, and catch up with what the pool counted."""
        metrics = self._metrics
        servers = Counter(server.state for server in self._pool.servers)
        servers["connecting"] = len(self._pool.supply.opening)
        for state in SERVER_STATES:
            metrics.postgres_server_connections.child(state).set(servers[state])
        clients = Counter(client.state for client in self._clients.values())
        for state in CLIENT_STATES:
            metrics.postgres_client_connections.child(state).set(clients[state])
        for outcome, count in self._pool.outcomes.items():
            metrics.postgres_transactions_total.child(outcome).inc(count - self._seen[outcome])
            self._seen[outcome] = count

    def health(self) -> PartState:
        """Down while the database cannot be reached; the whole is degraded by that, since no restart would mend it."""
        pool, opening = self._pool, self._pool.supply.opening
        if opening.failures and not pool.servers:
            return PartState("down", f"the database cannot be reached: {opening.reason}", opening.since)
        if opening.failures:
            return PartState("degraded", f"no new database connections: {opening.reason}", opening.since)
        if pool.longest_wait() > LONG_WAIT:
            return PartState("degraded", f"{len(pool.waiters)} clients wait for a connection")
        used = len(pool.servers) - len(pool.idle)
        return PartState("ok", f"{used} of {pool.policy.pool.max} connections in use, {len(self._clients)} clients")

    def status(self) -> Mapping[str, object]:
        pool = self._pool
        return {
            "servers": dict(Counter(server.state for server in pool.servers)),
            "clients": dict(Counter(client.state for client in self._clients.values())),
            "waiting": len(pool.waiters),
            "longest_wait_s": round(pool.longest_wait(), 3),
            "pinned": pool.slots.held,
            "transactions": dict(pool.outcomes),
            "state": repr(pool),
        }
