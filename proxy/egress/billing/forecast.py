"""What today's spending will come to: what is spent so far, and the pace of the last hour until midnight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

SECONDS_PER_MINUTE = 60.0
MINUTES_PER_HOUR = 60


class SpendForecast:
    """Spending by the minute, of the last hour. Amounts are whole nano-dollars; `now` is the wall clock in seconds.

    A file of its own, since it is what `costs.projected` in an alert means, and is looked for by that name.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._minutes: deque[list[int]] = deque()  # [number of the minute, nano-dollars]

    def add(self, amount: int) -> None:
        minute = self._forget_old()
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append([minute, 0])
        self._minutes[-1][1] += amount

    def total_at(self, spent: int, end: float) -> int:
        """Nano-dollars that will be spent at `end`, if `spent` are by now.

        An hour that has only just begun is not scaled up: one call in its first minute says nothing about the day.
        """
        self._forget_old()
        seconds_left = max(0.0, end - self._now())
        last_hour = sum(amount for _, amount in self._minutes)
        return spent + int(last_hour * seconds_left / (MINUTES_PER_HOUR * SECONDS_PER_MINUTE))

    def _forget_old(self) -> int:
        """Drop what is older than an hour; the number of the current minute."""
        minute = int(self._now() / SECONDS_PER_MINUTE)
        while self._minutes and self._minutes[0][0] <= minute - MINUTES_PER_HOUR:
            self._minutes.popleft()
        return minute
