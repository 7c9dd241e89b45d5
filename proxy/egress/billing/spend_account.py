"""The money of one user or of all: what was spent, forgiven and reserved in the windows of the calendar.

All money is in whole nano-dollars (1e-9 $), all times are the wall clock's seconds.
"""

from __future__ import annotations

from proxy.errors import OutriggerError
from proxy.store.escrow import EscrowWindow
from proxy.units import SpendPeriod

USUAL_WEIGHT = 0.1  # of the newest call, in the moving average of what a call usually reserves
MAX_SHARE_LEFT = 0.2  # of a cap: if more than this is left, the cap is not spent, however large a usual call is


class CapReached(OutriggerError):
    """A call that would pass a cap. `resets_at` is the end of the cap's window; None for a cap on each single call."""

    def __init__(self, text: str, resets_at: float | None) -> None:
        super().__init__(text)
        self.resets_at = resets_at


class WindowSpend:
    """The money of one account in one window (an hour, a day, a month).

    end: when the window ends
    spent: what was settled, on all instances as far as known
    elsewhere: the part of `spent` that this process did not spend: what the ledger had, what other instances spent
    escrow: its part in the store, if several instances count it together
    forgiven: the part of `spent` that an operator no longer counts against caps
    reserved: what calls under way may still cost
    warned: the share of a cap of which a warning was given last
    """

    __slots__ = ("elsewhere", "end", "escrow", "forgiven", "reserved", "spent", "warned")

    def __init__(self, end: float) -> None:
        self.end = end
        self.spent = 0
        self.elsewhere = 0
        self.forgiven = 0
        self.reserved = 0
        self.warned = 0.0
        self.escrow: EscrowWindow | None = None

    @property
    def counted(self) -> int:
        """What of the settled money stands against a cap."""
        return max(0, self.spent - self.forgiven)

    def load(self, amount: int) -> None:
        """Count what the ledger has; nothing if the store has said what was spent."""
        if self.escrow is None or not self.escrow.is_heard:
            self.spent += amount
            self.elsewhere += amount

    def forgive(self, amount: int) -> None:
        self.forgiven += amount
        self.warned = 0.0

    def set_forgiven(self, amount: int) -> None:
        """Take over what the store has as forgiven, by whichever instance."""
        if amount != self.forgiven:
            self.forgive(amount - self.forgiven)


Windows = dict[SpendPeriod, WindowSpend]


class SpendAccount:
    """The windows of one user, or those of all users together.

    windows: the current window of each period
    turns_at: when the first of them ends; 0 until there are any
    shared: those that several instances count together, behind the caps that they were found by; None until asked for
    counted_since: None if everything that was spent is in the windows; else the moment from which on it is, while what
        came before is the ledger's to say
    usual_reservation: what a call usually reserves; 0 until the first call
    """

    __slots__ = ("counted_since", "shared", "turns_at", "usual_reservation", "windows")

    def __init__(self, counted_since: float | None = None) -> None:
        self.windows: Windows = {}
        self.turns_at = 0.0
        self.shared: tuple[object, tuple[EscrowWindow, ...]] | None = None
        self.counted_since = counted_since
        self.usual_reservation = 0.0

    def note_request(self, amount: int, *, fitted: bool) -> None:
        """Learn what is usual from a call that was let through.

        A refused call counts only if there is no other: a giant that is refused again and again is nobody's usual call.
        """
        if not self.usual_reservation:
            self.usual_reservation = float(amount)
        elif fitted:
            self.usual_reservation += (amount - self.usual_reservation) * USUAL_WEIGHT

    def is_exhausted(self, window: WindowSpend, limit: int) -> bool:
        """Whether so little is left of a cap that a usual call does not fit.

        Reservations of calls under way are left out, since they may be released again.
        """
        left = limit - window.counted
        return left <= 0 or left < min(self.usual_reservation, limit * MAX_SHARE_LEFT)
