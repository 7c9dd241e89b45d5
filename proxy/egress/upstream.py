"""An upstream while it runs: its policy, and what is remembered of it from call to call."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence

from yarl import URL

from proxy.egress.billing.charge import UpstreamBilling
from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.billing.windows import Calendar
from proxy.egress.cache import ResponseCache
from proxy.egress.circuit_breaker import OPEN, STATE_GAUGE, Breaker, UpstreamBreakers
from proxy.egress.coalescing import SharedCalls
from proxy.egress.dialects import Dialect, dialect_for
from proxy.egress.fault_injection import FaultInjector
from proxy.egress.http_client import HttpClient, ParentProxy
from proxy.egress.retry_budget import RetryBudget
from proxy.egress.stream_usage_option import StreamUsageOption
from proxy.egress.throttle import Throttle
from proxy.egress.url_mapping import find_endpoint, find_followed, join_url
from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.policy.schema import InjectedFault
from proxy.policy.values import Spend


def check_policy(policy: schema.Upstream) -> None:
    """Make what a call under this policy would need. Raises ValueError or KeyError if that cannot be made."""
    dialect_for(policy.kind)
    join_url(policy.base_url, "/v1")
    Pricer(policy.kind, policy.base_url, policy.prices, policy.unknown_price)
    Calendar(policy.cap.timezone)


class Upstream:
    """An upstream as one policy has it. What is remembered of it is shared with its successors (`with_policy`).

    Each of its calls begins with `begin_call` and ends with `end_call`.

    Attributes:
        client, breakers, retry_budget, throttle, cache, shared_calls, usage_option: shared with its successors.
        policy, dialect, faults, billing: of this policy alone; `billing` shares what was spent.
        siblings: the upstreams of the same policy by name, itself among them.
        in_flight: how many of its calls are under way.
        on_idle: called when the last of them is over.
        now: the wall clock, in seconds since 1970.
    """

    def __init__(
        self,
        name: str,
        policy: schema.Upstream,
        *,
        clock: Callable[[], float],
        metrics: Metrics,
        emit: EmitEvent,
        proxy: ParentProxy,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.policy = policy
        self.now = now
        self._metrics = metrics
        self._emit = emit
        self.dialect: Dialect = dialect_for(policy.kind)
        self.client = HttpClient(proxy=proxy)
        self.breakers = UpstreamBreakers(name, policy.breaker, clock=clock, on_change=self._report_breaker)
        self.retry_budget = RetryBudget(policy.retry.budget, clock)
        self.throttle = Throttle(policy.pace, clock=clock)
        self.cache = ResponseCache(policy.cache, clock=clock)
        self.shared_calls = SharedCalls()
        self.faults = FaultInjector(())
        self.billing = UpstreamBilling(name, policy, now=now, metrics=metrics, on_warn=self._warn_of_cap)
        self.usage_option = StreamUsageOption(clock)
        self._fallbacks = _fallback_models(policy)
        self.siblings: Mapping[str, Upstream] = {}
        self.in_flight = 0
        self.on_idle: Callable[[], None] = lambda: None
        metrics.declare_upstream(name)

    def __repr__(self) -> str:
        return f"<Upstream {self.name}: {self.breakers!r} {self.retry_budget!r} {self.throttle!r} {self.cache!r}>"

    def model_label(self, model: str | None) -> str:
        """The model as a metric's label: only what the policy or the price table names is one."""
        # Labels of any name that an app may choose would let the metrics grow without bound.
        return model if model is not None and model in self._fallbacks else self.billing.label(model)

    def url(self, rest: str) -> URL:
        return join_url(self.policy.base_url, rest)

    def find_endpoint(self, method: str, rest: str) -> tuple[str | None, str | None]:
        """The inference endpoint, and the model that its path names."""
        if not self.billing.metered:
            return None, None
        return find_endpoint(self.dialect, method, rest, self.policy.base_url)

    def find_followed(self, method: str, rest: str) -> str | None:
        """The reference of the background work that a call asks after; None if it asks after none."""
        if not self.billing.metered:
            return None
        return find_followed(self.dialect, method, rest, self.policy.base_url)

    def with_policy(self, policy: schema.Upstream, faults: Sequence[InjectedFault]) -> tuple[Upstream, bool]:
        """The upstream under this policy, the first or a newer one: what was learnt of it stays, and calls under
        way keep this one. Also returns whether what was spent must be counted anew from the ledger."""
        # A shallow copy shares connections, breakers, pace and cache: a reload must not forget an outage.
        new = copy.copy(self)
        # Counted by generation, so that an old one ends with its own last call.
        new.in_flight = 0
        if policy.kind != self.policy.kind:
            new.dialect = dialect_for(policy.kind)
        new.policy = policy
        new._fallbacks = _fallback_models(policy)
        new.breakers.reconfigure(policy.breaker)
        new.retry_budget.share = policy.retry.budget
        new.throttle.reconfigure(policy.pace)
        new.cache.reconfigure(policy.cache)
        # Prices are its own, so that a call is charged by those that it began with; what was spent is shared.
        new.billing = copy.copy(self.billing)
        recount = new.billing.reconfigure(policy)
        mine = [fault for fault in faults if fault.upstream == self.name]
        # A reload that changes nothing of them does not warn again.
        if mine and tuple(mine) != self.faults.faults:
            text = f"Faults are injected into calls to {self.name} (faults): not for production."
            self._emit("faults", text, level="warning", upstream=self.name, faults=len(mine))
        new.faults = FaultInjector(mine)
        return new, recount

    def breaker_of(self, endpoint: str | None, model: str | None) -> Breaker:
        """The breaker of such calls. Lists, files and the like are no inference: they count for nothing."""
        return self.breakers.breaker_of(endpoint, model, counts=endpoint is not None or not self.billing.metered)

    def begin_call(self) -> None:
        self.in_flight += 1

    def end_call(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self.on_idle()

    def count_attempt(self, result: str) -> None:
        self._metrics.upstream_attempts_total.labels(self.name, result).inc()

    async def close(self) -> None:
        """End the calls that wait or are shared, and close the connections."""
        # First those who wait, then the calls that use the client.
        self.throttle.close()
        await self.shared_calls.close()
        await self.client.close()

    def _warn_of_cap(self, whom: str, cap: Spend, share: float) -> None:
        text = f"{share:.0%} of {cap} is spent by {whom} at {self.name}."
        self._emit("cap", text, level="warning", upstream=self.name, whom=whom, cap=str(cap), share=share)

    def _report_breaker(self, what: str, state: str, why: str, worst: str) -> None:
        # The gauge shows the worst of its breakers, the log the one that changed.
        self._metrics.breaker_state.labels(self.name).set(STATE_GAUGE[worst])
        text = f"The breaker of {self.name} is {state}: {why}{f' ({what})' if what else ''}."
        said = {"upstream": self.name, "state": state, "calls": what or None}
        self._emit("breaker", text, level="error" if state == OPEN else "info", **said)


def _fallback_models(policy: schema.Upstream) -> frozenset[str]:
    """The models that the policy falls back to."""
    return frozenset(step.model for step in policy.fallback if step.model is not None)
