"""What users have spent, over all upstreams: for the front door, the metrics and the status."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from proxy.egress.billing.background_calls import BackgroundCalls
from proxy.egress.billing.spend_limits import SpendLimits
from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.ledger.ledger import Ledger
from proxy.ledger.store import LedgerUnavailable
from proxy.observe.metrics import Metrics
from proxy.units import NANOS, Period, format_nanos, to_nanos

if TYPE_CHECKING:
    from proxy.egress.upstream import Upstream

TOP = 10  # users shown
AGAIN = 2.0  # seconds between tries at a ledger that is away


class UserSpend:
    """The front door's `Allowances`."""

    def __init__(self, upstreams: Mapping[str, Upstream], recall: SpendLookup) -> None:
        self._upstreams = upstreams
        self._recall = recall

    def has_cap(self, user: str, tier: str) -> bool:
        return any(upstream.billing.limits.caps_of(user, tier) for upstream in self._upstreams.values())

    def is_loaded(self, user: str, tier: str) -> bool:
        return not any(self._unknown(user, tier))

    async def load_user(self, user: str, tier: str | None = None) -> None:
        """At each upstream that has a cap on such a user, or without a tier at all."""
        for name, purse in list(self._unknown(user, tier)):
            await self._recall.load_user(name, purse, user)

    def _unknown(self, user: str, tier: str | None) -> Iterator[tuple[str, SpendLimits]]:
        for name, upstream in self._upstreams.items():
            purse = upstream.billing.limits
            if upstream.billing.metered and (tier is None or purse.caps_of(user, tier)) and not purse.is_loaded(user):
                yield name, purse

    def spent_today(self, user: str) -> int:
        return sum(upstream.billing.limits.counted("d", user) for upstream in self._upstreams.values())

    def exhausted_cap(self, user: str, tier: str) -> tuple[str, float] | None:
        for upstream in self._upstreams.values():
            found = upstream.billing.limits.exhausted_cap(user, tier)
            if found is not None:
                return found
        return None

    def forgive(self, user: str) -> list[tuple[str, Period, int]]:
        """Today's spend counts against this user's caps no longer: upstream, window and nano-dollars of each part."""
        return [
            (name, period, amount)
            for name, upstream in self._upstreams.items()
            for period, amount in upstream.billing.limits.forgive(user).items()
        ]

    def set_gauges(self, metrics: Metrics) -> None:
        """Set the gauges that are cheaper asked for than kept."""
        for name, upstream in self._upstreams.items():
            meter = upstream.billing
            if not meter.metered:
                continue
            cap = meter.limits.cap.total
            if cap is not None:
                spent = meter.limits.spent(cap.period)
                metrics.cost_cap_ratio.labels(name).set(spent / (to_nanos(cap.amount) or 1))
            metrics.cost_projected_usd.labels(name).set(meter.projected_today() / NANOS)

    def upstream_status(self, upstream: Upstream) -> Mapping[str, object]:
        purse = upstream.billing.limits
        return {
            "today_usd": format_nanos(purse.spent("d")),
            "month_usd": format_nanos(purse.spent("month")),
            "reserved_usd": format_nanos(purse.reserved),
            "projected_today_usd": format_nanos(upstream.billing.projected_today()),
            "cap_total": None if purse.cap.total is None else str(purse.cap.total),
            "top_users_today": [
                {"user": user, "usd": format_nanos(amount)} for user, amount in purse.top_spenders("d", TOP)
            ],
        }


async def load_spend(upstream: Upstream, ledger: Ledger, until: float, pending: BackgroundCalls | None = None) -> None:
    """Count what the ledger has of the windows under way, of calls that began before `until` (wall clock): caps
    hold over a restart. Raises LedgerUnavailable."""
    if not upstream.billing.metered:
        return
    purse = upstream.billing.limits
    windows = purse.window_starts()
    spent = await ledger.window_totals(upstream.name, windows, until)
    forgiven = await ledger.forgiven_by_user(upstream.name, windows, until)
    rows = await pending.open_records(upstream.name) if pending is not None else []
    purse.load(windows, spent, forgiven)  # from here on nothing fails, and is counted again
    if pending is not None:
        await pending.restore(upstream, rows, until)


async def load_spend_when_back(
    upstream: Upstream, ledger: Ledger, until: float, pending: BackgroundCalls | None = None
) -> None:
    """The same, asked again and again while the ledger is away."""
    while True:
        try:
            await load_spend(upstream, ledger, until, pending)
            return
        except LedgerUnavailable:
            await asyncio.sleep(AGAIN)
