"""What the calls of one upstream may cost: caps by window, for each user and for all of them together.

A call is counted twice. Before it is made, the most that it is expected to cost is *reserved*; when its cost is known
it is *settled*: the cost is added to what was spent and the reservation is released. A cap compares itself with both:

    spent - forgiven + reserved + this call's reservation  <=  limit

So a cap can be overshot by no more than the error of the estimates under way, however many calls are made at once.
For that, a decision and its reservation must be one step: everything here is synchronous, runs on the loop's thread,
and awaits nothing.

Counts live in memory and come out of the ledger at a start. For at most MAX_USERS users they are told apart; who was
forgotten, or has not been loaded yet, counts as unknown (`is_loaded`), and the ledger is asked before a call of theirs
is reserved (spend_lookup.py). All money is in whole nano-dollars (1e-9 $), all times are the wall clock's seconds.

With a store that several instances share, a window has its share of it in `escrow` (proxy/store/escrow.py), and what is
reserved must fit into that window's slice of the cap; a call that lacks one is told so (SliceNeeded), gets it, and
reserves again (shared_caps.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from proxy.egress.billing.spend_account import MAX_SHARE_LEFT, CapReached, SpendAccount, Windows, WindowSpend
from proxy.egress.billing.windows import PERIODS, Calendar
from proxy.errors import OutriggerError
from proxy.ledger.store import UserTotals, WindowTotals
from proxy.observe.reserved_users import UNATTRIBUTED
from proxy.policy.schema import Cap
from proxy.policy.values import ANY_TIER, Spend
from proxy.store.escrow import EscrowWindow
from proxy.store.escrow_sync import Escrow
from proxy.store.money import WindowName
from proxy.units import SpendPeriod, format_nanos, to_nanos

MAX_USERS = 10_000  # about 500 bytes each
EVICTION_CANDIDATES = 32  # users that have not called for longest, of whom the one who spent least is forgotten

Forgiven = Mapping[str, Mapping[str, int]]  # nano-dollars that an operator forgave, by window and user
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
    """The caps and counts of one upstream.

    Users and the whole are counted whether or not a cap rests on them, so that a policy that names a cap counts what
    was spent before it did. `cap` is the policy in force, `evicted` how many users were forgotten for want of room.
    """

    def __init__(self, cap: Cap, *, now: Callable[[], float], on_warn: Warn | None = None) -> None:
        self._now = now
        self._on_warn = on_warn
        self._calendar = Calendar(cap.timezone)
        self._window_ends: dict[SpendPeriod, float] = {}
        self._total = SpendAccount()
        self._users: OrderedDict[str, SpendAccount] = OrderedDict()  # the one who called last is last
        self._unknown_until = 0.0  # until then, a user who has no account here may have spent something
        self._upstream = ""
        self._escrow: Escrow | None = None
        self._shared_periods: dict[tuple[bool, str], Mapping[SpendPeriod, int | None]] = {}
        self.cap = cap
        self.evicted = 0

    def __repr__(self) -> str:
        today = self._current_windows(self._total)["d"]
        return f"<SpendLimits ${format_nanos(today.spent)} today, ${format_nanos(today.reserved)} reserved>"

    @property
    def calendar(self) -> Calendar:
        return self._calendar

    def reconfigure(self, cap: Cap) -> bool:
        """Take other caps. True if their time zone is another: then all counts start anew and must be loaded again."""
        # Only a time zone moves the windows themselves; other caps are compared with the same counts.
        moved = cap.timezone != self.cap.timezone
        self.cap = cap
        self._shared_periods.clear()
        if moved:
            self._calendar = Calendar(cap.timezone)
            self._window_ends.clear()
            self._total = SpendAccount()
            self._users.clear()
            self.mark_unloaded()
        return moved

    # ── shared with other instances ──────────────────────────────────────────────────────────

    def share(self, upstream: str, escrow: Escrow) -> None:
        """Count the windows that have a cap together with other instances, under the upstream's name."""
        self._upstream, self._escrow = upstream, escrow

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
        account = self._account_of(user)
        return (
            *self.total_windows(),
            *self._share_windows(self._escrow, account, user, self._periods_of(user, tier)),
        )

    def total_windows(self) -> tuple[EscrowWindow, ...]:
        """The current windows of all users together."""
        if self._escrow is None:
            return ()
        self._current_windows(self._total)
        return self._share_windows(self._escrow, self._total, None, self._periods_of_all())

    def every_window(self, user: str) -> tuple[EscrowWindow, ...]:
        """All current windows of one user, whatever cap rests on them."""
        if self._escrow is None:
            return ()
        account = self._account_of(user)
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
        for name, cap, window in self._caps_on(reservation):
            if window.escrow is shared:
                text = self._refusal_text(name, cap, window, amount)
                if away:
                    text += " The shared store is away, and what this instance had set aside is used up."
                return CapReached(text, window.end)
        return CapReached("The cap was changed meanwhile.", None)

    def _periods_of_all(self) -> Mapping[SpendPeriod, int | None]:
        found = self._shared_periods.get((False, ""))
        if found is None:
            total = self.cap.total
            found = self._shared_periods[False, ""] = _lowest_limits(() if total is None else (total,), "d", "month")
        return found

    def _periods_of(self, user: str, tier: str) -> Mapping[SpendPeriod, int | None]:
        key = (True, "" if user == UNATTRIBUTED else f"t{tier}")
        found = self._shared_periods.get(key)
        if found is None:
            caps = self.caps_of(user, tier)
            # X-Cost-Used-Today is stated to everybody who has a cap, of whichever window.
            found = self._shared_periods[key] = _lowest_limits(caps, *(("d",) if caps else ()))
        return found

    def _share_windows(
        self, escrow: Escrow, account: SpendAccount, user: str | None, limits: Mapping[SpendPeriod, int | None]
    ) -> tuple[EscrowWindow, ...]:
        windows = account.windows
        found = []
        for period, limit in limits.items():
            window = windows[period]
            shared = window.escrow
            if shared is None:
                start = self._calendar.window(period, window.end - 1)[0]
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
        self._current_windows(self._total)
        account = self._account_of(user)
        if account.counted_since is not None and began_at is not None:
            # The ledger is asked for what began before `counted_since`: this call is counted here, and only here.
            account.counted_since = min(account.counted_since, began_at)
        shared = self.shared_windows(user, tier) if self._escrow is not None else ()
        return Reservation(self, user, tier, (self._total, account), shared)

    def check(self, reservation: Reservation, amount: int) -> None:
        """Raises CapReached if `amount` more would pass a cap, SliceNeeded if a slice of one is to be had first."""
        each = self.cap.per_call
        if each is not None and amount > to_nanos(each):
            text = f"It may cost ${format_nanos(amount)}, and a call may cost ${each:f} (cap.per_call)."
            raise CapReached(text, None)
        escrow = self._escrow
        shared: list[EscrowWindow] = []
        is_short = False
        if escrow is not None and escrow.decides_locally:
            escrow.count_fallback()
        for name, cap, window in self._caps_on(reservation):
            if escrow is not None and window.escrow is not None and not escrow.decides_locally:
                shared.append(window.escrow)
                is_short = is_short or not escrow.covers(window.escrow, amount)
                continue
            limit = to_nanos(cap.amount)
            if window.counted + window.reserved + amount > limit:
                raise CapReached(self._refusal_text(name, cap, window, amount), window.end)
        if escrow is not None and is_short:
            raise SliceNeeded(self, escrow, reservation, shared, amount)

    def warn_if_due(self, reservation: Reservation) -> None:
        """Report each share of `cap.warn` once in a window, when it is reached."""
        if self._on_warn is None:
            return
        for name, cap, window in self._caps_on(reservation):
            # A cap of $0 is reached by the first nano-dollar, and must not divide by zero.
            share = window.counted / (to_nanos(cap.amount) or 1)
            reached = max((mark for mark in self.cap.warn if mark <= share), default=0.0)
            if reached > window.warned:
                window.warned = reached
                self._on_warn(name, cap, reached)

    # ── what others ask ──────────────────────────────────────────────────────────────────────

    def spent(self, period: SpendPeriod, user: str | None = None) -> int:
        """Nano-dollars spent in the current window, by one user or by all."""
        if user is None:
            return self._current_windows(self._total)[period].spent
        account = self._users.get(user)
        return self._current_windows(account)[period].spent if account is not None else 0

    @property
    def reserved(self) -> int:
        """Nano-dollars that all calls under way have reserved."""
        return self._current_windows(self._total)["month"].reserved + self.reserved_elsewhere

    @property
    def reserved_elsewhere(self) -> int:
        """The part of it that other instances have reserved, as they said last."""
        shared = self._current_windows(self._total)["month"].escrow
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
        account = self._users.get(user) or SpendAccount()
        windows = self._current_windows(account)
        for cap in caps:
            window = windows[cap.period]
            if account.is_exhausted(window, to_nanos(cap.amount)):
                turns_at = self._calendar.format_moment(window.end)
                text = f"${format_nanos(window.counted)} of {cap} is spent; it turns at {turns_at}"
                return text, window.end - self._now()
        return None

    def total_share(self) -> float | None:
        """The share of the total cap that is spent, at least 1 if a usual call has no room in it; None without one."""
        total = self.cap.total
        if total is None:
            return None
        window, limit = self._current_windows(self._total)[total.period], to_nanos(total.amount)
        share = window.spent / (limit or 1)
        return max(share, 1.0) if self._total.is_exhausted(window, limit) else share

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

        for user, account in self._users.items():
            # The tier costs a look-up, so only users who can be above some cap pay for it.
            if any(account.windows[period].counted >= threshold for period, threshold in lowest.items()):
                count += any(is_above(account, cap) for cap in self.caps_of(user, tier_of(user)))
        return count

    def counted(self, period: SpendPeriod, user: str) -> int:
        """Nano-dollars of the current window that stand against this user's caps."""
        account = self._users.get(user)
        return self._current_windows(account)[period].counted if account is not None else 0

    def forgive(self, user: str) -> dict[SpendPeriod, int]:
        """Take today's spend off this user's caps, that of the month included; what this took off each window.

        The windows of all users keep it: the money is gone.
        """
        account = self._users.get(user)
        if account is None:
            return {}
        windows = self._current_windows(account)
        today = windows["d"].counted
        # An hour may count less than the day so far: no window gives back more than it counts.
        taken = {period: min(windows[period].counted, today) for period in PERIODS}
        for period, amount in taken.items():
            windows[period].forgive(amount)
        return {period: amount for period, amount in taken.items() if amount}

    def top_spenders(self, period: SpendPeriod, count: int) -> list[tuple[str, int]]:
        """Who spent most in the current window, and how many nano-dollars."""
        spent = [(user, self._current_windows(account)[period].spent) for user, account in self._users.items()]
        return sorted((pair for pair in spent if pair[1]), key=lambda pair: -pair[1])[:count]

    # ── out of the ledger ────────────────────────────────────────────────────────────────────

    def window_starts(self) -> dict[str, float]:
        """When each current window began."""
        now = self._now()
        return {period: self._calendar.window(period, now)[0] for period in PERIODS}

    def mark_unloaded(self) -> None:
        """Nothing has been loaded yet: until `load`, everybody may have spent something."""
        self._unknown_until = math.inf

    def is_loaded(self, user: str) -> bool:
        """Whether all that this user spent is counted here. If the store is there, it says so before each call."""
        if self._escrow is not None and self._escrow.away_because is None:
            return True
        account = self._users.get(user)
        return account.counted_since is None if account is not None else self._now() >= self._unknown_until

    def counted_since(self, user: str) -> float | None:
        """The moment up to which the ledger is to be asked about a user; None: for all that it has."""
        account = self._users.get(user)
        return account.counted_since if account is not None else None

    def load(self, window_starts: Mapping[str, float], spent: Mapping[str, WindowTotals], forgiven: Forgiven) -> None:
        """Add what the ledger has of these windows (by when each began).

        Of the users, the largest spenders of the longest window get an account; the others stay unknown.
        """
        current = self.window_starts()
        periods = [period for period in PERIODS if period in spent and window_starts[period] == current[period]]
        total = self._current_windows(self._total)
        for period in periods:
            total[period].load(spent[period].total)
        named = set[str]().union(*(spent[period].users for period in periods))
        by_spend = spent[periods[-1]].users if periods else ()
        kept = [user for user in by_spend if _is_fully_named(user, spent)][:MAX_USERS]
        left_out = len(kept) < len(named) or any(spent[period].rest for period in periods)
        # When the longest window ends, nobody's spend of before it counts any more: then all users are known again.
        self._unknown_until = total["month"].end if left_out else 0.0
        for user in reversed(kept):  # the largest last, as if they had called last
            if user in self._users:
                continue  # who called meanwhile is counted from then on; the ledger is asked when they call again
            totals = UserTotals(
                {period: spent[period].users.get(user, 0) for period in periods},
                {period: forgiven.get(period, {}).get(user, 0) for period in periods},
            )
            self.load_user(user, totals, window_starts)

    def load_user(self, user: str, totals: UserTotals, window_starts: Mapping[str, float]) -> None:
        """Add what the ledger has of one user in these windows. Nothing happens if it has been added before."""
        account = self._account_of(user, is_known=False)
        if account.counted_since is None:
            return
        account.counted_since = None
        current = self.window_starts()
        for period, window in account.windows.items():
            if window_starts[period] == current[period]:  # a window may have ended while the ledger was asked
                if window.escrow is None or not window.escrow.is_heard:
                    window.forgive(totals.forgiven.get(period, 0))
                window.load(totals.spent.get(period, 0))

    # ── accounts and windows ─────────────────────────────────────────────────────────────────

    def _caps_on(self, reservation: Reservation) -> list[tuple[str, Spend, WindowSpend]]:
        total, own = reservation.windows
        user = reservation.user
        whom = "calls of nobody (cap.unattributed)" if user == UNATTRIBUTED else f"{user} (cap.per_user)"
        caps = [(whom, cap, own[cap.period]) for cap in self.caps_of(user, reservation.tier)]
        if self.cap.total is not None:
            caps.append(("all calls together (cap.total)", self.cap.total, total[self.cap.total.period]))
        return caps

    def _refusal_text(self, name: str, cap: Spend, window: WindowSpend, amount: int) -> str:
        used = f"${format_nanos(window.counted)} is spent"
        reserved = window.reserved + (window.escrow.open_elsewhere if window.escrow is not None else 0)
        used += f" and ${format_nanos(reserved)} reserved" if reserved else ""
        return (
            f"It may cost ${format_nanos(amount)}, and of {cap} for {name} {used}; "
            f"it turns at {self._calendar.format_moment(window.end)}."
        )

    def _account_of(self, user: str, *, is_known: bool = True) -> SpendAccount:
        """This user's account, made if there is none.

        A new one is complete at once if no user is unknown, unless the caller says that this one is not known.
        """
        account = self._users.get(user)
        if account is None:
            now = self._now()
            account = SpendAccount(None if is_known and now >= self._unknown_until else now)
            self._users[user] = account
            self._current_windows(account)
            if len(self._users) > MAX_USERS:
                self._evict_user()
        else:
            self._users.move_to_end(user)
            self._current_windows(account)
        return account

    def _current_windows(self, account: SpendAccount) -> Windows:
        """Its windows, with a fresh one in place of each that has ended."""
        now, windows = self._now(), account.windows
        for period in PERIODS:
            if now >= self._window_ends.get(period, 0.0):
                self._window_ends[period] = self._calendar.window(period, now)[1]
            window = windows.get(period)
            if window is None or now >= window.end:
                windows[period] = WindowSpend(self._window_ends[period])
        return windows

    def _is_untold(self, window: WindowSpend) -> bool:
        return self._escrow is not None and window.escrow is not None and not self._escrow.is_settled(window.escrow)

    def _evict_user(self) -> None:
        """Forget a user. What they spent is in the ledger, which is asked when they come again."""
        # Of those unseen for longest, the one who spent least: if that is nothing, nobody becomes unknown.
        now, candidates = self._now(), []
        for user, account in islice(self._users.items(), len(self._users) - 1):  # all but the newest
            # A reservation must come back to the account that it was made in, so its owner stays; so does one of whom
            # the store does not know all.
            if not any(window.reserved or self._is_untold(window) for window in account.windows.values()):
                spent = max((window.spent for window in account.windows.values() if window.end > now), default=0)
                candidates.append((spent, user))
            if len(candidates) >= EVICTION_CANDIDATES:
                break
        if not candidates:
            return
        spent, user = min(candidates)
        evicted = self._users.pop(user)
        self.evicted += 1
        for window in evicted.windows.values():
            if self._escrow is not None and window.escrow is not None:
                self._escrow.forget_window(window.escrow)
        if spent or evicted.counted_since is not None:
            self._unknown_until = max(self._unknown_until, evicted.windows["month"].end)


def _lowest_limits(caps: Sequence[Spend], *also: SpendPeriod) -> dict[SpendPeriod, int | None]:
    """The lowest of several caps by period, in nano-dollars; None for periods that are `also` counted without one."""
    found: dict[SpendPeriod, int | None] = dict.fromkeys(also)
    for cap in caps:
        limit, lowest = to_nanos(cap.amount), found.get(cap.period)
        found[cap.period] = limit if lowest is None else min(lowest, limit)
    return found


def _is_fully_named(user: str, spent: Mapping[str, WindowTotals]) -> bool:
    """Whether each window either names this user or names everybody who spent anything in it."""
    return all(user in window.users or not window.rest for window in spent.values())


def _windows_begun_by(windows: Windows, window_starts: Mapping[str, float], at: float) -> Windows:
    return {period: window for period, window in windows.items() if window_starts[period] <= at}
