"""Calls that the vendor goes on with by itself, and whose price comes later: Responses in the background.

What such a call reserved stays reserved until an answer shows what it came to: to a GET for it, at the end of its
stream, when it is cancelled. Then it is settled, once, for the user it was made for; if no answer can show it any
more, it is settled at its reservation. The ledger has it under the vendor's id (its *reference*) from before the app
learns that id, so it outlives a restart, and any instance that shares the ledger may settle it.

    track ──► tracked ──► settled     an answer reports usage
                  │   ──► released    the vendor says that it failed or was cancelled, and reports no usage
                  │   ──► expired     it was deleted, has no usage, or nobody asked within EXPIRES_AFTER
                  └── ──► settled     another instance did, as the ledger says (`sweep`)

developers.openai.com/api/docs/guides/background
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.egress.billing.shared_caps import CLAIM_SECONDS
from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.egress.dialects import UNBILLED_STATUSES, BackgroundStatus, OutputSize
from proxy.ledger.ledger import Ledger
from proxy.ledger.record import ESTIMATED, OPEN, REPORTED, CallRecord
from proxy.ledger.store import LedgerUnavailable
from proxy.observe.emit import EmitEvent
from proxy.store.escrow_sync import Escrow
from proxy.store.money import MoneyUnavailable
from proxy.units import nanos_as_dollars

if TYPE_CHECKING:
    from proxy.egress.billing.charge import Charge
    from proxy.egress.upstream import Upstream

# Seconds. A response that is stored can be had for 30 days (developers.openai.com/api/docs/guides/your-data), one that
# is not for about ten minutes (…/guides/background).
EXPIRES_AFTER = 30 * 86400.0
MAX_TRACKED = 5_000  # about 2 kB each; past that the oldest count as spent at their reservation
MAX_SETTLED = 2_000  # references that are remembered as settled
SWEEP_SECONDS = 30.0  # between looks for what other instances settled, and for what is too old
LEDGER_TIMEOUT = 2.0  # seconds that an answer waits for the ledger
OUTCOMES = {"failed": "error", "cancelled": "gone"}  # of the call, by the final status of what it began

Key = tuple[str, str]  # upstream, reference


class BackgroundCall:
    """One of them: its open record in the ledger, and its charge."""

    __slots__ = ("charge", "record")

    def __init__(self, record: CallRecord, charge: Charge) -> None:
        self.record = record
        self.charge = charge


class BackgroundCalls:
    """The calls that wait for their price, of all upstreams. `now` is the wall clock.

    Without a ledger they are known until a restart.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        lookup: SpendLookup,
        emit: EmitEvent,
        now: Callable[[], float],
        escrow: Escrow | None = None,
    ) -> None:
        """`escrow`: if several instances share their caps."""
        self.escrow = escrow
        self._ledger = ledger
        self._lookup = lookup
        self._emit = emit
        self._now = now
        self._calls: OrderedDict[Key, BackgroundCall] = OrderedDict()
        self._settled: OrderedDict[Key, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<BackgroundCalls {len(self._calls)}>"

    def __len__(self) -> int:
        return len(self._calls)

    async def track(self, record: CallRecord, charge: Charge, reference: str) -> None:
        """Wait for the price of this call under this reference. It is on record when this returns."""
        # Deferred before the first await, so that the call's own end does not release what is reserved.
        charge.defer(reference)
        record.reference, record.outcome, record.basis = reference, OPEN, ESTIMATED
        record.cost = record.estimated = charge.reserved
        self._keep(BackgroundCall(record, charge))
        if self._ledger is not None:
            self._ledger.record(record, firm=True)
            await self._ledger.wait_written(LEDGER_TIMEOUT)

    async def settle_reported(self, upstream: Upstream, status: BackgroundStatus) -> bool:
        """Settle a call that an answer shows to be finished, before the app sees that answer.

        Returns whether this answer settled it.
        """
        key = upstream.name, status.reference
        if key in self._settled:
            return False
        # Taken out before anything is awaited: two polls that answer at once settle it once.
        tracked = self._calls.pop(key, None)
        if tracked is not None:
            if not await self._claim(tracked.record.id):
                tracked.charge.settle_at(tracked.charge.reserved)
                return False
            self._settle(tracked, status)
        elif not await self._correct(upstream, key, status):
            return False
        if self._ledger is not None:
            await self._ledger.wait_written(LEDGER_TIMEOUT)
        return True

    async def open_records(self, upstream: str) -> list[CallRecord]:
        """The calls of an upstream that the ledger has as open, the oldest first. Raises LedgerUnavailable."""
        if self._ledger is None:
            return []
        return (await self._ledger.open_background_calls(upstream, MAX_TRACKED))[::-1]

    async def restore(self, upstream: Upstream, records: Sequence[CallRecord], until: float) -> None:
        """Track calls of before this start, or of windows that were counted anew.

        What was loaded of them as spent is reserved again, except if nobody can say what their user spent.
        """
        limits = upstream.billing.limits
        unloaded = {record.user for record in records if not limits.accounts.is_loaded(record.user)}
        await asyncio.gather(*(self._lookup.load_user(upstream.name, limits, user) for user in unloaded))
        for record in records:
            key = record.upstream, record.reference
            # A call of after `until` is counted by this process already, and would be counted twice.
            if record.at >= until or key in self._settled or not limits.accounts.is_loaded(record.user):
                continue
            tracked = self._calls.get(key)
            if tracked is None:
                self._keep(BackgroundCall(record, upstream.billing.reopen_charge(record)))
            else:
                tracked.charge.move_to(upstream.billing.restore_reservation(record))

    async def sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except LedgerUnavailable:
                pass  # the ledger's writer reports it

    async def sweep(self) -> None:
        """Drop calls that another instance settled, and settle those that nobody can ask after any more."""
        if self._ledger is not None and self._calls:
            costs = await self._ledger.settled_costs([tracked.record.id for tracked in self._calls.values()])
            for key, tracked in list(self._calls.items()):
                if tracked.record.id in costs:
                    del self._calls[key]
                    tracked.charge.settle_at(costs[tracked.record.id])
        for key, tracked in list(self._calls.items()):
            if self._now() - tracked.record.at >= EXPIRES_AFTER:
                del self._calls[key]
                if await self._claim(tracked.record.id):
                    self._expire(tracked, "nobody asked after it while it could be had")
                else:
                    tracked.charge.settle_at(tracked.charge.reserved)

    # ── one call ─────────────────────────────────────────────────────────────────────────────

    def _keep(self, tracked: BackgroundCall) -> None:
        self._calls[tracked.record.upstream, tracked.record.reference] = tracked
        if len(self._calls) > MAX_TRACKED:
            _, oldest = self._calls.popitem(last=False)
            # It stays open in the ledger, so a report of its usage can still correct the amount there (`_correct`).
            oldest.charge.settle_at(oldest.charge.reserved)

    def _settle(self, tracked: BackgroundCall, status: BackgroundStatus) -> None:
        charge = tracked.charge
        if status.usage is not None:
            charge.resume()
            charge.settle(status.usage, status.output_size)
            self._remember_settled((tracked.record.upstream, status.reference))
            self._record(tracked.record, status, charge.cost, charge.estimated, charge.model)
        elif status.status in UNBILLED_STATUSES and not status.deleted:
            charge.resume()
            charge.release()
            self._record(tracked.record, status, 0, 0, charge.model)
        else:
            why = "it was deleted" if status.deleted else "its answer has no usage"
            self._expire(tracked, why, status.output_size)

    async def _correct(self, upstream: Upstream, key: Key, status: BackgroundStatus) -> bool:
        """Settle a call that is not tracked here but may be on record; whether there was one to settle.

        It is another instance's, or one that was settled without usage until now: what a vendor reports takes the
        place of an estimate.
        """
        if self._ledger is None or status.usage is None or status.background is False:
            return False
        try:
            async with asyncio.timeout(LEDGER_TIMEOUT):
                record = await self._ledger.find_by_reference(*key)
        except (TimeoutError, LedgerUnavailable):
            return False
        # Tokens on record mean that usage was reported and charged before.
        if record is None or record.input_tokens or record.output_tokens or key in self._settled:
            return False
        # Checked and remembered without an await between: several callers may read the same answer at once.
        self._remember_settled(key)
        # One that was settled without usage before has been claimed for that already.
        if not await self._claim(record.id if record.outcome == OPEN else f"usage:{record.id}"):
            return False
        self._calls.pop(key, None)
        billing = upstream.billing
        cost = billing.cost("responses", status.usage, record.model or None)
        # Caps have what is on record already, reserved or estimated; so have the metrics, but for an open call.
        counted = 0 if record.outcome == OPEN else record.cost
        if billing.limits.is_shared or (cost.nanos > record.cost and billing.limits.accounts.is_loaded(record.user)):
            billing.limits.reservation(record.user, record.tier).spend(cost.nanos - record.cost)
        if cost.nanos > counted:
            billing.count_cost(record.model, replace(cost, nanos=cost.nanos - counted, estimated=0))
        self._record(record, status, cost.nanos, cost.estimated, status.usage.model or record.model)
        return True

    async def _claim(self, call: str) -> bool:
        """Whether this instance is the one to settle a call: several may hear of its price at once."""
        if self.escrow is None:
            return True
        try:
            return await self.escrow.claim(call, CLAIM_SECONDS)
        except MoneyUnavailable:
            return True  # rather twice on the caps of an instance each than not at all

    def _expire(self, tracked: BackgroundCall, why: str, output_size: OutputSize | None = None) -> None:
        tracked.charge.expire(output_size or OutputSize())
        record, amount = tracked.record, tracked.charge.cost
        unknown = BackgroundStatus(record.reference, None, None)
        self._record(record, unknown, amount, amount, tracked.charge.model, why)

    def _record(
        self,
        record: CallRecord,
        status: BackgroundStatus,
        cost: int,
        estimated: int,
        model: str | None,
        why: str | None = None,
    ) -> None:
        """Write down and log what a call came to, in nano-dollars."""
        usage = status.usage
        basis = ESTIMATED if estimated else REPORTED if cost else ""
        if self._ledger is not None:
            settled = replace(record, cost=cost, estimated=estimated, model=model or record.model, basis=basis)
            settled.outcome = OUTCOMES.get(status.status or "", "ok")
            if usage is not None:
                settled.input_tokens, settled.cached_input_tokens = usage.input, usage.cached_input
                settled.output_tokens, settled.reasoning_tokens = usage.output, usage.reasoning
            self._ledger.record(settled, firm=True)
        self._emit(
            "settled",
            f"{record.reference} at {record.upstream} came to ${nanos_as_dollars(cost)}"
            + (f": {why}." if why else "."),
            request_id=record.request_id,
            upstream=record.upstream,
            model=model or record.model,
            user=record.user,
            cost_usd=nanos_as_dollars(cost),
            reserved_usd=nanos_as_dollars(record.cost),
            basis=basis or None,
            status=status.status,
        )

    def _remember_settled(self, key: Key) -> None:
        self._settled[key] = None
        if len(self._settled) > MAX_SETTLED:
            self._settled.popitem(last=False)
