"""What the calls of one upstream may cost: caps by window, for each user and for all of them together.

A call is counted twice. Before it is made, the most that it is expected to cost is *reserved*; when its cost is known
it is *settled*: the cost is added to what was spent and the reservation is released. A cap compares itself with both:

    spent - forgiven + reserved + this call's reservation  <=  limit

So a cap can be overshot by no more than the error of the estimates under way, however many calls are made at once.
For that, a decision and its reservation must be one step: everything here is synchronous, runs on the loop's thread,
and awaits nothing.

What was spent is in the accounts of spend_accounts.py. All money is in whole nano-dollars (1e-9 $), all times are the
wall clock's seconds.

With a store that several instances share, a window has its share of it in `escrow` (proxy/store/escrow.py), and what is
reserved must fit into that window's slice of the cap; a call that lacks one is told so (SliceNeeded), gets it, and
reserves again (shared_caps.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.egress.billing.cap_plan import CapPlan, total_windows
from proxy.egress.billing.spend_account import MAX_SHARE_LEFT, CapReached, SpendAccount, Windows, WindowSpend
from proxy.egress.billing.spend_accounts import SpendAccounts
from proxy.egress.billing.windows import PERIODS
from proxy.errors import OutriggerError
from proxy.policy.schema import Cap
from proxy.policy.values import ANY_TIER, Spend
from proxy.store.escrow import EscrowWindow
from proxy.store.escrow_sync import Escrow
from proxy.store.money import WindowName
from proxy.units import SpendPeriod, format_nanos, to_nanos
from proxy.util.user_names import UNATTRIBUTED

Warn = Callable[[str, Spend, float], None]  # whom or what, which cap, the share of `cap.warn` that was reached


class SliceNeeded(OutriggerError):
    """A call fits into no slice that this instance has set aside: it is to get one and to try again.

    escrow: who gets them; upstream: whose caps they are
    windows: those in which it needs one, whether they have it or not
    amount: what it wants to reserve in each
    """

    def __init__(
        self,
        limits: SpendLimits,
        escrow: Escrow,
        reservation: Reservation,
        windows: list[EscrowWindow],
        amount: int,
    ) -> None:
        super().__init__("a slice of a cap is used up")
        self._limits = limits
        self.escrow = escrow
        self.upstream = limits.upstream
        self._reservation = reservation
        self.windows = windows
        self.amount = amount

    def refusal(self, window: EscrowWindow, *, away: bool) -> CapReached:
        """What becomes of the call if there is none for this window; `away`: for want of the store."""
        return self._limits.slice_refusal(self._reservation, window, self.amount, away=away)


class Reservation:
    """What one call has reserved, in the user's account and in that of all.

    It belongs to the windows in which it was made, even past their end: a call of 23:59 is yesterday's.
    """

    __slots__ = ("_accounts", "_limits", "_prepaid", "_shared", "amount", "tier", "user", "windows")

    def __init__(
        self,
        limits: SpendLimits,
        user: str,
        tier: str,
        accounts: tuple[SpendAccount, SpendAccount],
        shared: tuple[EscrowWindow, ...] = (),
    ) -> None:
        """`accounts`: that of all users, and this user's. `shared`: their windows that several instances count."""
        self._limits = limits
        self._accounts = accounts
        self._shared = shared
        self._prepaid = 0
        self.user = user
        self.tier = tier
        self.windows: tuple[Windows, Windows] = (dict(accounts[0].windows), dict(accounts[1].windows))
        self.amount = 0

    def reserve(self, amount: int) -> None:
        """Reserve this much in place of what was reserved. Raises CapReached or SliceNeeded, and then nothing is
        reserved."""
        self.release()
        try:
            self._limits.check(self, amount)
        except CapReached:
            self.note_request(amount, fitted=False)
            raise
        self.note_request(amount, fitted=True)
        # No await between the check above and this: another call could pass the same check in between.
        for windows in self.windows:
            for window in windows.values():
                window.reserved += amount
        self.amount = amount
        if self._shared:
            self._limits.note_shared_use(self._shared, amount)

    def note_request(self, amount: int, *, fitted: bool) -> None:
        """Learn what a call of this user usually reserves."""
        for account in self._accounts:
            account.note_request(amount, fitted=fitted)

    def spend(self, amount: int) -> None:
        """Count this much as gone for good. The reservation stays until it is released."""
        amount, self._prepaid = amount - self._prepaid, 0
        for windows in self.windows:
            for window in windows.values():
                window.spent += amount
        self._limits.warn_if_due(self)
        # What is reserved is released next, and told with it.
        if self._shared and not self.amount:
            self._limits.touch_shared(self._shared)

    def restore(self, amount: int, window_starts: Mapping[str, float], began_at: float) -> None:
        """Turn money that was loaded as spent back into a reservation, for a call that is still open.

        It lies in those windows only that had begun when the call began. Windows that several instances share keep it
        as it is, since another one may restore the same call: it is taken off what the call costs in the end.
        """
        self.windows = (
            _windows_begun_by(self.windows[0], window_starts, began_at),
            _windows_begun_by(self.windows[1], window_starts, began_at),
        )
        if self._limits.is_shared:
            self._prepaid = amount
            return
        for windows in self.windows:
            for window in windows.values():
                window.spent -= amount
                window.elsewhere -= amount
                window.reserved += amount
        self.amount = amount

    def settle_elsewhere(self, cost: int) -> None:
        """Another instance has settled this call at `cost`."""
        # If windows are shared, that one has counted by how much the cost differs from what was reserved.
        self.spend(self.amount + self._prepaid if self._limits.is_shared else cost)

    def release(self) -> None:
        """Give back what is still reserved. A second call does nothing."""
        amount, self.amount = self.amount, 0
        if not amount:
            return
        for windows in self.windows:
            for window in windows.values():
                window.reserved -= amount
        if self._shared:
            self._limits.touch_shared(self._shared)


