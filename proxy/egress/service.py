"""The way out, put together: listener, pipeline and upstreams, under one policy."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial

from proxy.egress.accounting import CallAccounting
from proxy.egress.api_keys import VirtualKeys
from proxy.egress.app_environment import app_variables
from proxy.egress.attribution_listener import AttributionListener
from proxy.egress.billing.background_calls import BackgroundCalls
from proxy.egress.billing.call_ledger import CallLedger
from proxy.egress.billing.pricing.table import table_age
from proxy.egress.billing.shared_caps import tag_of
from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.egress.billing.user_spend import UserSpend, load_spend, load_spend_when_back
from proxy.egress.bypass_detection import BypassDetector
from proxy.egress.circuit_breaker import OPEN, Breaker
from proxy.egress.forward_proxy import ForwardProxy
from proxy.egress.listener import EgressListener, OriginCheck
from proxy.egress.pipeline import Pipeline
from proxy.egress.response_head import refuse_stray
from proxy.egress.shared_cache import SharedCallCache
from proxy.egress.shared_pace import SharedPace
from proxy.egress.upstream import Upstream, UpstreamGenerations, check_policy
from proxy.http.outgoing_client import find_parent_proxies
from proxy.ledger.ledger import Ledger
from proxy.ledger.store import LedgerUnavailable
from proxy.observe.health import ComponentHealth
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.recent_errors import RecentErrors
from proxy.observe.request_registry import RequestRegistry
from proxy.policy import schema
from proxy.policy.schema import Policy, TierMatcher
from proxy.policy.urls import mask_password
from proxy.store.escrow_sync import Escrow
from proxy.store.interface import SharedStore
from proxy.util.background_tasks import BackgroundTasks

LEDGER_LOAD_TIMEOUT = 10.0  # seconds that a start waits for the ledger's counts


class Egress:
    """The gateway for the app's calls, behind one address.

    Attributes:
        upstreams: those of the policy in force, by name.
        spend: what was spent, by user and upstream.
        accounting: what ended calls leave behind, and how many are under way.
        pipeline: serves calls to upstreams.
        forward_proxy: serves calls to other hosts.
        bypass_detector: knows of calls that went past the gateway.
        attribution: hears what the app's Python tells.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        requests: RequestRegistry,
        metrics: Metrics,
        log: EventLog,
        ledger: Ledger | None = None,
        environ: Mapping[str, str] | None = None,
        recent: RecentErrors | None = None,
        escrow: Escrow | None = None,
        instance: str = "",
        store: SharedStore | None = None,
    ) -> None:
        """`escrow`: if several instances share their caps; `instance` is this one's id; `store`: what they pace their
        calls by together."""
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._log = log
        self._proxy = find_parent_proxies(os.environ if environ is None else environ)
        self._keys = VirtualKeys()
        self.upstreams = UpstreamGenerations(self._open_upstream)
        self._shared_pace: SharedPace | None = None
        self._shared_cache: SharedCallCache | None = None
        if store is not None and store.is_shared:
            self._shared_pace = SharedPace(store, self.upstreams, self._loop.time)
            self._shared_cache = SharedCallCache(store, self.upstreams, self._loop.time)
        self._ledger = ledger
        self._escrow = escrow
        self._instance = instance
        self._loaded = False
        self._tasks = BackgroundTasks(self._loop)
        self._recall = SpendLookup(ledger, self._loop.time)
        self.spend = UserSpend(self.upstreams, self._recall, escrow)
        self._pending = BackgroundCalls(ledger, self._recall, log.emit, time.time, escrow)
        calls = CallLedger(ledger, self._loop.time, self._recall, self._pending)
        self.accounting = CallAccounting(metrics, calls, log.emit, self._loop.time, recent, log.redact_target)
        self.pipeline = Pipeline(
            self.upstreams,
            requests=requests,
            keys=self._keys,
            accounting=self.accounting,
            ledger=calls,
            emit=log.emit,
            shared_cache=self._shared_cache,
        )
        self.bypass_detector = BypassDetector(self.upstreams, clock=self._loop.time, metrics=metrics, emit=log.emit)
        self.attribution = AttributionListener(self.bypass_detector, log.emit)
        self.forward_proxy = ForwardProxy(
            policy.egress,
            upstream_addresses=self._upstream_addresses,
            clock=self._loop.time,
            emit=log.emit,
            new_breaker=lambda host: Breaker(host, self.forward_proxy.policy.breaker, clock=self._loop.time),
            parent=self._proxy,
            on_call=self.bypass_detector.record,
        )
        guard = OriginCheck(self._upstream_hosts, lambda token: requests.find(token) is not None)
        self._listener = EgressListener(
            self.pipeline.handle_call,
            self.forward_proxy.handle,
            lambda why: refuse_stray("no call", why, log.emit),
            guard.check,
        )
        metrics.on_scrape(lambda: metrics.price_table_age_seconds.set(table_age(time.time())))
        self.apply(policy)

    def _upstream_addresses(self) -> set[str]:
        return {f"{url.host}:{url.port}" for url in (upstream.url("") for upstream in self.upstreams.values())}

    def _upstream_hosts(self) -> set[str]:
        return {upstream.url("").host or "" for upstream in self.upstreams.values()}

    def apply(self, policy: Policy) -> None:
        """Take a policy, the first or a newer one; calls under way go on under what they began with."""
        self.prepare(policy)()

    def prepare(self, policy: Policy) -> Callable[[], None]:
        """Returns what puts the policy in force, which does not fail any more.

        Raises ValueError or KeyError if the policy cannot be compiled.
        """
        for upstream in policy.upstreams.values():
            check_policy(upstream)
        return partial(self._adopt_policy, policy, TierMatcher(policy.identity.tiers))

    def _adopt_policy(self, policy: Policy, tiers: TierMatcher) -> None:
        for upstream in self.upstreams.begin_generation(policy.upstreams, policy.faults):
            if self._loaded and self._ledger is not None:
                self._load_in_background(upstream, self._ledger, time.time())
        if self._shared_pace is not None:
            for upstream in self.upstreams.values():
                self._shared_pace.join(upstream)
        self.pipeline.tiers = tiers
        self.forward_proxy.apply(policy.egress)

    def _open_upstream(self, name: str, policy: schema.Upstream) -> Upstream:
        upstream = Upstream(
            name,
            policy,
            clock=self._loop.time,
            metrics=self._metrics,
            emit=self._log.emit,
            proxy=self._proxy,
        )
        if self._ledger is not None:
            upstream.billing.limits.accounts.mark_unloaded()
        if self._escrow is not None:
            upstream.billing.share(self._escrow, tag_of(self._instance))
        return upstream

    def _load_in_background(self, upstream: Upstream, ledger: Ledger, until: float) -> None:
        self._tasks.start(load_spend_when_back(upstream, ledger, until, self._pending))

    async def load(self) -> None:
        """Count what was spent before this start; if the ledger does not answer now, as soon as it does."""
        if self._ledger is None:
            return
        until = time.time()
        # First of all: an upstream that a reload adds from here on is counted by the reload.
        self._loaded = True
        for upstream in list(self.upstreams.values()):
            try:
                async with asyncio.timeout(LEDGER_LOAD_TIMEOUT):
                    await load_spend(upstream, self._ledger, until, self._pending)
            except (TimeoutError, LedgerUnavailable):
                self._load_in_background(upstream, self._ledger, until)

    async def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        await self._listener.start(sock)
        await self.attribution.start()
        self._tasks.start(self._pending.sweep_forever())
        if self._shared_pace is not None:
            self._tasks.start(self._shared_pace.rates.run())

    async def stop(self) -> None:
        """End all calls, and close what they hold."""
        # From outside in: first no new calls; last what calls use as they end.
        await self._listener.stop()
        self.attribution.stop()
        await self.forward_proxy.close()
        await self.upstreams.close()
        if self._shared_cache is not None:
            self._shared_cache.close()
        self._tasks.cancel()
        await self._recall.close()
        if self._escrow is not None:
            await self._escrow.close()  # after the last call has been settled
        await self._tasks.wait()

    def purge_cache(self, name: str) -> int:
        """Forget the answers to calls of an upstream, here and on every instance; how many there were here."""
        count = self.upstreams[name].cache.empty()
        if self._shared_cache is not None:
            self._shared_cache.empty(name)
        return count

    def app_environment(self, policy: Policy, address: str, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that the app gets, so that its calls come this way."""
        return app_variables(policy, address, environ, self._keys)

    def health(self) -> ComponentHealth:
        """Degraded while a breaker is open; a fault of a vendor's is never ours to be restarted for."""
        if not self.upstreams:
            return ComponentHealth("off", "no upstream")
        opened = [upstream.breakers for upstream in self.upstreams.values() if upstream.breakers.state == OPEN]
        if opened:
            text = "; ".join(f"the breaker of {breaker.name} is open: {breaker.reason}" for breaker in opened)
            return ComponentHealth("degraded", text, min(breaker.since for breaker in opened))
        held = ", ".join(name for name, upstream in self.upstreams.items() if upstream.breakers.forced is not None)
        text = f"; an operator holds closed the breaker of {held}" if held else ""
        return ComponentHealth("ok", f"{len(self.upstreams)} taking calls{text}")

    def status(self) -> Mapping[str, object]:
        """What an operator is shown of each upstream, by its name."""
        return {
            name: {
                "base_url": mask_password(upstream.policy.base_url),
                "breaker": upstream.breakers.state,
                "why": upstream.breakers.reason,
                "breakers": upstream.breakers.not_closed(),
                "held": upstream.breakers.forced,
                "state": repr(upstream),
                "faults": len(upstream.faults.faults),
                "cost": self.spend.upstream_status(upstream) if upstream.billing.metered else None,
                "bypassed": seen.count if (seen := self.bypass_detector.bypassed.get(name)) is not None else 0,
            }
            for name, upstream in self.upstreams.items()
        }
