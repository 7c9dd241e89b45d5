"""The accounts of all users at one upstream, and what the ledger has of them.

Counts live in memory and come out of the ledger at a start. For at most MAX_USERS users they are told apart; who was
forgotten, or has not been loaded yet, counts as unknown (`is_loaded`), and the ledger is asked before a call of theirs
is reserved (spend_lookup.py).

    unknown ──► loaded ──► forgotten, for want of room: unknown again until the longest window ends

All money is in whole nano-dollars (1e-9 $), all times are the wall clock's seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice

from proxy.egress.billing.spend_account import SpendAccount, Windows, WindowSpend
from proxy.egress.billing.windows import PERIODS, Calendar
from proxy.ledger.store import UserTotals, WindowTotals
from proxy.store.escrow_sync import Escrow
from proxy.units import SpendPeriod

MAX_USERS = 10_000  # about 500 bytes each
EVICTION_CANDIDATES = 32  # users that have not called for longest, of whom the one who spent least is forgotten

Forgiven = Mapping[str, Mapping[str, int]]  # nano-dollars that an operator forgave, by window and user


class SpendAccounts:
    """What each user spent, and all of them together.

    calendar: whose windows they are
    total: the account of all users together
    users: those that are told apart; the one who called last is last
    evicted: how many users were forgotten for want of room
    escrow: if several instances count their windows together
    """

    def __init__(self, timezone: str, *, now: Callable[[], float]) -> None:
        self._now = now
        self._window_ends: dict[SpendPeriod, float] = {}
        self._unknown_until = 0.0  # until then, a user who has no account here may have spent something
        self.calendar = Calendar(timezone)
        self.total = SpendAccount()
        self.users: OrderedDict[str, SpendAccount] = OrderedDict()
        self.evicted = 0
        self.escrow: Escrow | None = None

    def __repr__(self) -> str:
        return f"<SpendAccounts of {len(self.users)} users>"

    def start_anew(self, timezone: str) -> None:
        """Count in another time zone: all that was counted must be loaded again."""
        self.calendar = Calendar(timezone)
        self._window_ends.clear()
        self.total = SpendAccount()
        self.users.clear()
        self.mark_unloaded()

    def find_or_open(self, user: str, *, is_known: bool = True) -> SpendAccount:
        """This user's account, made if there is none.

        A new one is complete at once if no user is unknown, unless the caller says that this one is not known.
        """
        account = self.users.get(user)
        if account is None:
            now = self._now()
            account = SpendAccount(None if is_known and now >= self._unknown_until else now)
            self.users[user] = account
            self.current_windows(account)
            if len(self.users) > MAX_USERS:
                self._evict_user()
        else:
            self.users.move_to_end(user)
            self.current_windows(account)
        return account

    def current_total(self) -> Windows:
        """The current windows of all users together."""
        return self.current_windows(self.total)

    def find_window(self, user: str, period: SpendPeriod) -> WindowSpend | None:
        """The current window of a user who has an account."""
        account = self.users.get(user)
        return self.current_windows(account)[period] if account is not None else None

    def top_spenders(self, period: SpendPeriod, count: int) -> list[tuple[str, int]]:
        """Who spent most in the current window, and how many nano-dollars."""
        spent = [(user, self.current_windows(account)[period].spent) for user, account in self.users.items()]
        return sorted((pair for pair in spent if pair[1]), key=lambda pair: -pair[1])[:count]

    def current_windows(self, account: SpendAccount) -> Windows:
        """Its windows, with a fresh one in place of each that has ended."""
        now, windows = self._now(), account.windows
        if now < account.turns_at:
            return windows
        for period in PERIODS:
            if now >= self._window_ends.get(period, 0.0):
                self._window_ends[period] = self.calendar.window(period, now)[1]
            window = windows.get(period)
            if window is None or now >= window.end:
                windows[period] = WindowSpend(self._window_ends[period])
        account.turns_at, account.shared = min(window.end for window in windows.values()), None
        return windows

    def _is_untold(self, window: WindowSpend) -> bool:
        return self.escrow is not None and window.escrow is not None and not self.escrow.is_settled(window.escrow)

    def _evict_user(self) -> None:
        """Forget a user. What they spent is in the ledger, which is asked when they come again."""
        # Of those unseen for longest, the one who spent least: if that is nothing, nobody becomes unknown.
        now, candidates = self._now(), []
        for user, account in islice(self.users.items(), len(self.users) - 1):  # all but the newest
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
        evicted = self.users.pop(user)
        self.evicted += 1
        for window in evicted.windows.values():
            if self.escrow is not None and window.escrow is not None:
                self.escrow.forget_window(window.escrow)
        if spent or evicted.counted_since is not None:
            self._unknown_until = max(self._unknown_until, evicted.windows["month"].end)

    # ── out of the ledger ────────────────────────────────────────────────────────────────────

    def window_starts(self) -> dict[str, float]:
        """When each current window began."""
        now = self._now()
        return {period: self.calendar.window(period, now)[0] for period in PERIODS}

    def mark_unloaded(self) -> None:
        """Nothing has been loaded yet: until `load`, everybody may have spent something."""
        self._unknown_until = math.inf

    def is_loaded(self, user: str) -> bool:
        """Whether all that this user spent is counted here. If the store is there, it says so before each call."""
        if self.escrow is not None and self.escrow.away_because is None:
            return True
        account = self.users.get(user)
        return account.counted_since is None if account is not None else self._now() >= self._unknown_until

    def counted_since(self, user: str) -> float | None:
        """The moment up to which the ledger is to be asked about a user; None: for all that it has."""
        account = self.users.get(user)
        return account.counted_since if account is not None else None

    def load(self, window_starts: Mapping[str, float], spent: Mapping[str, WindowTotals], forgiven: Forgiven) -> None:
        """Add what the ledger has of these windows (by when each began).

        Of the users, the largest spenders of the longest window get an account; the others stay unknown.
        """
        current = self.window_starts()
        periods = [period for period in PERIODS if period in spent and window_starts[period] == current[period]]
        total = self.current_total()
        for period in periods:
            total[period].load(spent[period].total)
        named = set[str]().union(*(spent[period].users for period in periods))
        by_spend = spent[periods[-1]].users if periods else ()
        kept = [user for user in by_spend if _is_fully_named(user, spent)][:MAX_USERS]
        left_out = len(kept) < len(named) or any(spent[period].rest for period in periods)
        # When the longest window ends, nobody's spend of before it counts any more: then all users are known again.
        self._unknown_until = total["month"].end if left_out else 0.0
        for user in reversed(kept):  # the largest last, as if they had called last
            if user in self.users:
                continue  # who called meanwhile is counted from then on; the ledger is asked when they call again
            totals = UserTotals(
                {period: spent[period].users.get(user, 0) for period in periods},
                {period: forgiven.get(period, {}).get(user, 0) for period in periods},
            )
            self.load_user(user, totals, window_starts)

    def load_user(self, user: str, totals: UserTotals, window_starts: Mapping[str, float]) -> None:
        """Add what the ledger has of one user in these windows. Nothing happens if it has been added before."""
        account = self.find_or_open(user, is_known=False)
        if account.counted_since is None:
            return
        account.counted_since = None
        current = self.window_starts()
        for period, window in account.windows.items():
            if window_starts[period] == current[period]:  # a window may have ended while the ledger was asked
                if window.escrow is None or not window.escrow.is_heard:
                    window.forgive(totals.forgiven.get(period, 0))
                window.load(totals.spent.get(period, 0))


def _is_fully_named(user: str, spent: Mapping[str, WindowTotals]) -> bool:
    """Whether each window either names this user or names everybody who spent anything in it."""
    return all(user in window.users or not window.rest for window in spent.values())
