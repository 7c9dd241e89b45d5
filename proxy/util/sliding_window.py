"""What happened lately: counts over a sliding window, in memory that does not grow with traffic."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

BUCKETS = 60  # of a window: what is counted is forgotten at most a sixtieth of the window early


class SlidingWindow:
    """Counts of two kinds in the last `seconds`: all events, and those that were marked."""

    __slots__ = ("_clock", "_slice", "_slices", "all", "marked", "seconds")

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._slice = seconds / BUCKETS
        self._slices: deque[list[int]] = deque()  # [number of the slice, all, marked]
        self.all = 0
        self.marked = 0

    def add(self, *, marked: bool = False) -> None:
        number = self._forget()
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0])
        last = self._slices[-1]
        last[1] += 1
        self.all += 1
        if marked:
            last[2] += 1
            self.marked += 1

    def counts(self) -> tuple[int, int]:
        """All events and the marked ones, of the window that ends now."""
        self._forget()
        return self.all, self.marked

    def clear(self) -> None:
        self._slices.clear()
        self.all = self.marked = 0

    def _forget(self) -> int:
        number = int(self._clock() / self._slice)
        slices = self._slices
        while slices and slices[0][0] <= number - BUCKETS:
            _, every, marked = slices.popleft()
            self.all -= every
            self.marked -= marked
        return number
