"""Where today's spending leads: what is spent, and the pace of the last hour until midnight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MINUTE = 60.0
HOUR = 60  # minutes


class SpendForecast:
    """`now` is the wall clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._minutes: deque[list[int]] = deque()  # [minute, nano-dollars]

    def add(self, amount: int) -> None:
        minute = self._forget()
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append([minute, 0])
        self._minutes[-1][1] += amount

    def total_at(self, spent: int, end: float) -> int:
        """Nano-dollars at `end`, of which `spent` are gone. An hour that has only just begun is not scaled up:
        one call in the first minute says nothing of the day."""
        self._forget()
        left = max(0.0, end - self._now())
        lately = sum(amount for _, amount in self._minutes)
        return spent + int(lately * left / (HOUR * MINUTE))

    def _forget(self) -> int:
        minute = int(self._now() / MINUTE)
        while self._minutes and self._minutes[0][0] <= minute - HOUR:
            self._minutes.popleft()
        return minute
