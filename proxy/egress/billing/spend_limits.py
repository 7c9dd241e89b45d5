"""What an upstream's calls may cost: reserved before a call, settled after it, counted by window and user.

Decisions are synchronous, so calls at once cannot all pass a check that only the first of them should. What is
reserved counts as spent, so a cap is passed by the error of the estimates in flight at most.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice

from proxy.egress.billing.windows import PERIODS, Calendar
from proxy.errors import OutriggerError
from proxy.ledger.store import UserTotals, WindowTotals
from proxy.observe.reserved_users import UNATTRIBUTED
from proxy.policy.schema.upstream import Cap
from proxy.policy.values import ANY_TIER, Spend
from proxy.units import Period, format_nanos, to_nanos

# [merged from egress/billing/wallet] One owner's money: a pot for each window, and what a call of theirs usually
# sets aside.
USUAL = 0.1  # the weight of the newest call in what a call usually reserves
LITTLE = 0.2  # of a cap: with more than that left it is never spent, however large a usual call is


class SpendAccount:
    """A user's, or that of all together. `usual` is in nano-dollars, 0 until a call asked. `since` is None where
    everything that was spent is in it, else the moment (wall clock) from which on it is: what came before is the
    ledger's to say."""

    __slots__ = ("counted_since", "usual_reservation", "windows")

    def __init__(self, since: float | None = None) -> None:
        self.windows: Pots = {}
        self.counted_since = since
        self.usual_reservation = 0.0

    def note_request(self, amount: int, *, fitted: bool) -> None:
        """A call of this size found room, or none. One that found none says what is usual only where nobody else
        does: a giant that is refused again and again is nobody's usual call."""
        if not self.usual_reservation:
            self.usual_reservation = float(amount)
        elif fitted:
            self.usual_reservation += (amount - self.usual_reservation) * USUAL

    def is_exhausted(self, pot: WindowSpend, limit: int) -> bool:
        """Whether so little is left of a cap (nano-dollars) that a usual call does not fit. Computed out of what is
        spent: reservations of calls under way may come back."""
        left = limit - pot.counted
        return left <= 0 or left < min(self.usual_reservation, limit * LITTLE)


# [merged from egress/billing/pot] One window's money, and what of it stands against a cap.
class WindowSpend:
    """One window's money. `forgiven` is the part of what was spent that an operator no longer counts."""

    __slots__ = ("end", "forgiven", "reserved", "spent", "warned")

    def __init__(self, end: float) -> None:
        self.end = end
        self.spent = 0
        self.forgiven = 0
        self.reserved = 0
        self.warned = 0.0

    @property
    def counted(self) -> int:
        """What stands against a cap."""
        return max(0, self.spent - self.forgiven)

    def forgive(self, amount: int) -> None:
        self.forgiven += amount
        self.warned = 0.0


Pots = dict[Period, WindowSpend]


MAX_USERS = 10_000  # about 500 bytes each; past that the one of a few longest unseen who spent least is forgotten
_LOOKED_AT = 32

Taken = Mapping[str, Mapping[str, int]]  # nano-dollars that were forgiven, by window and user
Warn = Callable[[str, Spend, float], None]  # whom or what, which cap, the share of `warn` that was reached


class CapReached(OutriggerError):
    """A call that would pass a cap. `turns` is when its window ends, None for a cap on each call alone."""

    def __init__(self, text: str, turns: float | None) -> None:
        super().__init__(text)
        self.resets_at = turns


class Reservation:
    """What one attempt has reserved. It stays in the windows in which it was made, even past their end."""

    __slots__ = ("_purse", "_wallets", "amount", "tier", "user", "windows")

    def __init__(self, purse: SpendLimits, user: str, tier: str, wallets: tuple[SpendAccount, SpendAccount]) -> None:
        """`wallets`: that of all, and this user's."""
        self._purse = purse
        self._wallets = wallets
        self.user = user
        self.tier = tier
        self.windows: tuple[Pots, Pots] = (dict(wallets[0].windows), dict(wallets[1].windows))
        self.amount = 0

    def reserve(self, amount: int) -> None:
        """Reserve so much. Raises CapReached, and then nothing is reserved."""
        self.release()
        fitted = False
        try:
            self._purse.check(self, amount)
            fitted = True
        finally:
            for wallet in self._wallets:
                wallet.note_request(amount, fitted=fitted)
        for pots in self.windows:
            for pot in pots.values():
                pot.reserved += amount
        self.amount = amount

    def spend(self, amount: int) -> None:
        """So much is gone for good; what is reserved stays so until it is released."""
        for pots in self.windows:
            for pot in pots.values():
                pot.spent += amount
        self._purse.warn(self)

    def restore(self, amount: int, since: Mapping[str, float], at: float) -> None:
        """What was loaded as spent, of a call that began `at`, is reserved again; `since`: when each window began."""
        self.windows = (_begun(self.windows[0], since, at), _begun(self.windows[1], since, at))
        for pots in self.windows:
            for pot in pots.values():
                pot.spent -= amount
                pot.reserved += amount
        self.amount = amount

    def release(self) -> None:
        """Give back what is still reserved; may be called again to no effect."""
        amount, self.amount = self.amount, 0
        for pots in self.windows:
            for pot in pots.values():
                pot.reserved -= amount


