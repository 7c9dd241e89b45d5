"""Which route the app's memory grows with: a leak gets a name."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SLOT_SECONDS = 60.0  # seconds
MAX_SLOTS = 60  # so: the last hour


@dataclass(frozen=True, slots=True)
class RouteGrowth:
    """`amount` in bytes, below 0 where memory was given back."""

    bytes_grown: int
    requests: int


class MemoryGrowth:
    """What memory changes by from one sample to the next is split evenly among the requests that were in flight
    in between. One route alone gets the whole; routes that always run together cannot be told apart. What changes
    while nothing is in flight belongs to nobody, and a new process begins anew.

    Kept a minute at a time for an hour, by route: bounded by the policy's routes.
    """

    def __init__(self, in_flight: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._in_flight = in_flight
        self._clock = clock
        self.started_requests: Counter[str] = Counter()  # requests by route since the last sample
        self._in_flight_before: dict[str, int] = {}  # in flight at the last sample
        self._last_size: tuple[int, int] | None = None  # the process and its bytes at the last sample
        self._slots: deque[tuple[float, dict[str, list[float]]]] = deque(maxlen=MAX_SLOTS)

    def record_sample(self, pid: int | None, size: int | None) -> None:
        """A sample: `size` bytes of the app whose first process is `pid`; None where it is away."""
        active = Counter(self._in_flight_before)
        active.update(self.started_requests)
        delta = 0
        if self._last_size is not None and size is not None and self._last_size[0] == pid:
            delta = size - self._last_size[1]
        self._last_size = (pid, size) if pid is not None and size is not None else None
        total = active.total()
        if total:
            slot = self._current_slot()
            for route, requests in active.items():
                kept = slot.setdefault(route, [0.0, 0])
                kept[0] += delta * requests / total
                kept[1] += self.started_requests[route]
        self.started_requests.clear()
        self._in_flight_before = {route: requests for route, requests in self._in_flight.items() if requests}

    def growth_by_route(self) -> dict[str, RouteGrowth]:
        """By route, the one that grew most first."""
        since = self._clock() - SLOT_SECONDS * MAX_SLOTS
        sums: dict[str, list[float]] = {}
        for began, slot in self._slots:
            if began >= since:
                for route, (amount, requests) in slot.items():
                    kept = sums.setdefault(route, [0.0, 0])
                    kept[0] += amount
                    kept[1] += requests
        ordered = sorted(sums.items(), key=lambda item: -item[1][0])
        return {route: RouteGrowth(round(amount), int(requests)) for route, (amount, requests) in ordered}

    def _current_slot(self) -> dict[str, list[float]]:
        now = self._clock()
        if not self._slots or now - self._slots[-1][0] >= SLOT_SECONDS:
            self._slots.append((now, {}))
        return self._slots[-1][1]
