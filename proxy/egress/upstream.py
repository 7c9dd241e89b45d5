"""An upstream while it runs: its policy, and what is remembered of it from call to call.

A reload begins a generation. A call goes to its end by the one that it began in: waits, retries and fallbacks
too, for a key must never meet another vendor's address. An upstream that no generation in use names any more
retires: what it holds is closed when its last call is over.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView

from yarl import URL

from proxy.egress.billing.charge import UpstreamBilling
from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.billing.windows import Calendar
from proxy.egress.cache import ResponseCache
from proxy.egress.circuit_breaker import OPEN, STATE_GAUGE, Breaker, UpstreamBreakers
from proxy.egress.coalescing import SharedCalls
from proxy.egress.dialects import Dialect, dialect_for
from proxy.egress.fault_injection import FaultInjector
from proxy.egress.retry_budget import RetryBudget
from proxy.egress.stream_usage_option import StreamUsageOption
from proxy.egress.throttle import Throttle
from proxy.egress.url_mapping import find_endpoint, find_followed, join_url
from proxy.http.outgoing_client import OutgoingClient, ParentProxy
from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.policy.schema import InjectedFault
from proxy.policy.values import Spend
from proxy.util.background_tasks import BackgroundTasks


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
        self.client = OutgoingClient(proxy=proxy)
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
        await self.throttle.give_back()
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


# ── generations ──────────────────────────────────────────────────────────────────────────────────────────

OpenUpstream = Callable[[str, schema.Upstream], Upstream]


class UpstreamGenerations(Mapping[str, Upstream]):
    """The newest generation as a mapping by name, and the older ones until their calls are over.

    `open_upstream` makes an upstream that no generation has yet.
    """

    def __init__(self, open_upstream: OpenUpstream) -> None:
        self._open_upstream = open_upstream
        self._newest: dict[str, Upstream] = {}
        self._older: list[dict[str, Upstream]] = []  # with calls under way
        self._closing = BackgroundTasks()

    def __repr__(self) -> str:
        return f"<Generations {', '.join(self._newest) or 'none'}; {len(self._older)} older>"

    def __getitem__(self, name: str) -> Upstream:
        return self._newest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._newest)

    def __len__(self) -> int:
        return len(self._newest)

    def values(self) -> ValuesView[Upstream]:
        return self._newest.values()  # Mapping's own looks each name up again, and every request asks

    def begin_generation(
        self, wanted: Mapping[str, schema.Upstream], faults: Sequence[InjectedFault]
    ) -> list[Upstream]:
        """Begin a generation. Returns its upstreams whose spend must be counted from the ledger."""
        # An upstream that comes back while calls of an older generation still use it is the one that it was.
        known = {name: upstream for older in self._older for name, upstream in older.items()} | self._newest
        now: dict[str, Upstream] = {}
        uncounted = []
        for name, policy in wanted.items():
            fresh = name not in known
            upstream, recount = (self._open_upstream(name, policy) if fresh else known[name]).with_policy(
                policy, faults
            )
            # Filled as this loop goes on: in the end each sees its whole generation, and no other.
            upstream.siblings = now
            upstream.on_idle = self._retire_unused
            now[name] = upstream
            if fresh or recount:
                uncounted.append(upstream)
        self._older.append(self._newest)
        self._newest = now
        self._retire_unused()
        return uncounted

    async def close(self) -> None:
        """Close every upstream, whatever is under way: the calls had their time before."""
        every = _distinct_upstreams((*self._older, self._newest))
        self._older.clear()
        for upstream in every.values():
            await upstream.close()
        await self._closing.wait()

    def _retire_unused(self) -> None:
        """Let go of generations without calls, and of the upstreams that were in these alone."""
        if not self._older:
            return
        over: list[dict[str, Upstream]] = []
        held: list[dict[str, Upstream]] = []
        # A generation is kept whole: a call of it may still fall back to any of its upstreams.
        for older in self._older:
            (held if any(upstream.in_flight for upstream in older.values()) else over).append(older)
        self._older = held
        kept = _distinct_upstreams((*held, self._newest))
        # In a task: whoever ended the last call does not wait for what closing takes.
        for caller, upstream in _distinct_upstreams(over).items():
            if caller not in kept:
                self._closing.start(upstream.close())


def _distinct_upstreams(generations: Iterable[Mapping[str, Upstream]]) -> dict[OutgoingClient, Upstream]:
    """Each upstream once: one that several generations have calls out over the same connections in all of them."""
    return {upstream.client: upstream for one in generations for upstream in one.values()}