class SpendLimits:
    """The caps of one upstream, and what stands against them.

    Users and the whole are counted whether or not a cap rests on them, so that a policy that names a cap counts what
    was spent before it did.

    cap: the policy in force
    accounts: what was spent and is reserved
    """

    def __init__(self, cap: Cap, *, now: Callable[[], float], on_warn: Warn | None = None) -> None:
        self._now = now
        self._on_warn = on_warn
        self._upstream = ""
        self._escrow: Escrow | None = None
        self._plans: dict[str | None, CapPlan] = {}  # by tier; None: of calls of nobody
        self._total_windows = total_windows(cap)
        self.accounts = SpendAccounts(cap.timezone, now=now)
        self.cap = cap

    def __repr__(self) -> str:
        today = self.accounts.current_total()["d"]
        return f"<SpendLimits ${format_nanos(today.spent)} today, ${format_nanos(today.reserved)} reserved>"

    def reconfigure(self, cap: Cap) -> bool:
        """Take other caps. True if their time zone is another: then all counts start anew and must be loaded again."""
        # Only a time zone moves the windows themselves; other caps are compared with the same counts.
        moved = cap.timezone != self.cap.timezone
        self.cap = cap
        self._plans.clear()
        self._total_windows = total_windows(cap)
        if moved:
            self.accounts.start_anew(cap.timezone)
        return moved

    # ── shared with other instances ──────────────────────────────────────────────────────────

    def share(self, upstream: str, escrow: Escrow) -> None:
        """Count the windows that have a cap together with other instances, under the upstream's name."""
        self._upstream, self._escrow = upstream, escrow
        self.accounts.escrow = escrow

    @property
    def upstream(self) -> str:
        return self._upstream

    @property
    def is_shared(self) -> bool:
        return self._escrow is not None

    def shared_windows(self, user: str, tier: str) -> tuple[EscrowWindow, ...]:
        """The current windows of all users together and of this one that several instances count together."""
        if self._escrow is None:
            return ()
        account = self.accounts.find_or_open(user)
        plan = self._plan_of(user, tier)
        return (*self.total_windows(), *self._find_shared(self._escrow, account, user, plan.own_windows))

    def total_windows(self) -> tuple[EscrowWindow, ...]:
        """The current windows of all users together."""
        if self._escrow is None:
            return ()
        self.accounts.current_total()
        return self._find_shared(self._escrow, self.accounts.total, None, self._total_windows)

    def every_window(self, user: str) -> tuple[EscrowWindow, ...]:
        """All current windows of one user, whatever cap rests on them."""
        if self._escrow is None:
            return ()
        account = self.accounts.find_or_open(user)
        limits = {
            period: window.escrow.limit if window.escrow is not None else None
            for period, window in account.windows.items()
        }
        return self._share_windows(self._escrow, account, user, limits)

    def note_shared_use(self, shared: tuple[EscrowWindow, ...], amount: int) -> None:
        if self._escrow is not None:
            self._escrow.note_use(shared, amount)

    def touch_shared(self, shared: tuple[EscrowWindow, ...]) -> None:
        if self._escrow is not None:
            self._escrow.touch_all(shared)

    def slice_refusal(self, reservation: Reservation, shared: EscrowWindow, amount: int, *, away: bool) -> CapReached:
        for cap, _, window in _caps_on(self._plan_of(reservation.user, reservation.tier), reservation):
            if window.escrow is shared:
                text = self._refusal_text(reservation, cap, window, amount)
                if away:
                    text += " The shared store is away, and what this instance had set aside is used up."
                return CapReached(text, window.end)
        return CapReached("The cap was changed meanwhile.", None)

    def _plan_of(self, user: str, tier: str) -> CapPlan:
        key = None if user == UNATTRIBUTED else tier
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = CapPlan(self.cap, self.caps_of(user, tier))
        return plan

    def _find_shared(
        self, escrow: Escrow, account: SpendAccount, user: str | None, limits: Mapping[SpendPeriod, int | None]
    ) -> tuple[EscrowWindow, ...]:
        """The same as `_share_windows`, remembered until a window ends or the caps change: 2 µs less a call."""
        known = account.shared
        if known is None or known[0] is not limits:
            known = account.shared = (limits, self._share_windows(escrow, account, user, limits))
        return known[1]

    def _share_windows(
        self, escrow: Escrow, account: SpendAccount, user: str | None, limits: Mapping[SpendPeriod, int | None]
    ) -> tuple[EscrowWindow, ...]:
        windows = account.windows
        found = []
        for period, limit in limits.items():
            window = windows[period]
            shared = window.escrow
            if shared is None:
                start = self.accounts.calendar.window(period, window.end - 1)[0]
                name = WindowName(self._upstream, user, period, start, window.end)
                shared = escrow.find_window(name)
                if shared is not None and isinstance(shared.counts, WindowSpend):
                    # The upstream was taken out of the policy and came back: its window goes on, with the calls in it.
                    windows[period] = shared.counts
                else:
                    shared = window.escrow = escrow.open_window(name, window, limit)
            shared.limit = limit
            found.append(shared)
        return tuple(found)

    # ── before and after a call ──────────────────────────────────────────────────────────────

    def reservation(self, user: str, tier: str, began_at: float | None = None) -> Reservation:
        """An empty reservation for a call. `began_at`: when the call began, if that was before now."""
        self.accounts.current_total()
        account = self.accounts.find_or_open(user)
        if account.counted_since is not None and began_at is not None:
            # The ledger is asked for what began before `counted_since`: this call is counted here, and only here.
            account.counted_since = min(account.counted_since, began_at)
        shared: tuple[EscrowWindow, ...] = ()
        if self._escrow is not None:
            own_windows = self._plan_of(user, tier).own_windows
            shared = (
                *self._find_shared(self._escrow, self.accounts.total, None, self._total_windows),
                *self._find_shared(self._escrow, account, user, own_windows),
            )
        return Reservation(self, user, tier, (self.accounts.total, account), shared)

    def check(self, reservation: Reservation, amount: int) -> None:
        """Raises CapReached if `amount` more would pass a cap, SliceNeeded if a slice of one is to be had first."""
        plan = self._plan_of(reservation.user, reservation.tier)
        if plan.per_call is not None and amount > plan.per_call:
            text = f"It may cost ${format_nanos(amount)}, and a call may cost ${self.cap.per_call:f} (cap.per_call)."
            raise CapReached(text, None)
        escrow = self._escrow
        if escrow is not None and escrow.decides_locally:
            escrow.count_fallback()
            escrow = None
        shared: list[EscrowWindow] = []
        for cap, limit, window in _caps_on(plan, reservation):
            if escrow is not None and window.escrow is not None:
                shared.append(window.escrow)
            elif window.counted + window.reserved + amount > limit:
                raise CapReached(self._refusal_text(reservation, cap, window, amount), window.end)
        if escrow is not None and not escrow.covers_all(shared, amount):
            raise SliceNeeded(self, escrow, reservation, shared, amount)

    def warn_if_due(self, reservation: Reservation) -> None:
        """Report each share of `cap.warn` once in a window, when it is reached."""
        if self._on_warn is None:
            return
        plan = self._plan_of(reservation.user, reservation.tier)
        for cap, limit, window in _caps_on(plan, reservation):
            # A cap of $0 is reached by the first nano-dollar, and must not divide by zero.
            share = window.counted / (limit or 1)
            if share < plan.lowest_warning:
                continue
            reached = max(mark for mark in self.cap.warn if mark <= share)
            if reached > window.warned:
                window.warned = reached
                self._on_warn(self._name_owner(reservation, cap), cap, reached)

    # ── what others ask ──────────────────────────────────────────────────────────────────────

    def spent(self, period: SpendPeriod, user: str | None = None) -> int:
        """Nano-dollars spent in the current window, by one user or by all."""
        if user is None:
            return self.accounts.current_total()[period].spent
        window = self.accounts.find_window(user, period)
        return window.spent if window is not None else 0

    @property
    def reserved(self) -> int:
        """Nano-dollars that all calls under way have reserved."""
        return self.accounts.current_total()["month"].reserved + self.reserved_elsewhere

    @property
    def reserved_elsewhere(self) -> int:
        """The part of it that other instances have reserved, as they said last."""
        shared = self.accounts.current_total()["month"].escrow
        return shared.open_elsewhere if shared is not None else 0

    def caps_of(self, user: str, tier: str) -> tuple[Spend, ...]:
        """The caps on one user; for calls of nobody, `cap.unattributed`."""
        if user == UNATTRIBUTED:
            return () if self.cap.unattributed is None else (self.cap.unattributed,)
        return self.cap.per_user.get(tier) or self.cap.per_user.get(ANY_TIER) or ()

    def exhausted_cap(self, user: str, tier: str) -> tuple[str, float] | None:
        """Which cap of this user's is spent, in words, and the seconds until its window ends; None if none is.

        A cap that has no room for a usual call of theirs counts as spent.
        """
        caps = self.caps_of(user, tier)
        if not caps:
            return None
        account = self.accounts.users.get(user) or SpendAccount()
        windows = self.accounts.current_windows(account)
        for cap in caps:
            window = windows[cap.period]
            if account.is_exhausted(window, to_nanos(cap.amount)):
                turns_at = self.accounts.calendar.format_moment(window.end)
                text = f"${format_nanos(window.counted)} of {cap} is spent; it turns at {turns_at}"
                return text, window.end - self._now()
        return None

    def total_share(self) -> float | None:
        """The share of the total cap that is spent, at least 1 if a usual call has no room in it; None without one."""
        total = self.cap.total
        if total is None:
            return None
        window, limit = self.accounts.current_total()[total.period], to_nanos(total.amount)
        share = window.spent / (limit or 1)
        return max(share, 1.0) if self.accounts.total.is_exhausted(window, limit) else share

    def count_users_above(self, share: float, tier_of: Callable[[str], str]) -> int:
        """How many users have spent more than this share of a cap of their own, or have no room for a usual call.

        Calls of nobody count as one user.
        """
        caps = [cap for several in self.cap.per_user.values() for cap in several]
        caps += [self.cap.unattributed] if self.cap.unattributed is not None else []
        lowest: dict[SpendPeriod, float] = {}
        for cap in caps:
            threshold = min(share, 1.0 - MAX_SHARE_LEFT) * to_nanos(cap.amount)
            lowest[cap.period] = min(lowest.get(cap.period, float("inf")), threshold)
        if not lowest:
            return 0
        now, count = self._now(), 0

        def is_above(account: SpendAccount, cap: Spend) -> bool:
            window, limit = account.windows[cap.period], to_nanos(cap.amount)
            return window.end > now and (window.counted > share * limit or account.is_exhausted(window, limit))

        for user, account in self.accounts.users.items():
            # The tier costs a look-up, so only users who can be above some cap pay for it.
            if any(account.windows[period].counted >= threshold for period, threshold in lowest.items()):
                count += any(is_above(account, cap) for cap in self.caps_of(user, tier_of(user)))
        return count

    def counted(self, period: SpendPeriod, user: str) -> int:
        """Nano-dollars of the current window that stand against this user's caps."""
        window = self.accounts.find_window(user, period)
        return window.counted if window is not None else 0

    def forgive(self, user: str) -> dict[SpendPeriod, int]:
        """Take today's spend off this user's caps, that of the month included; what this took off each window.

        The windows of all users keep it: the money is gone.
        """
        account = self.accounts.users.get(user)
        if account is None:
            return {}
        windows = self.accounts.current_windows(account)
        today = windows["d"].counted
        # An hour may count less than the day so far: no window gives back more than it counts.
        taken = {period: min(windows[period].counted, today) for period in PERIODS}
        for period, amount in taken.items():
            windows[period].forgive(amount)
        return {period: amount for period, amount in taken.items() if amount}

    # ── what a cap rests on ──────────────────────────────────────────────────────────────────

    def _name_owner(self, reservation: Reservation, cap: Spend) -> str:
        """Whose calls a cap rests on."""
        if cap is self.cap.total:
            return "all calls together (cap.total)"
        user = reservation.user
        return "calls of nobody (cap.unattributed)" if user == UNATTRIBUTED else f"{user} (cap.per_user)"

    def _refusal_text(self, reservation: Reservation, cap: Spend, window: WindowSpend, amount: int) -> str:
        used = f"${format_nanos(window.counted)} is spent"
        reserved = window.reserved + (window.escrow.open_elsewhere if window.escrow is not None else 0)
        used += f" and ${format_nanos(reserved)} reserved" if reserved else ""
        return (
            f"It may cost ${format_nanos(amount)}, and of {cap} for {self._name_owner(reservation, cap)} {used}; "
            f"it turns at {self.accounts.calendar.format_moment(window.end)}."
        )


def _caps_on(plan: CapPlan, reservation: Reservation) -> list[tuple[Spend, int, WindowSpend]]:
    """The caps that a call counts against, their amounts and windows."""
    total, own = reservation.windows
    # A call that was restored after a restart has no window that began after it.
    caps = [(cap, limit, own[cap.period]) for cap, limit in plan.own if cap.period in own]
    caps += [(cap, limit, total[cap.period]) for cap, limit in plan.total if cap.period in total]
    return caps


def _windows_begun_by(windows: Windows, window_starts: Mapping[str, float], at: float) -> Windows:
    return {period: window for period, window in windows.items() if window_starts[period] <= at}
