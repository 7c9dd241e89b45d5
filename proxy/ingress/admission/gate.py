"""A bounded number of places, and a bounded queue before it."""

from __future__ import annotations

import asyncio

from proxy.util.fair_queue import PriorityFairQueue

ADMITTED = ""


class Shed(Exception):
    """Sent away from a gate; its text is the reason."""


class Waiter:
    """A request in the queue before a gate.

    `future` is set to ADMITTED, or to the reason why the request is turned away. `priority` is the lower, the more
    important the request is.
    """

    __slots__ = ("future", "priority", "user")

    def __init__(self, priority: int, user: str) -> None:
        self.priority = priority
        self.user = user
        self.future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def resolve(self, outcome: str) -> bool:
        """End the wait; False if it was cancelled, and the waiter has not run since."""
        if self.future.done():
            return False
        self.future.set_result(outcome)
        return True


class Gate:
    """`limit` places (None: any number), and up to `size` who wait for one, `wait` seconds at most.

    Whoever gives a place back hands it to the next in line in the same step, so a place is never both free
    and waited for. One that is cancelled in the moment it was admitted passes its place on.
    """

    def __init__(self, prefix: str, name: str = "") -> None:
        self.name = name
        self._prefix = prefix  # of the reasons to be sent away
        self.limit: int | None = None
        self.queue_size = 0
        self.queue_wait = 0.0
        self.in_flight = 0
        self.queue: PriorityFairQueue[Waiter] = PriorityFairQueue()
        self._hold_seconds = 0.0  # seconds that a place is held, as of late

    def __repr__(self) -> str:
        room = "" if self.limit is None else f"/{self.limit}"
        return f"{self.in_flight}{room} in flight, {len(self.queue)} queued"

    def configure(self, limit: int | None, size: int, wait: float) -> None:
        """Take other bounds. Those in flight stay; who waits is admitted or sent away as the new bounds say."""
        self.limit, self.queue_size, self.queue_wait = limit, size, wait
        self.admit_waiting()
        while len(self.queue) > size:
            self.queue.pop_last().resolve(f"{self._prefix}queue_full")

    def try_acquire(self) -> bool:
        if self.limit is not None and self.in_flight >= self.limit:
            return False
        self.in_flight += 1
        return True

    async def acquire(self, priority: int, user: str) -> None:
        """Take a place, waiting for it if need be. Raises Shed."""
        if self.try_acquire():
            return
        if len(self.queue) >= self.queue_size:
            loser = self.queue.pop_displaced_by(priority, user)
            if loser is None:
                raise Shed(f"{self._prefix}queue_full")
            loser.resolve("priority" if loser.priority > priority else f"{self._prefix}queue_full")
        waiter = Waiter(priority, user)
        self.queue.append(priority, user, waiter)
        timer = asyncio.get_running_loop().call_later(self.queue_wait, self._time_out, waiter)
        try:
            outcome = await waiter.future
        except asyncio.CancelledError:
            if not self._leave_queue(waiter) and not waiter.future.cancelled():
                if waiter.future.result() == ADMITTED:
                    self.release()
            raise
        finally:
            timer.cancel()
        if outcome != ADMITTED:
            raise Shed(outcome)

    def release(self, held: float | None = None) -> None:
        """Give a place back, held for so many seconds."""
        self.in_flight -= 1
        if held is not None:
            self._hold_seconds += (held - self._hold_seconds) * 0.1
        self.admit_waiting()

    def admit_waiting(self) -> None:
        while self.queue and self.try_acquire():
            waiter = self.queue.pop_next()
            if waiter is None or not waiter.resolve(ADMITTED):
                self.in_flight -= 1

    def expected_wait(self) -> float:
        """Seconds until an arrival now could expect a place: the queue, at the pace of late."""
        return (len(self.queue) + 1) * self._hold_seconds / max(1, self.limit or 1)

    def _time_out(self, waiter: Waiter) -> None:
        if self._leave_queue(waiter):
            waiter.resolve(f"{self._prefix}wait")

    def _leave_queue(self, waiter: Waiter) -> bool:
        return self.queue.remove(waiter.priority, waiter.user, waiter)
