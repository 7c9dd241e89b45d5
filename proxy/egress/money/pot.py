"""One window's money, and what of it stands against a cap."""

from __future__ import annotations

from proxy.units import Period


class Pot:
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


Pots = dict[Period, Pot]