class SpendLimits:
    """One an upstream. Counts of all users and of the whole are kept whether or not a cap rests on them, so that
    a policy that names one counts what was spent before it did."""

    def __init__(self, cap: Cap, *, now: Callable[[], float], on_warn: Warn | None = None) -> None:
        self._now = now
        self._on_warn = on_warn
        self._calendar = Calendar(cap.timezone)
        self._turns: dict[Period, float] = {}
        self._total = SpendAccount()
        self._users: OrderedDict[str, SpendAccount] = OrderedDict()
        self._doubt = 0.0  # until then (wall clock) one who is not remembered may have spent something
        self.cap = cap
        self.evicted = 0

    def __repr__(self) -> str:
        today = self._at_hand(self._total)["d"]
        return f"<SpendLimits ${format_nanos(today.spent)} today, ${format_nanos(today.reserved)} reserved>"

    @property
    def calendar(self) -> Calendar:
        return self._calendar

    def reconfigure(self, cap: Cap) -> bool:
        """Take other caps; True where their time zone is another, so that all counts start anew and must be
        loaded again."""
        moved = cap.timezone != self.cap.timezone
        self.cap = cap
        if moved:
            self._calendar = Calendar(cap.timezone)
            self._turns.clear()
            self._total = SpendAccount()
            self._users.clear()
            self.mark_unloaded()
        return moved

    # ── before and after a call ──────────────────────────────────────────────────────────────

    def reservation(self, user: str, tier: str, at: float | None = None) -> Reservation:
        """A call's own; nothing is reserved by it yet. `at`: when the call began, where that was before now."""
        self._at_hand(self._total)
        wallet = self._of(user)
        if wallet.counted_since is not None and at is not None:
            wallet.counted_since = min(wallet.counted_since, at)
        return Reservation(self, user, tier, (self._total, wallet))

    def check(self, hold: Reservation, amount: int) -> None:
        """Raises CapReached where `amount` more would pass a cap."""
        each = self.cap.per_call
        if each is not None and amount > to_nanos(each):
            text = f"It may cost ${format_nanos(amount)}, and a call may cost ${each:f} (cap.per_call)."
            raise CapReached(text, None)
        for name, spend, pot in self._limits(hold):
            limit = to_nanos(spend.amount)
            if pot.counted + pot.reserved + amount > limit:
                raise CapReached(self._refused(name, spend, pot, amount), pot.end)

    def warn(self, hold: Reservation) -> None:
        if self._on_warn is None:
            return
        for name, spend, pot in self._limits(hold):
            share = pot.counted / (to_nanos(spend.amount) or 1)
            reached = max((mark for mark in self.cap.warn if mark <= share), default=0.0)
            if reached > pot.warned:
                pot.warned = reached
                self._on_warn(name, spend, reached)

    # ── what others ask ──────────────────────────────────────────────────────────────────────

    def spent(self, period: Period, user: str | None = None) -> int:
        """Nano-dollars of this window so far, of one user or of all."""
        if user is None:
            return self._at_hand(self._total)[period].spent
        wallet = self._users.get(user)
        return self._at_hand(wallet)[period].spent if wallet is not None else 0

    @property
    def reserved(self) -> int:
        return self._at_hand(self._total)["month"].reserved

    def caps_of(self, user: str, tier: str) -> tuple[Spend, ...]:
        if user == UNATTRIBUTED:
            return () if self.cap.unattributed is None else (self.cap.unattributed,)
        return self.cap.per_user.get(tier) or self.cap.per_user.get(ANY_TIER) or ()

    def exhausted_cap(self, user: str, tier: str) -> tuple[str, float] | None:
        """Which cap of this user's is spent, in words, and the seconds until its window turns; None where none is.
        One with so little left that a usual call of theirs does not fit counts as spent."""
        spends = self.caps_of(user, tier)
        if not spends:
            return None
        wallet = self._users.get(user) or SpendAccount()
        pots = self._at_hand(wallet)
        for spend in spends:
            pot = pots[spend.period]
            if wallet.is_exhausted(pot, to_nanos(spend.amount)):
                turns_at = self._calendar.format_moment(pot.end)
                text = f"${format_nanos(pot.counted)} of {spend} is spent; it turns at {turns_at}"
                return text, pot.end - self._now()
        return None

    def total_share(self) -> float | None:
        """How much of the total cap is spent, 1 where a usual call has no room in it; None without one."""
        total = self.cap.total
        if total is None:
            return None
        pot, limit = self._at_hand(self._total)[total.period], to_nanos(total.amount)
        share = pot.spent / (limit or 1)
        return max(share, 1.0) if self._total.is_exhausted(pot, limit) else share

    def count_users_above(self, share: float, tier_of: Callable[[str], str]) -> int:
        """How many users (the unattributed are one) have spent more than this share of a cap of their own, or have
        no room in it for a usual call."""
        spends = [spend for several in self.cap.per_user.values() for spend in several]
        spends += [self.cap.unattributed] if self.cap.unattributed is not None else []
        least: dict[Period, float] = {}
        for spend in spends:
            some = min(share, 1.0 - LITTLE) * to_nanos(spend.amount)
            least[spend.period] = min(least.get(spend.period, float("inf")), some)
        if not least:
            return 0
        now, count = self._now(), 0

        def past(wallet: SpendAccount, spend: Spend) -> bool:
            pot, limit = wallet.windows[spend.period], to_nanos(spend.amount)
            return pot.end > now and (pot.counted > share * limit or wallet.is_exhausted(pot, limit))

        for user, wallet in self._users.items():
            # A tier is looked up only of who may have come so far.
            if any(wallet.windows[period].counted >= some for period, some in least.items()):
                count += any(past(wallet, spend) for spend in self.caps_of(user, tier_of(user)))
        return count

    def counted(self, period: Period, user: str) -> int:
        """Nano-dollars of this window that stand against this user's caps."""
        wallet = self._users.get(user)
        return self._at_hand(wallet)[period].counted if wallet is not None else 0

    def forgive(self, user: str) -> dict[Period, int]:
        """Today's spend stands against none of this user's caps any more, that of the month included; what this
        took off each window. The whole's windows keep it: the money is gone."""
        wallet = self._users.get(user)
        if wallet is None:
            return {}
        pots = self._at_hand(wallet)
        today = pots["d"].counted
        taken = {period: min(pots[period].counted, today) for period in PERIODS}
        for period, amount in taken.items():
            pots[period].forgive(amount)
        return {period: amount for period, amount in taken.items() if amount}

    def top_spenders(self, period: Period, count: int) -> list[tuple[str, int]]:
        """Who spent most in this window."""
        found = [(user, self._at_hand(wallet)[period].spent) for user, wallet in self._users.items()]
        return sorted((pair for pair in found if pair[1]), key=lambda pair: -pair[1])[:count]

    # ── out of the ledger ────────────────────────────────────────────────────────────────────

    def window_starts(self) -> dict[str, float]:
        """When each window began."""
        now = self._now()
        return {period: self._calendar.window(period, now)[0] for period in PERIODS}

    def mark_unloaded(self) -> None:
        """Nothing has been counted yet: whoever is not remembered may have spent something, until `load`."""
        self._doubt = math.inf

    def is_loaded(self, user: str) -> bool:
        """Whether all that this user spent is counted here. Where it is not, the ledger is asked (see recall) before
        a call of theirs is reserved."""
        wallet = self._users.get(user)
        return wallet.counted_since is None if wallet is not None else self._now() >= self._doubt

    def counted_since(self, user: str) -> float | None:
        """The moment up to which the ledger is to be asked; None: all that it has."""
        wallet = self._users.get(user)
        return wallet.counted_since if wallet is not None else None

    def load(self, windows: Mapping[str, float], spent: Mapping[str, WindowTotals], forgiven: Taken) -> None:
        """Add what the ledger has of these windows (when each began). Of users as many as are told apart, the largest
        spenders of the longest window; the others are in doubt."""
        began = self.window_starts()
        periods = [period for period in PERIODS if period in spent and windows[period] == began[period]]
        total = self._at_hand(self._total)
        for period in periods:
            total[period].spent += spent[period].total
        named = set[str]().union(*(spent[period].users for period in periods))
        kept = [user for user in (spent[periods[-1]].users if periods else ()) if _named(user, spent)][:MAX_USERS]
        left_out = len(kept) < len(named) or any(spent[period].rest for period in periods)
        self._doubt = total["month"].end if left_out else 0.0
        for user in reversed(kept):  # the largest last, as if they had called last
            if user in self._users:
                continue  # who called meanwhile is counted from then on, and asked for when they call again
            standing = UserTotals(
                {period: spent[period].users.get(user, 0) for period in periods},
                {period: forgiven.get(period, {}).get(user, 0) for period in periods},
            )
            self.load_user(user, standing, windows)

    def load_user(self, user: str, standing: UserTotals, windows: Mapping[str, float]) -> None:
        """Add what the ledger has of one user, in these windows; nothing where it is known already."""
        wallet = self._of(user, known=False)
        if wallet.counted_since is None:
            return
        wallet.counted_since = None
        began = self.window_starts()
        for period, pot in wallet.windows.items():
            if windows[period] == began[period]:  # it may have turned meanwhile
                pot.spent += standing.spent.get(period, 0)
                pot.forgive(standing.forgiven.get(period, 0))

    # ── windows ──────────────────────────────────────────────────────────────────────────────

    def _limits(self, hold: Reservation) -> list[tuple[str, Spend, WindowSpend]]:
        total, mine = hold.windows
        whom = "calls of nobody (cap.unattributed)" if hold.user == UNATTRIBUTED else f"{hold.user} (cap.per_user)"
        found = [(whom, spend, mine[spend.period]) for spend in self.caps_of(hold.user, hold.tier)]
        if self.cap.total is not None:
            found.append(("all calls together (cap.total)", self.cap.total, total[self.cap.total.period]))
        return found

    def _refused(self, name: str, spend: Spend, pot: WindowSpend, amount: int) -> str:
        used = f"${format_nanos(pot.counted)} is spent"
        used += f" and ${format_nanos(pot.reserved)} reserved" if pot.reserved else ""
        return (
            f"It may cost ${format_nanos(amount)}, and of {spend} for {name} {used}; "
            f"it turns at {self._calendar.format_moment(pot.end)}."
        )

    def _of(self, user: str, *, known: bool = True) -> SpendAccount:
        """This user's wallet. A new one has everything that was spent where nobody is in doubt, unless it is not
        `known` to."""
        wallet = self._users.get(user)
        if wallet is None:
            now = self._now()
            wallet = SpendAccount(None if known and now >= self._doubt else now)
            self._users[user] = wallet
            self._at_hand(wallet)
            if len(self._users) > MAX_USERS:
                self._evict()
        else:
            self._users.move_to_end(user)
            self._at_hand(wallet)
        return wallet

    def _at_hand(self, wallet: SpendAccount) -> Pots:
        """Its pots, with a fresh one for each window that has turned."""
        now, pots = self._now(), wallet.windows
        for period in PERIODS:
            if now >= self._turns.get(period, 0.0):
                self._turns[period] = self._calendar.window(period, now)[1]
            pot = pots.get(period)
            if pot is None or now >= pot.end:
                pots[period] = WindowSpend(self._turns[period])
        return pots

    def _evict(self) -> None:
        """Forget the one of a few longest unseen who spent least. What they spent is in the ledger, which is asked
        when they come again."""
        now, candidates = self._now(), []
        for user, wallet in islice(self._users.items(), len(self._users) - 1):  # all but the newest
            if not any(pot.reserved for pot in wallet.windows.values()):
                spent = max((pot.spent for pot in wallet.windows.values() if pot.end > now), default=0)
                candidates.append((spent, user))
            if len(candidates) >= _LOOKED_AT:
                break
        if not candidates:
            return
        spent, user = min(candidates)
        gone = self._users.pop(user)
        self.evicted += 1
        if spent or gone.counted_since is not None:
            self._doubt = max(self._doubt, gone.windows["month"].end)


def _named(user: str, spent: Mapping[str, WindowTotals]) -> bool:
    """Whether the ledger named this user in every window, or everybody who is in it."""
    return all(user in window.users or not window.rest for window in spent.values())


def _begun(pots: Pots, since: Mapping[str, float], at: float) -> Pots:
    """The windows that had begun by then."""
    return {period: pot for period, pot in pots.items() if since[period] <= at}
