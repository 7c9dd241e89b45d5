"""Queues in which nobody starves: users are served in turn (round robin), each user's waiters first come, first served.

A burst of one user delays that user's own requests, not another user's single one. HAProxy and Envoy know the scheme
as fair queueing; Nagle described it in 1985 (RFC 970). Neither class waits or wakes anybody: they keep the order, and
their owners keep the futures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


class FairQueue(Generic[W]):
    """Waiters of one importance. The first user in `_users` is the next to be served."""

    __slots__ = ("_size", "_users")

    def __init__(self) -> None:
        # Ordered dictionaries as queues: a waiter that gives up is removed in constant time.
        self._users: OrderedDict[str, OrderedDict[W, None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[W]:
        return chain.from_iterable(self._users.values())

    def append(self, user: str, waiter: W) -> None:
        self._users.setdefault(user, OrderedDict())[waiter] = None
        self._size += 1

    def append_left(self, user: str, waiter: W) -> None:
        """Put back a waiter that was popped and cannot be served yet: it is the next one again."""
        self.append(user, waiter)
        self._users[user].move_to_end(waiter, last=False)
        self._users.move_to_end(user, last=False)

    def remove(self, user: str, waiter: W) -> bool:
        """Remove a waiter that gave up; False if it was not in the queue any more."""
        waiters = self._users.get(user)
        if waiters is None or waiter not in waiters:
            return False
        del waiters[waiter]
        self._size -= 1
        if not waiters:
            del self._users[user]
        return True

    def pop_next(self, is_eligible: Callable[[W], bool] | None = None) -> W | None:
        """The eligible waiter whose turn it is, or None. Its user's next turn comes after everybody else's."""
        for user, waiters in self._users.items():
            for waiter in waiters:
                if is_eligible is None or is_eligible(waiter):
                    self._users.move_to_end(user)
                    self.remove(user, waiter)
                    return waiter
        return None

    def pop_newest_of_busiest(self) -> W:
        """The newest waiter of the user who has the most. Raises ValueError if the queue is empty."""
        user, waiters = max(self._users.items(), key=lambda item: len(item[1]))
        # The newest has waited for the shortest time, so its user loses least by it.
        waiter = next(reversed(waiters))
        self.remove(user, waiter)
        return waiter

    def count_of(self, user: str) -> int:
        return len(self._users.get(user, ()))

    def largest_count(self) -> int:
        """How many waiters the user with the most has."""
        return max(map(len, self._users.values()), default=0)

    def count_ahead(self, user: str) -> int:
        """How many waiters at least would be served before a new one of this user."""
        own = self.count_of(user)
        return own + sum(min(len(waiters), own + 1) for name, waiters in self._users.items() if name != user)


class PriorityFairQueue(Generic[W]):
    """A fair queue for each priority; the lower the number, the more important. `size`: how many wait in all."""

    def __init__(self) -> None:
        self._levels: dict[int, FairQueue[W]] = {}
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def append(self, priority: int, user: str, waiter: W) -> None:
        self._levels.setdefault(priority, FairQueue()).append(user, waiter)
        self.size += 1

    def remove(self, priority: int, user: str, waiter: W) -> bool:
        """Remove a waiter that gave up; False if it was not in the queue any more."""
        level = self._levels.get(priority)
        if level is None or not level.remove(user, waiter):
            return False
        self._shrink(priority, level)
        return True

    def pop_next(self) -> W | None:
        """The waiter whose turn it is among the most important, or None."""
        if not self._levels:
            return None
        # There are as many levels as tiers with waiters: a handful, so min() is cheaper than a heap.
        priority = min(self._levels)
        level = self._levels[priority]
        waiter = level.pop_next()
        self._shrink(priority, level)
        return waiter

    def pop_last(self) -> W:
        """The waiter that has the weakest claim: of the least important the newest of the user who has the most.
        Raises ValueError if the queue is empty."""
        priority = max(self._levels)
        level = self._levels[priority]
        waiter = level.pop_newest_of_busiest()
        self._shrink(priority, level)
        return waiter

    def pop_displaced_by(self, priority: int, user: str) -> W | None:
        """The waiter that must make room for an arrival at a full queue. None if the arrival itself must go: all
        waiters are as important, and no user has more of them than the arrival's user would have."""
        if not self._levels or (last := max(self._levels)) < priority:
            return None
        level = self._levels[last]
        if last == priority and level.largest_count() <= level.count_of(user) + 1:
            return None
        return self.pop_last()

    def _shrink(self, priority: int, level: FairQueue[W]) -> None:
        self.size -= 1
        if not level:
            del self._levels[priority]
