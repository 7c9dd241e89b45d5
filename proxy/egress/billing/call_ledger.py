"""What calls cost, written down: a row for each, on record from the moment that money may be gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.egress import error_response
from proxy.egress.billing.background_calls import BackgroundCalls
from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.ledger.ledger import Ledger
from proxy.ledger.record import CallRecord
from proxy.observe.request_ids import IdGenerator
from proxy.util.sliding_window import SlidingWindow

if TYPE_CHECKING:
    from proxy.egress.billing.charge import Charge
    from proxy.egress.call import Call
    from proxy.egress.upstream import Upstream

MINUTE = 60.0
MOST_REFUSED = 600  # rows a minute of calls that never left: a loop against a closed door must not fill the disk


class CallLedger:
    """`clock` is monotonic. Without a ledger nothing is written, and caps hold until a restart."""

    def __init__(
        self, ledger: Ledger | None, clock: Callable[[], float], recall: SpendLookup, pending: BackgroundCalls
    ) -> None:
        self._ledger = ledger
        self._recall = recall
        self.background = pending
        self._refused = SlidingWindow(MINUTE, clock)
        self._ids = IdGenerator()

    async def load_spend(self, call: Call, upstream: Upstream) -> None:
        """Learn of the ledger what this call's user spent, where that counts and is not remembered. While the ledger
        is away the call goes on, and what it has is counted once it is back.

        Raises CallRefused with `on_error: deny`.
        """
        purse = upstream.billing.limits
        if not upstream.billing.metered or not purse.caps_of(call.user, call.tier) or purse.is_loaded(call.user):
            return
        if (
            not await self._recall.load_user(upstream.name, purse, call.user)
            and self._ledger is not None
            and self._ledger.strict
        ):
            raise error_response.ledger_unavailable()

    def open_charge(self, call: Call, upstream: Upstream) -> Charge | None:
        """A call's bill at this upstream, with what it may cost reserved; None where it has no price.

        Raises CallRefused.
        """
        if self._ledger is not None and self._ledger.refuses_calls():
            raise error_response.ledger_unavailable()
        bill = upstream.billing.open_charge(
            call.endpoint, call.ask, call.body, user=call.user, tier=call.tier, started_at=call.started_at
        )
        if bill is not None:
            call.bills.append(bill)
        if bill is not None and self._ledger is not None:
            self._ledger.record_open(_open(call, bill))
        return bill

    async def record_open_call(self, call: Call, bill: Charge) -> None:
        """Have a call on record before it is made: what it begins goes on by itself, whatever becomes of us."""
        if self._ledger is not None:
            row = _open(call, bill)
            self._ledger.record(row, firm=True)
            await self._ledger.wait_written()

    async def defer_charge(self, call: Call, bill: Charge, reference: str) -> None:
        """The vendor goes on with it under this reference: its price comes later."""
        row = _row(call, bill.upstream, bill.id, bill.model)
        row.attempts, row.status = call.attempts, call.status
        await self.background.track(row, bill, reference)

    def record_call(self, call: Call) -> None:
        """The call is over. Its row is that of the last upstream and model that were asked; one before that took
        money without an answer has a row of its own.

        May be called again where money came in later, as for an answer that others went on reading.
        """
        ledger = self._ledger
        if ledger is None:
            return
        for bill in call.bills[:-1]:
            if bill.cost:
                row = _paid(_row(call, bill.upstream, bill.id, bill.model), bill)
                row.outcome = "error"
                ledger.record(row)
            else:
                ledger.discard(bill.id)
        last = call.bills[-1] if call.bills else None
        if (last is None and not self._worth_a_row(call)) or (last is not None and last.deferred):
            return  # nothing, or on record as pending
        if last is None:
            call.row_id = call.row_id or self._ids.new_token()
        id, model = (last.id, last.model) if last is not None else (call.row_id, call.model)
        row = _row(call, call.answered_by, id, model)
        row.attempts, row.status, row.outcome, row.cache = call.attempts, call.status, call.outcome, call.cache
        if last is not None:
            row.upstream = last.upstream
            _paid(row, last)
            usage = call.usage
            if usage is not None and last.closed:
                row.input_tokens, row.cached_input_tokens = usage.input, usage.cached_input
                row.output_tokens, row.reasoning_tokens = usage.output, usage.reasoning
        ledger.record(row, firm=bool(row.reference))

    def _worth_a_row(self, call: Call) -> bool:
        if call.outcome != "refused":
            return True
        if self._refused.counts()[0] >= MOST_REFUSED:
            return False
        self._refused.add()
        return True


def _row(call: Call, upstream: str, id: str, model: str | None) -> CallRecord:
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


def _open(call: Call, bill: Charge) -> CallRecord:
    row = _row(call, bill.upstream, bill.id, bill.model)
    row.cost = row.estimated = bill.reserved
    row.basis, row.outcome = "estimated", "open"
    return row


def _paid(row: CallRecord, bill: Charge) -> CallRecord:
    row.cost, row.estimated = (bill.cost, bill.estimated) if bill.closed else (bill.reserved, bill.reserved)
    row.reference = bill.reference
    row.basis = "estimated" if row.estimated else "reported" if row.cost else ""
    return row
