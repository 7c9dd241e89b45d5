"""A gate: a limited number of places, and a limited, fair queue before it (a semaphore that can be full)."""

from __future__ import annotations

import asyncio

from proxy.util.fair_queue import PriorityFairQueue

ADMITTED = ""


class Shed(Exception):
    """A request was turned away from a gate. Its text is the reason, for the metric."""


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
    """A limited number of places, and a queue for them.

    - `limit`: places, None for any number. `in_flight`: how many are taken.
    - `queue_size`, `queue_wait`: how many may wait, and for how many seconds. `queue`: those who do.

    Releasing a place admits the next in the queue in the same step, so that no place is ever free while somebody waits.
    A waiter that is cancelled in the moment in which it was admitted passes its place on.
    """

    def __init__(self, prefix: str, name: str = "") -> None:
        self.name = name
        self._prefix = prefix  # of the reasons to be turned away
        self.limit: int | None = None
        self.queue_size = 0
        self.queue_wait = 0.0
        self.in_flight = 0
        self.queue: PriorityFairQueue[Waiter] = PriorityFairQueue()
        self._hold_seconds = 0.0  # for which a place is held, a running mean

    def __repr__(self) -> str:
        room = "" if self.limit is None else f"/{self.limit}"
        return f"{self.in_flight}{room} in flight, {len(self.queue)} queued"

    def configure(self, limit: int | None, size: int, wait: float) -> None:
        """Change the bounds. Those in flight stay; waiters are admitted or turned away as the new bounds say."""
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
        """Take a place, and wait for one if need be. Raises Shed."""
        if self.try_acquire():
            return
        # A full queue turns away the weakest claim, which is not always the newcomer's.
        if len(self.queue) >= self.queue_size:
            loser = self.queue.pop_displaced_by(priority, user)
            if loser is None:
                raise Shed(f"{self._prefix}queue_full")
            loser.resolve("priority" if loser.priority > priority else f"{self._prefix}queue_full")
        waiter = Waiter(priority, user)
        self.queue.append(priority, user, waiter)
        # Expiry and admission settle the same future, so only one of them can win; asyncio.timeout could cancel an
        # admitted request.
        timer = asyncio.get_running_loop().call_later(self.queue_wait, self._time_out, waiter)
        try:
            outcome = await waiter.future
        except asyncio.CancelledError:
            # Not in the queue any more: it was admitted or shed, and this task has not run since.
            if not self._leave_queue(waiter) and not waiter.future.cancelled():
                if waiter.future.result() == ADMITTED:
                    self.release()
            raise
        finally:
            timer.cancel()
        if outcome != ADMITTED:
            raise Shed(outcome)

    def release(self, held: float | None = None) -> None:
        """Give a place back. `held` is for how many seconds it was taken, if that says anything about the next."""
        # The place is free and given away in the same step: nobody can take it in between.
        self.in_flight -= 1
        if held is not None:
            self._hold_seconds += (held - self._hold_seconds) * 0.1
        if self.queue.size:
            self.admit_waiting()

    def admit_waiting(self) -> None:
        """Give the free places to those who wait, in turn."""
        while self.queue and self.try_acquire():
            waiter = self.queue.pop_next()
            # A waiter that was cancelled in this very moment does not take the place; the next one does.
            if waiter is None or not waiter.resolve(ADMITTED):
                self.in_flight -= 1

    def expected_wait(self) -> float:
        """Seconds until a request that arrives now can expect a place: those before it, at the present pace."""
        return (len(self.queue) + 1) * self._hold_seconds / max(1, self.limit or 1)

    def _time_out(self, waiter: Waiter) -> None:
        if self._leave_queue(waiter):
            waiter.resolve(f"{self._prefix}wait")

    def _leave_queue(self, waiter: Waiter) -> bool:
        return self.queue.remove(waiter.priority, waiter.user, waiter)
