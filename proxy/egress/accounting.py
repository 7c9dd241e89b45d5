"""What a call leaves behind: its metrics and its line in the log, once, whatever became of it."""

from __future__ import annotations

from collections.abc import Callable

from proxy.egress.billing.call_ledger import CallLedger
from proxy.egress.call import Call
from proxy.egress.dialects import Usage
from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics
from proxy.observe.recent_errors import RecentErrors
from proxy.units import NANOS

# What refuses a call of one user, by the names that refuse requests.
BY_NAME = {"cost_cap_exceeded": "cost-cap"}


class CallAccounting:
    """Counts calls under way (`in_flight`) and reports each at its end. `redact` hides secrets in a path."""

    def __init__(
        self,
        metrics: Metrics,
        ledger: CallLedger,
        emit: EmitEvent,
        clock: Callable[[], float],
        recent: RecentErrors | None = None,
        redact: Callable[[str], str] = lambda path: path,
    ) -> None:
        self.redact = redact
        self._metrics = metrics
        self._ledger = ledger
        self._emit = emit
        self._clock = clock
        self._recent = recent
        self.in_flight = 0

    def begin_call(self, call: Call) -> None:
        """Count a call as under way, here and at its request."""
        self.in_flight += 1
        if call.owner is not None and call.owner.request is not None:
            call.owner.request.call_began()

    def settle_shared_call(self, call: Call) -> None:
        """Report a shared call once its answer is whole and its cost known; the call that began it may have ended long
        before."""
        call.is_shared = False
        if not call.ended:
            return
        owner, late = call.owner, call.spent - call.reported_cost
        if owner is not None and owner.request is not None and late:
            owner.request.call_paid(late)
        self._report(call)

    def end_call(self, call: Call) -> None:
        """Count a call as over, tell its request what it cost, and report it."""
        self.in_flight -= 1
        owner, spent = call.owner, call.spent
        if owner is not None and owner.request is not None:
            owner.request.call_ended(spent if call.charges else None)
        call.reported_cost = spent
        call.ended = True
        call.duration = self._clock() - call.began
        # One whose answer others still read is reported when that ends, since its cost is not known before.
        if not call.is_shared:
            self._report(call)

    def _report(self, call: Call) -> None:
        self._ledger.record_call(call)
        owner, took = call.owner, call.duration
        spent, said_model = call.spent, call.model
        metrics, upstream = self._metrics, call.upstream
        name = upstream.name
        model = upstream.model_label(said_model)
        metrics.upstream_calls_total.labels(name, model, call.outcome).inc()
        metrics.upstream_call_duration_seconds.labels(name).observe(took)
        first = None if call.first_byte_at is None else call.first_byte_at - call.began
        if first is not None:
            metrics.upstream_first_byte_seconds.labels(name).observe(first)
        metrics.cache_total.labels(name, call.cache).inc()
        if self._recent is not None and call.outcome in ("error", "refused"):
            self._remember_failure(self._recent, call, took)
        pending = estimated = False
        for charge in call.charges:
            pending = pending or charge.deferred
            estimated = estimated or bool(charge.estimated)
        known = (bool(call.charges) and not pending) or call.cost is not None
        # An answer that was kept has been counted when it was paid.
        usage = call.usage if call.cache in ("off", "miss") else None
        if usage is not None:
            # A fallback's tokens are those of the upstream that answered.
            used = upstream.siblings.get(call.answered_by, upstream)
            self._count_tokens(used.name, model if used is upstream else used.model_label(said_model), usage)
        self._emit(
            "call",
            f"{call.method} {name}{self.redact(call.path)} {call.status or call.outcome}",
            level="warning" if call.outcome == "error" else "info",
            request_id=owner.request_id if owner is not None else None,
            trace_id=owner.trace_id if owner is not None else None,
            upstream=name,
            model=said_model,
            status=call.status or None,
            attempts=call.attempts,
            duration_ms=round(took * 1000, 3),
            first_byte_ms=None if first is None else round(first * 1000, 3),
            input_tokens=None if usage is None else usage.input,
            output_tokens=None if usage is None else usage.output,
            cost_usd=spent / NANOS if known else None,
            basis=None if not spent else "estimated" if estimated else "reported",
            user=call.user,
            cache=call.cache,
            outcome=call.outcome,
            fallback=call.fallback,
            refused=call.refusal.code if call.refusal is not None else None,
            reason=call.reason,
        )

    def _count_tokens(self, upstream: str, model: str, usage: Usage) -> None:
        """Each token once: those from a cache are part of the input, those of reasoning part of the output."""
        for kind, count in (
            ("input", usage.input - usage.cached_input),
            ("cached_input", usage.cached_input),
            ("output", usage.output - usage.reasoning),
            ("reasoning", usage.reasoning),
        ):
            if count > 0:
                self._metrics.tokens_total.labels(upstream, model, kind).inc(count)

    def _remember_failure(self, recent: RecentErrors, call: Call, took: float) -> None:
        refused = call.refusal
        if call.outcome == "refused":
            if refused is not None and refused.code in BY_NAME:
                recent.add_refusal(call.user, call.tier, call.upstream.name, BY_NAME[refused.code])
            return
        request_id = call.owner.request_id if call.owner is not None else None
        reason = call.reason or (str(refused) if refused is not None else f"it answered {call.status}")
        recent.add_call_error(request_id, call.upstream.name, call.model, call.user, call.status, reason, took)
