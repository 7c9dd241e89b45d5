"""The caps on the calls of one tier, made ready for every call: amounts in nano-dollars, windows that are counted.

Made once for a policy and a tier, since a call would spend 3 µs on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxy.policy.schema import Cap
from proxy.policy.values import Spend
from proxy.units import SpendPeriod, to_nanos

WindowLimits = Mapping[SpendPeriod, int | None]  # the cap of each window in nano-dollars; None: it is only counted


class CapPlan:
    """Attributes:
    per_call: the most that a call may cost; None for any
    own: the caps on the user (or on calls of nobody), with their amounts
    total: the same of `cap.total`, one at most
    own_windows: the windows of a user that several instances count together
    lowest_warning: the share of a cap below which nobody is warned
    """

    __slots__ = ("lowest_warning", "own", "own_windows", "per_call", "total")

    def __init__(self, cap: Cap, own: Sequence[Spend]) -> None:
        self.per_call = None if cap.per_call is None else to_nanos(cap.per_call)
        self.own = [(each, to_nanos(each.amount)) for each in own]
        self.total = [] if cap.total is None else [(cap.total, to_nanos(cap.total.amount))]
        # X-Cost-Used-Today is stated to everybody who has a cap, of whichever window.
        self.own_windows: WindowLimits = _lowest_limits(self.own, *(("d",) if own else ()))
        self.lowest_warning = min(cap.warn, default=float("inf"))


def total_windows(cap: Cap) -> WindowLimits:
    """The windows of all users together that several instances count together."""
    return _lowest_limits([] if cap.total is None else [(cap.total, to_nanos(cap.total.amount))], "d", "month")


def _lowest_limits(caps: Sequence[tuple[Spend, int]], *also: SpendPeriod) -> WindowLimits:
    """The lowest of several caps by period; None for periods that are `also` counted without one."""
    found: dict[SpendPeriod, int | None] = dict.fromkeys(also)
    for cap, limit in caps:
        lowest = found.get(cap.period)
        found[cap.period] = limit if lowest is None else min(lowest, limit)
    return found
