"""The front door, put together: listener, pipeline, relay and the app's connections, under one policy."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Container
from functools import partial

from proxy.ingress.accounting import RequestAccounting
from proxy.ingress.admission.controller import AdmissionController
from proxy.ingress.app_pool import AppPool
from proxy.ingress.connection_limits import ConnectionLimits
from proxy.ingress.listener import ClientTimeouts, Listener
from proxy.ingress.own_endpoints import OwnEndpoints
from proxy.ingress.pipeline import RequestPipeline, RequestRules
from proxy.ingress.ports import AppBackend, OwnEndpointHandler, UserBudgets
from proxy.ingress.ratelimit.limiter import RateLimiter
from proxy.ingress.relay import Relay
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.recent_errors import RecentErrors
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.schema.policy import Policy


class IngressService:
    """One public address in front of one app."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        policy: Policy,
        backend: AppBackend,
        *,
        ours: OwnEndpointHandler,
        metrics: Metrics,
        log: EventLog,
        requests: RequestRegistry | None = None,
        allowances: UserBudgets | None = None,
        blocked: Container[str] = (),
        on_render: bool = False,
        app_bytes: Callable[[], int] = lambda: 0,
        recent: RecentErrors | None = None,
        patience: ClientTimeouts = ClientTimeouts(),
    ) -> None:
        self._on_render = on_render
        self._metrics = metrics
        self._emit = log.emit
        self._trust = ""  # whom X-Forwarded-* are believed of, as it was last told
        self.pool = AppPool(loop, lambda: backend.address)
        self.relay = Relay(loop, backend, self.pool)
        self.limiter = RateLimiter(loop.time)
        self.admission = AdmissionController(policy.overload, clock=loop.time, on_shed=self._shed)
        self.account = RequestAccounting(metrics, log, loop.time, app_bytes, recent)
        self.capacity = ConnectionLimits(policy.listen.connections, clock=loop.time, emit=log.emit, metrics=metrics)
        self.desk = OwnEndpoints(ours, policy.listen.claim)
        self.pipeline = RequestPipeline(
            RequestRules.of(policy, on_render=on_render),
            desk=self.desk,
            limiter=self.limiter,
            admission=self.admission,
            relay=self.relay,
            account=self.account,
            requests=requests if requests is not None else RequestRegistry(loop.time),
            emit=log.emit,
            clock=loop.time,
            allowances=allowances,
            blocked=blocked,
            capacity=self.capacity,
        )
        self.pool.on_exhausted = self._make_room
        self.server = Listener(
            loop,
            self.pipeline.handle,
            self.pipeline.refuse_early,
            listen=policy.listen,
            capacity=self.capacity,
            legs=lambda: self.pool.descriptors,
            believes=lambda peer: self.pipeline.rules.peers.believes(peer),
            apology=self.pipeline.apology,
            patience=patience,
        )
        self.apply(policy)

    def apply(self, policy: Policy) -> None:
        """Take a policy, the first or a newer one: counts, queues and connections go on as they are."""
        self.prepare(policy)()

    def prepare(self, policy: Policy) -> Callable[[], None]:
        """What puts a policy in force, and does not fail any more. Raises where it cannot be compiled."""
        return partial(self._take, policy, RequestRules.of(policy, on_render=self._on_render))

    def _take(self, policy: Policy, rules: RequestRules) -> None:
        self.pipeline.rules = rules
        if policy.listen.public is not None and rules.peers.sentence != self._trust:
            self._trust = rules.peers.sentence
            self._emit("listen.trust", self._trust)
        self.admission.reconfigure(policy.overload)
        self.desk.claim(policy.listen.claim)
        self.relay.hold = policy.app.hold
        self.relay.watched = policy.app.liveness is not None
        self._bounded = [route.name for route in policy.routes if route.streams is not None]
        for (name,), _ in list(self._metrics.http_streams.items()):
            if name not in self._bounded:
                self._metrics.http_streams.remove(name)
        self.server.listen = policy.listen
        self.capacity.apply(policy.listen.connections)
        self._metrics.declare_routes([route.name for route in policy.routes])
        tiers = [tier.name for tier in policy.identity.tiers] or [""]
        self._metrics.declare_limits((x.name, tier) for x in policy.routes for tier in tiers if x.limits_for(tier))

    def _shed(self, reason: str) -> None:
        self._metrics.shed_total.labels(reason).inc()

    def fill(self) -> None:
        """Set the gauges that are cheaper counted at a scrape than kept."""
        states = Counter("upgraded" if c.tunnel else "busy" if c.busy else "idle" for c in self.server.connections)
        for state in ("idle", "busy", "upgraded"):
            self._metrics.connections.labels(state).set(states[state])
        self._metrics.connections_limit.set(self.capacity.total)
        streams = self.pipeline.streams
        for name in self._bounded:
            self._metrics.http_streams.labels(name).set(streams.get(name, 0))

    def _make_room(self) -> None:
        self.server.make_room()

    async def open(self, sock: socket.socket) -> None:
        await self.server.open(sock)

    async def drain(self, patience: float) -> bool:
        """Finish what is in flight, accept nothing more; False where `patience` seconds were too few."""
        return await self.server.drain(patience)

    def cut_tunnels(self, user: str) -> int:
        """End this user's WebSockets and other upgrades, and say how many there were."""
        found = [c.tunnel for c in self.server.connections if c.tunnel is not None and c.tunnel.user == user]
        for tunnel in found:
            tunnel.abort()
        return len(found)

    async def cut(self) -> None:
        """The app is about to stop: who waits for it is told, what is under way is cut, idle connections to it end.
        Else it would spend its orderly stop on them. Tunnels stay: the app closes its own."""
        self.relay.ending = True
        self.pool.abort_requests("The app did not finish its answer within listen.drain, and is being stopped.")
        self.pool.close_idle()
        await self.server.cut()

    def close(self) -> None:
        self.server.close()
        self.pool.close()
