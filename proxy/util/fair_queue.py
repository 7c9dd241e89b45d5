"""Those who wait for room: the most important first, among equals the users in turn, each first come, first served."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

ADMITTED = ""


class Waiter:
    """One who waits. Its future is set to ADMITTED, or to the reason why it is sent away."""

    __slots__ = ("future", "priority", "user")

    def __init__(self, priority: int, user: str) -> None:
        self.priority = priority  # the lower, the more important
        self.user = user
        self.future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(self, outcome: str) -> bool:
        """End the wait; False for one that was cancelled and has not run since."""
        if self.future.done():
            return False
        self.future.set_result(outcome)
        return True


Level = OrderedDict[str, OrderedDict[Waiter, None]]  # of one priority: users, whose turn it is first


class Waiters:
    """A burst of one user's neither starves another's single request nor takes its place in a full queue."""

    def __init__(self) -> None:
        self._levels: dict[int, Level] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, waiter: Waiter) -> None:
        users = self._levels.setdefault(waiter.priority, OrderedDict())
        users.setdefault(waiter.user, OrderedDict())[waiter] = None
        self._size += 1

    def first(self) -> Waiter:
        """Take out whose turn it is; that user's next turn comes after everybody's."""
        users = self._levels[min(self._levels)]
        user, theirs = next(iter(users.items()))
        waiter = next(iter(theirs))
        users.move_to_end(user)
        self.discard(waiter)
        return waiter

    def least(self) -> Waiter:
        """Take out the newest of whoever has most waiting among the least important."""
        users = self._levels[max(self._levels)]
        theirs = max(users.values(), key=len)
        waiter = next(reversed(theirs))
        self.discard(waiter)
        return waiter

    def displaced_by(self, priority: int, user: str) -> Waiter | None:
        """Take out the one that must make room for an arrival; None where all are as important, and no user has
        more waiting than this one would have."""
        if not self._levels or (last := max(self._levels)) < priority:
            return None
        users = self._levels[last]
        if last == priority and max(map(len, users.values())) <= len(users.get(user, ())) + 1:
            return None
        return self.least()

    def discard(self, waiter: Waiter) -> bool:
        """Take one out; whether it was still here."""
        users = self._levels.get(waiter.priority)
        theirs = users.get(waiter.user) if users is not None else None
        if users is None or theirs is None or waiter not in theirs:
            return False
        del theirs[waiter]
        self._size -= 1
        if not theirs:
            del users[waiter.user]
        if not users:
            del self._levels[waiter.priority]
        return True
