"""One owner's money: a pot for each window, and what a call of theirs usually sets aside."""

from __future__ import annotations

from proxy.egress.money.pot import Pot, Pots

USUAL = 0.1  # the weight of the newest call in what a call usually reserves
LITTLE = 0.2  # of a cap: with more than that left it is never spent, however large a usual call is


class Wallet:
    """A user's, or that of all together. `usual` is in nano-dollars, 0 until a call asked. `since` is None where
    everything that was spent is in it, else the moment (wall clock) from which on it is: what came before is the
    ledger's to say."""

    __slots__ = ("pots", "since", "usual")

    def __init__(self, since: float | None = None) -> None:
        self.pots: Pots = {}
        self.since = since
        self.usual = 0.0

    def asked(self, amount: int, *, fitted: bool) -> None:
        """A call of this size found room, or none. One that found none says what is usual only where nobody else
        does: a giant that is refused again and again is nobody's usual call."""
        if not self.usual:
            self.usual = float(amount)
        elif fitted:
            self.usual += (amount - self.usual) * USUAL

    def spent_up(self, pot: Pot, limit: int) -> bool:
        """Whether so little is left of a cap (nano-dollars) that a usual call does not fit. Computed out of what is
        spent: reservations of calls under way may come back."""
        left = limit - pot.counted
        return left <= 0 or left < min(self.usual, limit * LITTLE)
