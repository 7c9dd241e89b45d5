"""Calls in the ledger: one record for each, written from the moment that money may be spent.

    open_charge ──► open ──► record_call ──► settled: the call's outcome, tokens and cost
                     │  └──► discarded, if it neither cost nor was worth a record
                     └─────► deferred (defer_charge): its price comes later, see background_calls.py

Records are put into memory and written off the path (proxy/ledger/ledger.py), so nothing here waits for a disk, but for
calls that the vendor goes on with: those are on record before they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.egress import error_response
from proxy.egress.billing.background_calls import BackgroundCalls
from proxy.egress.billing.shared_caps import reserve_with_slices
from proxy.egress.billing.spend_account import CapReached
from proxy.egress.billing.spend_limits import SliceNeeded
from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.ledger.ledger import Ledger
from proxy.ledger.record import ESTIMATED, OPEN, REPORTED, CallRecord
from proxy.observe.request_ids import IdGenerator
from proxy.util.sliding_window import SlidingWindow

if TYPE_CHECKING:
    from proxy.egress.billing.charge import Charge
    from proxy.egress.call import Call

REFUSED_WINDOW = 60.0  # seconds
MAX_REFUSED_RECORDS = 600  # in that window: an app that retries refused calls in a loop must not fill the disk


class CallLedger:
    """Opens charges and writes down what becomes of calls.

    background: the calls whose price comes later
    `clock` is monotonic. Without a ledger nothing is written, and caps hold until a restart.
    """

    def __init__(
        self, ledger: Ledger | None, clock: Callable[[], float], lookup: SpendLookup, background: BackgroundCalls
    ) -> None:
        self._ledger = ledger
        self._lookup = lookup
        self.background = background
        self._refused = SlidingWindow(REFUSED_WINDOW, clock)
        self._ids = IdGenerator()

    async def load_spend(self, call: Call) -> None:
        """Load what this call's user spent from the ledger, if a cap rests on them and they are not loaded.

        While the ledger is away the call goes on, and what the ledger has is counted when it is back. Raises
        CallRefused with `on_error: deny`.
        """
        billing = call.upstream.billing
        limits = billing.limits
        if not billing.metered or not limits.caps_of(call.user, call.tier) or limits.accounts.is_loaded(call.user):
            return
        if (
            not await self._lookup.load_user(call.upstream.name, limits, call.user)
            and self._ledger is not None
            and self._ledger.strict
        ):
            raise error_response.ledger_unavailable()

    async def open_charge_with_slices(self, call: Call, needed: SliceNeeded) -> Charge | None:
        """The same as `open_charge`, after what it lacked was had of the store. Raises CallRefused."""
        try:
            return await reserve_with_slices(needed, lambda: self.open_charge(call), waited=call.store_seconds)
        except CapReached as reached:
            raise error_response.cost_cap_exceeded(needed.upstream, str(reached)) from reached

    def open_charge(self, call: Call) -> Charge | None:
        """The charge of a call at this upstream, with what it may cost reserved; None if it has no price.

        Raises CallRefused; SliceNeeded if it fits into no slice of a cap that several instances hold.
        """
        # Before any money is reserved: with `on_error: deny` a call that cannot be written down is not made.
        if self._ledger is not None and self._ledger.refuses_calls():
            raise error_response.ledger_unavailable()
        charge = call.upstream.billing.open_charge(
            call.endpoint, call.ask, call.body, user=call.user, tier=call.tier, started_at=call.started_at
        )
        if charge is not None:
            call.charges.append(charge)
        if charge is not None and self._ledger is not None:
            self._ledger.record_open(_open_record(call, charge))
        return charge

    async def record_open_call(self, call: Call, charge: Charge) -> None:
        """Wait until a call is on record, before it is made: what it begins goes on even if this process dies."""
        if self._ledger is not None:
            record = _open_record(call, charge)
            self._ledger.record(record, firm=True)
            await self._ledger.wait_written()

    async def defer_charge(self, call: Call, charge: Charge, reference: str) -> None:
        """Wait for the price of a call that the vendor goes on with under this reference."""
        record = _new_record(call, charge.upstream, charge.id, charge.model)
        record.attempts, record.status = call.attempts, call.status
        await self.background.track(record, charge, reference)

    def record_call(self, call: Call) -> None:
        """Write down a call that is over.

        Its record is that of the last upstream and model that were asked; one before that which cost money without an
        answer has a record of its own. This may be called again if the cost is known later, as for an answer that other
        callers went on reading.
        """
        ledger = self._ledger
        if ledger is None:
            return
        # A fallback opens a charge at each upstream or model it tries.
        for charge in call.charges[:-1]:
            if charge.cost:
                record = _with_cost(_new_record(call, charge.upstream, charge.id, charge.model), charge)
                record.outcome = "error"
                ledger.record(record)
            else:
                ledger.discard(charge.id)
        last = call.charges[-1] if call.charges else None
        if (last is None and not self._deserves_record(call)) or (last is not None and last.deferred):
            return  # not worth a record, or on record as open until its price comes
        if last is None:
            call.ledger_id = call.ledger_id or self._ids.new_token()
        id, model = (last.id, last.model) if last is not None else (call.ledger_id, call.model)
        record = _new_record(call, call.answered_by, id, model)
        record.attempts, record.status, record.outcome, record.cache = (
            call.attempts,
            call.status,
            call.outcome,
            call.cache,
        )
        if last is not None:
            record.upstream = last.upstream
            _with_cost(record, last)
            usage = call.usage
            if usage is not None and last.closed:
                record.input_tokens, record.cached_input_tokens = usage.input, usage.cached_input
                record.output_tokens, record.reasoning_tokens = usage.output, usage.reasoning
        # A record with a reference may be settled by another instance meanwhile, so it keeps its id whatever happens.
        ledger.record(record, firm=bool(record.reference))

    def _deserves_record(self, call: Call) -> bool:
        if call.outcome != "refused":
            return True
        if self._refused.counts()[0] >= MAX_REFUSED_RECORDS:
            return False
        self._refused.add()
        return True


def _new_record(call: Call, upstream: str, id: str, model: str | None) -> CallRecord:
    owner = call.owner
    return CallRecord(
        id=id,
        at=call.started_at,
        request_id=owner.request_id if owner is not None else None,
        user=call.user,
        tier=call.tier,
        route=owner.route if owner is not None else "",
        upstream=upstream,
        model=model or "",
    )


def _open_record(call: Call, charge: Charge) -> CallRecord:
    record = _new_record(call, charge.upstream, charge.id, charge.model)
    record.cost = record.estimated = charge.reserved
    record.basis, record.outcome = ESTIMATED, OPEN
    return record


def _with_cost(record: CallRecord, charge: Charge) -> CallRecord:
    if charge.closed:
        record.cost, record.estimated = charge.cost, charge.estimated
    else:
        record.cost = record.estimated = charge.reserved
    record.reference = charge.reference
    record.basis = ESTIMATED if record.estimated else REPORTED if record.cost else ""
    return record
