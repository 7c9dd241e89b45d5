"""Slots for server connections that one client each may keep, because its state is on no other connection.

A temporary table, LISTEN, an advisory lock or the like pins a client to its server. Slots are counted here and given
out in the order in which they were asked for; timers and messages are the pool's.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from proxy.policy.schema import Postgres

Holder = TypeVar("Holder")


def most_connections(policy: Postgres) -> int:
    """How many connections one instance may have in no case more than, whatever the others have."""
    return policy.pool.max if policy.pool.total is None else min(policy.pool.max, policy.pool.total)


def pin_limit(policy: Postgres) -> int:
    """How many connections may be pinned: at least one is left for those who share."""
    return min(policy.pin.max, max(1, most_connections(policy) - 1))


class PinSlots(Generic[Holder]):
    """`limit` slots, of which `held` are taken; holders in `waiting` have asked and found none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.waiting: deque[Holder] = deque()

    def __repr__(self) -> str:
        return f"<PinSlots {self.held} of {self.limit}, {len(self.waiting)} waiting>"

    def try_acquire(self) -> bool:
        """Nobody overtakes one who waits, even if a slot is free."""
        if self.held >= self.limit or self.waiting:
            return False
        self.held += 1
        return True

    def enqueue(self, holder: Holder) -> bool:
        """Whether it was not waiting already."""
        # A text that waits is read again when its client sends more, and asks again: it keeps its turn.
        if holder in self.waiting:
            return False
        self.waiting.append(holder)
        return True

    def release(self) -> None:
        self.held -= 1

    def grant_next(self) -> Holder | None:
        """The next one that gets a slot, if one is free. Asked again after each, since a holder may give its own back
        while it is told."""
        if not self.waiting or self.held >= self.limit:
            return None
        self.held += 1
        return self.waiting.popleft()

    def forget(self, holder: Holder) -> bool:
        """Whether it was waiting; it no longer is."""
        if holder not in self.waiting:
            return False
        self.waiting.remove(holder)
        return True
