"""What users have spent over all upstreams, for the requests coming in, the metrics and the status.

Money is in whole nano-dollars (1e-9 $).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from proxy.egress.billing.background_calls import BackgroundCalls
from proxy.egress.billing.spend_limits import SpendLimits
from proxy.egress.billing.spend_lookup import SpendLookup
from proxy.egress.billing.windows import PERIODS
from proxy.ledger.ledger import Ledger
from proxy.ledger.store import LedgerUnavailable
from proxy.observe.metrics import Metrics
from proxy.store.escrow import EscrowWindow
from proxy.store.escrow_sync import Escrow
from proxy.store.money import MoneyUnavailable
from proxy.units import NANOS, SpendPeriod, format_nanos, to_nanos

if TYPE_CHECKING:
    from proxy.egress.upstream import Upstream

MAX_TOP_USERS = 10
RETRY_SECONDS = 2.0  # between tries at a ledger that is away


class UserSpend:
    """What a request may ask about its user's money (`Allowances` of ingress), and what operators see of it."""

    def __init__(self, upstreams: Mapping[str, Upstream], lookup: SpendLookup, escrow: Escrow | None = None) -> None:
        """`escrow`: if several instances share their caps."""
        self._upstreams = upstreams
        self._lookup = lookup
        self._escrow = escrow

    def has_cap(self, user: str, tier: str) -> bool:
        for upstream in self._upstreams.values():  # noqa: SIM110 (every request asks: any() costs twice as much)
            if upstream.billing.limits.caps_of(user, tier):
                return True
        return False

    def is_loaded(self, user: str, tier: str, *, fresh: bool = False) -> bool:
        escrow = self._escrow
        if escrow is None or escrow.away_because is not None:
            return not any(self._unloaded_limits(user, tier))
        windows = self._shared_windows(user, tier)
        stale = [window for window in windows if not escrow.is_fresh(window)]
        if stale and not fresh and all(window.is_heard for window in windows):
            # What is known is good enough to be stated; it is asked for anew beside that.
            for window in stale:
                escrow.ask_beside(window)
            return True
        return not stale

    async def load_user(self, user: str, tier: str | None = None) -> None:
        """Load the user from the ledger, at each upstream that has a cap on them; without a tier, at all upstreams.

        If several instances share their caps, the store says what was spent.
        """
        escrow = self._escrow
        if escrow is not None and tier is not None:
            windows = [each for each in self._shared_windows(user, tier) if not escrow.is_fresh(each)]
            if not windows or await escrow.refresh(windows, escrow.timeout):
                return
        for name, limits in list(self._unloaded_limits(user, tier)):
            await self._lookup.load_user(name, limits, user)

    def _shared_windows(self, user: str, tier: str) -> list[EscrowWindow]:
        """The windows of one user that the store counts."""
        windows = []
        for upstream in self._upstreams.values():
            limits = upstream.billing.limits
            if upstream.billing.metered and limits.caps_of(user, tier):
                windows += [each for each in limits.shared_windows(user, tier) if each.name.user is not None]
        return windows

    def _unloaded_limits(self, user: str, tier: str | None) -> Iterator[tuple[str, SpendLimits]]:
        for name, upstream in self._upstreams.items():
            limits = upstream.billing.limits
            is_concerned = upstream.billing.metered and (tier is None or limits.caps_of(user, tier))
            if is_concerned and not limits.accounts.is_loaded(user):
                yield name, limits

    def spent_today(self, user: str) -> int:
        return sum(upstream.billing.limits.counted("d", user) for upstream in self._upstreams.values())

    def exhausted_cap(self, user: str, tier: str) -> tuple[str, float] | None:
        for upstream in self._upstreams.values():
            exhausted = upstream.billing.limits.exhausted_cap(user, tier)
            if exhausted is not None:
                return exhausted
        return None

    async def forgive(self, user: str) -> list[tuple[str, SpendPeriod, int]]:
        """Take today's spend off this user's caps: upstream, window and nano-dollars of each part.

        If several instances share their caps, what all of them spent; while the store is away, what is known here.
        """
        taken: list[tuple[str, SpendPeriod, int]] = []
        for name, upstream in self._upstreams.items():
            limits = upstream.billing.limits
            if self._escrow is not None and upstream.billing.metered:
                windows = limits.every_window(user)
                today = next(window for window in windows if window.name.period == "d")
                try:
                    found = await self._escrow.forgive(windows, today)
                    taken += [(name, period, found[period]) for period in PERIODS if found.get(period)]
                    continue
                except MoneyUnavailable:
                    pass
            taken += [(name, period, amount) for period, amount in limits.forgive(user).items()]
        return taken

    def set_gauges(self, metrics: Metrics) -> None:
        """Set the gauges that are cheaper to compute at a scrape than to keep."""
        for name, upstream in self._upstreams.items():
            billing = upstream.billing
            if not billing.metered:
                continue
            cap = billing.limits.cap.total
            if cap is not None:
                spent = billing.limits.spent(cap.period)
                metrics.cost_cap_ratio.labels(name).set(spent / (to_nanos(cap.amount) or 1))
            metrics.cost_projected_usd.labels(name).set(billing.projected_today() / NANOS)

    def upstream_status(self, upstream: Upstream) -> Mapping[str, object]:
        limits = upstream.billing.limits
        # What is shown is what was heard last; it is asked for anew, so the next look sees what others did meanwhile.
        for window in limits.total_windows() if self._escrow is not None else ():
            if self._escrow is not None and not self._escrow.is_fresh(window):
                self._escrow.ask_beside(window)
        return {
            "today_usd": format_nanos(limits.spent("d")),
            "month_usd": format_nanos(limits.spent("month")),
            "reserved_usd": format_nanos(limits.reserved),
            "projected_today_usd": format_nanos(upstream.billing.projected_today()),
            "cap_total": None if limits.cap.total is None else str(limits.cap.total),
            "top_users_today": [
                {"user": user, "usd": format_nanos(amount)}
                for user, amount in limits.accounts.top_spenders("d", MAX_TOP_USERS)
            ],
        }


async def load_spend(
    upstream: Upstream, ledger: Ledger, until: float, background: BackgroundCalls | None = None
) -> None:
    """Load the windows under way from the ledger, of calls that began before `until` (wall clock).

    So caps hold over a restart. Raises LedgerUnavailable, and then nothing is loaded.
    """
    if not upstream.billing.metered:
        return
    limits = upstream.billing.limits
    starts = limits.accounts.window_starts()
    # All answers are fetched before any of them is counted: a ledger that goes away half-way leaves nothing counted.
    spent = await ledger.window_totals(upstream.name, starts, until)
    forgiven = await ledger.forgiven_by_user(upstream.name, starts, until)
    records = await background.open_records(upstream.name) if background is not None else []
    limits.accounts.load(starts, spent, forgiven)  # from here on nothing raises, so nothing is counted twice
    if background is not None:
        await background.restore(upstream, records, until)


async def load_spend_when_back(
    upstream: Upstream, ledger: Ledger, until: float, background: BackgroundCalls | None = None
) -> None:
    """Load the same, as soon as the ledger answers."""
    while True:
        try:
            await load_spend(upstream, ledger, until, background)
            return
        except LedgerUnavailable:
            await asyncio.sleep(RETRY_SECONDS)
