"""Whose turn it is: first come, first served within a user, and the users in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")


class Turns(Generic[Waiter]):
    """A burst of one user's does not starve another's single call."""

    __slots__ = ("_size", "_users")

    def __init__(self) -> None:
        self._users: OrderedDict[str, deque[Waiter]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, user: str, waiter: Waiter) -> None:
        self._users.setdefault(user, deque()).append(waiter)
        self._size += 1

    def remove(self, user: str, waiter: Waiter) -> None:
        """One that waits no longer; nothing where it was not waiting."""
        mine = self._users.get(user)
        if mine is None or waiter not in mine:
            return
        mine.remove(waiter)
        self._size -= 1
        if not mine:
            del self._users[user]

    def __iter__(self) -> Iterator[Waiter]:
        return chain.from_iterable(self._users.values())

    def next(self, may_go: Callable[[Waiter], bool] = lambda _: True) -> Waiter | None:
        """The one whose turn it is of those that may go; its user goes to the end of the line."""
        for user, mine in self._users.items():
            for at, waiter in enumerate(mine):
                if may_go(waiter):
                    del mine[at]
                    self._size -= 1
                    if mine:
                        self._users.move_to_end(user)
                    else:
                        del self._users[user]
                    return waiter
        return None

    def put_back(self, user: str, waiter: Waiter) -> None:
        """One that was next and cannot go after all: it is the next of its user's again."""
        self._users.setdefault(user, deque()).appendleft(waiter)
        self._users.move_to_end(user, last=False)
        self._size += 1

    def ahead(self, user: str) -> int:
        """How many go before a newcomer of this user, at least."""
        mine = len(self._users.get(user, ()))
        return sum(min(len(others), mine + 1) for name, others in self._users.items() if name != user) + mine
