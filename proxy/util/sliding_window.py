"""Counts over a sliding window of time, in memory that does not grow with traffic."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

BUCKETS = 60  # of a window: an event is forgotten at most a sixtieth of the window early


class SlidingWindow:
    """How many events there were in the last `seconds`, and how many of them were marked (failures, for example).

    `total` and `marked` are as of the last call; `counts` gives those of now. `clock` is in seconds.
    """

    __slots__ = ("_bucket_seconds", "_buckets", "_clock", "marked", "seconds", "total")

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._bucket_seconds = seconds / BUCKETS
        self._buckets: deque[list[int]] = deque()  # [number of the bucket, all events, marked ones]
        self.total = 0
        self.marked = 0

    def add(self, *, marked: bool = False) -> None:
        number = self._expire_buckets()
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append([number, 0, 0])
        last = self._buckets[-1]
        last[1] += 1
        self.total += 1
        if marked:
            last[2] += 1
            self.marked += 1

    def counts(self) -> tuple[int, int]:
        """All events and the marked ones, of the window that ends now."""
        self._expire_buckets()
        return self.total, self.marked

    def clear(self) -> None:
        self._buckets.clear()
        self.total = self.marked = 0

    def _expire_buckets(self) -> int:
        number = int(self._clock() / self._bucket_seconds)
        buckets = self._buckets
        while buckets and buckets[0][0] <= number - BUCKETS:
            _, events, marked = buckets.popleft()
            self.total -= events
            self.marked -= marked
        return number
