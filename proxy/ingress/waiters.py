"""Those who wait for room: the most important first, in order of arrival among equals."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

ADMITTED = ""


class Waiter:
    """One who waits. Its future is set to ADMITTED, or to the reason why it is sent away."""

    __slots__ = ("future", "priority")

    def __init__(self, priority: int) -> None:
        self.priority = priority  # the lower, the more important
        self.future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(self, outcome: str) -> bool:
        """End the wait; False for one that was cancelled and has not run since."""
        if self.future.done():
            return False
        self.future.set_result(outcome)
        return True


class Waiters:
    """All operations take a time that does not grow with how many wait."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[Waiter, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, waiter: Waiter) -> None:
        self._levels.setdefault(waiter.priority, OrderedDict())[waiter] = None
        self._size += 1

    def first(self) -> Waiter:
        """Take out whose turn it is."""
        return self._take(min(self._levels), newest=False)

    def least(self) -> Waiter:
        """Take out the newest of the least important."""
        return self._take(max(self._levels), newest=True)

    def displaced_by(self, priority: int) -> Waiter | None:
        """Take out the one that must make room for an arrival, or None where all are as important."""
        return self.least() if self._levels and max(self._levels) > priority else None

    def discard(self, waiter: Waiter) -> bool:
        """Take one out; whether it was still here."""
        level = self._levels.get(waiter.priority)
        if level is None or waiter not in level:
            return False
        del level[waiter]
        self._took(waiter.priority, level)
        return True

    def _take(self, priority: int, *, newest: bool) -> Waiter:
        level = self._levels[priority]
        waiter, _ = level.popitem(last=newest)
        self._took(priority, level)
        return waiter

    def _took(self, priority: int, level: OrderedDict[Waiter, None]) -> None:
        self._size -= 1
        if not level:
            del self._levels[priority]
