"""Ingress put together: listener, pipeline, relay and the connections to the app, under one policy."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Container
from functools import partial
from typing import TYPE_CHECKING

from proxy.ingress.accounting import RequestAccounting
from proxy.ingress.admission.controller import AdmissionController
from proxy.ingress.app_pool import AppPool
from proxy.ingress.background import BackgroundRequests
from proxy.ingress.cache.switch import ResponseCacheSwitch
from proxy.ingress.connection_limits import ConnectionLimits
from proxy.ingress.listener import ClientTimeouts, Listener
from proxy.ingress.own_endpoints import OwnEndpoints
from proxy.ingress.pipeline import RequestPipeline, RequestRules
from proxy.ingress.ports import AppBackend, OwnEndpointHandler, UserBudgets
from proxy.ingress.ratelimit.limiter import RateLimiter
from proxy.ingress.relay import Relay
from proxy.ingress.task_endpoints import TaskEndpoints
from proxy.ingress.task_runs import TaskRuns
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.recent_errors import RecentErrors
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.schema import Policy
from proxy.store.interface import SharedStore

if TYPE_CHECKING:
    from proxy.ingress.cache.response_cache import ResponseCache
    from proxy.tasks.service import TaskService  # it is loaded only if the policy names it


class IngressService:
    """One public address in front of one app.

    - `listener` accepts clients, `pool` has the connections to the app, `relay` passes requests from one to the other.
    - `pipeline` is what each request meets; `limiter`, `admission` and `connection_limits` are its limits.
    - `task_runs` is the way of a task to the app.
    - `accounting` counts requests, and `own_endpoints` answers those that are for the gateway itself.

    `apply` puts a policy in force while requests are under way.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        policy: Policy,
        app: AppBackend,
        *,
        own_endpoints: OwnEndpointHandler,
        metrics: Metrics,
        log: EventLog,
        requests: RequestRegistry | None = None,
        budgets: UserBudgets | None = None,
        blocked: Container[str] = (),
        on_render: bool = False,
        app_bytes: Callable[[], int] = lambda: 0,
        recent: RecentErrors | None = None,
        timeouts: ClientTimeouts = ClientTimeouts(),
        find_tasks: Callable[[], TaskService | None] = lambda: None,
        store: SharedStore | None = None,
    ) -> None:
        self._on_render = on_render
        self._metrics = metrics
        self._emit = log.emit
        self._announced_trust = ""  # the last logged line about whose X-Forwarded-* are believed
        self.pool = AppPool(loop, lambda: app.address)
        self._store = store
        self._clock = loop.time
        self._caching = ResponseCacheSwitch(self._make_cache)
        self.relay = Relay(loop, app, self.pool, self._caching)
        self.limiter = RateLimiter(loop.time)
        self.admission = AdmissionController(policy.overload, clock=loop.time, on_shed=self._count_shed)
        self.accounting = RequestAccounting(metrics, log, loop.time, app_bytes, recent)
        self.connection_limits = ConnectionLimits(
            policy.listen.connections, clock=loop.time, emit=log.emit, metrics=metrics
        )
        self.own_endpoints = OwnEndpoints(own_endpoints, policy.listen.claim, TaskEndpoints(find_tasks))
        self.pipeline = RequestPipeline(
            RequestRules.from_policy(policy, on_render=on_render),
            own_endpoints=self.own_endpoints,
            limiter=self.limiter,
            admission=self.admission,
            relay=self.relay,
            caching=self._caching,
            accounting=self.accounting,
            requests=requests if requests is not None else RequestRegistry(loop.time),
            emit=log.emit,
            clock=loop.time,
            background=BackgroundRequests(find_tasks),
            budgets=budgets,
            blocked=blocked,
            connection_limits=self.connection_limits,
            store=store,
        )
        self.task_runs = TaskRuns(self.pipeline, app, clock=loop.time, emit=log.emit)
        self.pool.on_exhausted = self._free_descriptors
        self.listener = Listener(
            loop,
            self.pipeline.handle,
            self.pipeline.refuse_unreadable,
            listen=policy.listen,
            limits=self.connection_limits,
            app_descriptors=lambda: self.pool.descriptors,
            is_trusted_proxy=lambda peer: self.pipeline.rules.trusted_peers.trusts(peer),
            overload_response=self.pipeline.overload_response,
            timeouts=timeouts,
        )
        self.apply(policy)

    @property
    def cache(self) -> ResponseCache | None:
        """The answers that routes keep; None if no policy has named a cache yet."""
        return self._caching.cache

    def _make_cache(self) -> ResponseCache:
        from proxy.ingress.cache.response_cache import ResponseCache  # a MiB that most policies do not need

        cache = ResponseCache(metrics=self._metrics, clock=self._clock)
        cache.refresh = self.pipeline.refresh
        cache.keeps_path = self.pipeline.keeps_path
        if self._store is not None and self._store.is_shared:
            from proxy.ingress.cache.shared_tier import StoreTier

            cache.tier = StoreTier(self._store, empty=cache.empty, can_decode=cache.can_decode)
            cache.make_budget = self.pipeline.store_budget
        return cache

    def apply(self, policy: Policy) -> None:
        """Put a policy in force, the first or a newer one. Counts, queues and connections go on."""
        self.prepare(policy)()

    def prepare(self, policy: Policy) -> Callable[[], None]:
        """A function that puts a policy in force and cannot fail. Raises OutriggerError if the policy cannot be
        compiled.
        """
        return partial(self._activate, policy, RequestRules.from_policy(policy, on_render=self._on_render))

    def _activate(self, policy: Policy, rules: RequestRules) -> None:
        # No await from here to the end: no request sees one half of the old policy and one of the new.
        self.pipeline.rules = rules
        self.listener.known_heads.clear()  # what was found under the old rules would keep them in memory
        if policy.listen.public is not None and rules.trusted_peers.description != self._announced_trust:
            self._announced_trust = rules.trusted_peers.description
            self._emit("listen.trust", self._announced_trust)
        self.admission.reconfigure(policy.overload)
        self._caching.apply(policy.routes)
        self.own_endpoints.set_claimed_paths(policy.listen.claim)
        self.relay.restart_wait = policy.app.hold
        self.relay.port_is_probed = policy.app.liveness is not None
        self._stream_routes = [route.name for route in policy.routes if route.streams is not None]
        for (name,), _ in list(self._metrics.http_streams.children()):
            if name not in self._stream_routes:
                self._metrics.http_streams.remove(name)
        self.listener.listen = policy.listen
        self.connection_limits.apply(policy.listen.connections)
        self._metrics.declare_routes([route.name for route in policy.routes])
        tiers = [tier.name for tier in policy.identity.tiers] or [""]
        self._metrics.declare_limits((x.name, tier) for x in policy.routes for tier in tiers if x.limits_for(tier))

    def _count_shed(self, reason: str) -> None:
        self._metrics.shed_total.labels(reason).inc()

    def update_gauges(self) -> None:
        """Set the gauges that are cheaper to count at a scrape than to keep."""
        # One pass over the connections at each scrape, instead of a counter at each change of state.
        if self.cache is not None:
            self.cache.sweep()
        states = Counter("upgraded" if c.tunnel else "busy" if c.busy else "idle" for c in self.listener.connections)
        for state in ("idle", "busy", "upgraded"):
            self._metrics.connections.labels(state).set(states[state])
        self._metrics.connections_limit.set(self.connection_limits.total)
        streams = self.pipeline.open_streams
        for name in self._stream_routes:
            self._metrics.http_streams.labels(name).set(streams.get(name, 0))

    def _free_descriptors(self) -> None:
        self.listener.free_descriptors()

    async def open(self, sock: socket.socket) -> None:
        """Accept clients on a bound socket. Raises OSError if it cannot listen."""
        await self.listener.open(sock)

    async def drain(self, timeout: float) -> bool:
        """Accept nobody any more, and finish what is in flight. False if `timeout` seconds were not enough."""
        return await self.listener.drain(timeout)

    def abort_tunnels(self, user: str) -> int:
        """End this user's WebSockets and other upgrades; how many there were."""
        found = [c.tunnel for c in self.listener.connections if c.tunnel is not None and c.tunnel.user == user]
        for tunnel in found:
            tunnel.abort()
        return len(found)

    async def abort_requests(self) -> None:
        """End what is under way, since the app is about to stop and would spend its orderly stop on it.

        Requests that wait for the app are refused, responses break off, idle connections to it are closed. Tunnels
        stay: the app closes its own.
        """
        # First of all, so that no further request waits for the app.
        self.relay.app_stopping = True
        self.pool.abort_requests("The app did not finish its answer within listen.drain, and is being stopped.")
        self.pool.close_idle()
        await self.listener.abort_requests()

    def close(self) -> None:
        """End everything now."""
        self.listener.close()
        self._caching.close()
        self.pool.close()
