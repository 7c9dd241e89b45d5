"""Calls that a vendor goes on with by itself, and whose price comes later: Responses in the background.

What was reserved for one stands until an answer shows what it came to: to a question after it, at the end of its
stream, when it is cancelled. It is settled then, once, for whom it was made; else at its reservation, when no answer
can show it any more. The ledger has it under the vendor's id of it, so it stands over restarts, and any instance
that shares the ledger may settle it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.egress.dialects import UNBILLED_STATUSES, BackgroundStatus, OutputSize
from proxy.ledger.ledger import Ledger
from proxy.ledger.record import ESTIMATED, OPEN, CallRecord
from proxy.ledger.store import LedgerUnavailable
from proxy.observe.emit import EmitEvent
from proxy.units import nanos_as_dollars

if TYPE_CHECKING:
    from proxy.egress.billing.charge import Charge
    from proxy.egress.upstream import Upstream

# Seconds that one is waited for. A response that is stored can be had for 30 days
# (developers.openai.com/api/docs/guides/your-data), one that is not for about ten minutes (…/guides/background).
LASTS = 30 * 86400.0
MOST = 5_000  # at once, about 2 kB each; past that the oldest count as spent at their reservation
SETTLED = 2_000  # references that are remembered as settled
SWEEP = 30.0  # seconds between looks at what other instances settled, and what is too old
PATIENCE = 2.0  # seconds that an answer waits for the ledger
OUTCOMES = {"failed": "error", "cancelled": "gone"}  # of the call, by the status of what it began

Key = tuple[str, str]  # upstream, reference


class BackgroundCall:
    """One of them: its row in the ledger while it is open, and its bill."""

    __slots__ = ("charge", "record")

    def __init__(self, row: CallRecord, bill: Charge) -> None:
        self.record = row
        self.charge = bill


class BackgroundCalls:
    """`now` is the wall clock. Without a ledger they stand until a restart."""

    def __init__(self, ledger: Ledger | None, recall: SpendLookup, emit: EmitEvent, now: Callable[[], float]) -> None:
        self._ledger = ledger
        self._recall = recall
        self._emit = emit
        self._now = now
        self._calls: OrderedDict[Key, BackgroundCall] = OrderedDict()
        self._settled: OrderedDict[Key, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<BackgroundCalls {len(self._calls)}>"

    def __len__(self) -> int:
        return len(self._calls)

    async def track(self, row: CallRecord, bill: Charge, reference: str) -> None:
        """From now on the price of this call is to come by this reference: on record before anybody learns of it."""
        bill.defer(reference)
        row.reference, row.outcome, row.basis = reference, OPEN, ESTIMATED
        row.cost = row.estimated = bill.reserved
        self._keep(BackgroundCall(row, bill))
        if self._ledger is not None:
            self._ledger.record(row, firm=True)
            await self._ledger.wait_written(PATIENCE)

    async def settle_reported(self, upstream: Upstream, shown: BackgroundStatus) -> bool:
        """An answer shows one that is over. It is on record before the app sees that answer. Whether that settled
        it."""
        key = upstream.name, shown.reference
        if key in self._settled:
            return False
        pending = self._calls.pop(key, None)
        if pending is not None:
            self._settle(pending, shown)
        elif not await self._correct(upstream, key, shown):
            return False
        if self._ledger is not None:
            await self._ledger.wait_written(PATIENCE)
        return True

    async def open_records(self, upstream: str) -> list[CallRecord]:
        """Those on record, the oldest first. Raises LedgerUnavailable."""
        return [] if self._ledger is None else (await self._ledger.open_background_calls(upstream, MOST))[::-1]

    async def restore(self, upstream: Upstream, rows: Sequence[CallRecord], until: float) -> None:
        """Those of before this start, or of windows that were counted anew: what was loaded of them as spent is
        reserved again; not where nobody can say what its user spent."""
        purse = upstream.billing.limits
        unknown = {row.user for row in rows if not purse.is_loaded(row.user)}
        await asyncio.gather(*(self._recall.load_user(upstream.name, purse, user) for user in unknown))
        for row in rows:
            key = row.upstream, row.reference
            if row.at >= until or key in self._settled or not purse.is_loaded(row.user):
                continue
            known = self._calls.get(key)
            if known is None:
                self._keep(BackgroundCall(row, upstream.billing.reopen_charge(row)))
            else:
                known.charge.move_to(upstream.billing.restore_reservation(row))

    async def sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                await self.sweep()
            except LedgerUnavailable:
                pass  # the writer tells of it

    async def sweep(self) -> None:
        """Let go of those that another instance settled, and of those that nobody can ask after any more."""
        if self._ledger is not None and self._calls:
            found = await self._ledger.settled_costs([pending.record.id for pending in self._calls.values()])
            for key, pending in list(self._calls.items()):
                if pending.record.id in found:
                    del self._calls[key]
                    pending.charge.settle_at(found[pending.record.id])
        for key, pending in list(self._calls.items()):
            if self._now() - pending.record.at >= LASTS:
                del self._calls[key]
                self._expire(pending, "nobody asked after it while it could be had")

    # ── one of them ──────────────────────────────────────────────────────────────────────────

    def _keep(self, pending: BackgroundCall) -> None:
        self._calls[pending.record.upstream, pending.record.reference] = pending
        if len(self._calls) > MOST:
            _, oldest = self._calls.popitem(last=False)
            oldest.charge.settle_at(oldest.charge.reserved)

    def _settle(self, pending: BackgroundCall, shown: BackgroundStatus) -> None:
        bill = pending.charge
        if shown.usage is not None:
            bill.deferred = False
            bill.settle(shown.usage, shown.output_size)
            self._remember((pending.record.upstream, shown.reference))
            self._record(pending.record, shown, bill.cost, bill.estimated, bill.model)
        elif shown.status in UNBILLED_STATUSES and not shown.deleted:
            bill.deferred = False
            bill.release()
            self._record(pending.record, shown, 0, 0, bill.model)
        else:
            self._expire(pending, "it was deleted" if shown.deleted else "its answer has no usage", shown.output_size)

    async def _correct(self, upstream: Upstream, key: Key, shown: BackgroundStatus) -> bool:
        """One that is not at hand, but may be on record: another instance's, one without usage until now. What a
        vendor reports takes the place of an estimate."""
        if self._ledger is None or shown.usage is None or shown.background is False:
            return False
        try:
            async with asyncio.timeout(PATIENCE):
                row = await self._ledger.find_by_reference(*key)
        except (TimeoutError, LedgerUnavailable):
            return False
        if row is None or row.input_tokens or row.output_tokens or key in self._settled:
            return False
        self._remember(key)
        self._calls.pop(key, None)
        meter = upstream.billing
        cost = meter.cost("responses", shown.usage, row.model or None)
        counted = 0 if row.outcome == OPEN else row.cost
        if cost.nanos > row.cost and meter.limits.is_loaded(row.user):
            meter.limits.reservation(row.user, row.tier).spend(cost.nanos - row.cost)
        if cost.nanos > counted:
            meter.count_cost(row.model, replace(cost, nanos=cost.nanos - counted, estimated=0))
        self._record(row, shown, cost.nanos, cost.estimated, shown.usage.model or row.model)
        return True

    def _expire(self, pending: BackgroundCall, why: str, written: OutputSize | None = None) -> None:
        pending.charge.expire(written or OutputSize())
        row = pending.record
        amount = pending.charge.cost
        self._record(row, BackgroundStatus(row.reference, None, None), amount, amount, pending.charge.model, why)

    def _record(
        self,
        row: CallRecord,
        shown: BackgroundStatus,
        cost: int,
        estimated: int,
        model: str | None,
        why: str | None = None,
    ) -> None:
        usage = shown.usage
        if self._ledger is not None:
            new = replace(row, cost=cost, estimated=estimated, model=model or row.model)
            new.basis = ESTIMATED if estimated else "reported" if cost else ""
            new.outcome = OUTCOMES.get(shown.status or "", "ok")
            if usage is not None:
                new.input_tokens, new.cached_input_tokens = usage.input, usage.cached_input
                new.output_tokens, new.reasoning_tokens = usage.output, usage.reasoning
            self._ledger.record(new, firm=True)
        self._emit(
            "settled",
            f"{row.reference} at {row.upstream} came to ${nanos_as_dollars(cost)}" + (f": {why}." if why else "."),
            request_id=row.request_id,
            upstream=row.upstream,
            model=model or row.model,
            user=row.user,
            cost_usd=nanos_as_dollars(cost),
            reserved_usd=nanos_as_dollars(row.cost),
            basis=ESTIMATED if estimated else "reported" if cost else None,
            status=shown.status,
        )

    def _remember(self, key: Key) -> None:
        self._settled[key] = None
        if len(self._settled) > SETTLED:
            self._settled.popitem(last=False)
