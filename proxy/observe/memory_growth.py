"""Attributes the growth of the app's memory to routes, so that a leak can be found."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SLOT_SECONDS = 60.0  # seconds
MAX_SLOTS = 60  # together the last hour


@dataclass(frozen=True, slots=True)
class RouteGrowth:
    """How much memory grew with a route: `bytes_grown`, negative if memory was freed, over so many `requests`."""

    bytes_grown: int
    requests: int


class MemoryGrowth:
    """The change of memory from one sample to the next is split evenly among the requests that were in flight between
    them. A route that runs alone gets all of it; routes that always run together cannot be told apart. A change while
    nothing is in flight is attributed to nobody, and a new process starts from zero.

    Kept by the minute for an hour, by route: bounded by the policy's routes.
    """

    def __init__(self, in_flight: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._in_flight = in_flight
        self._clock = clock
        # requests by route since the last sample; counted by the ingress
        self.started_requests: Counter[str] = Counter()
        self._in_flight_before: dict[str, int] = {}  # in flight at the last sample
        self._last_size: tuple[int, int] | None = None  # the process and its bytes at the last sample
        self._slots: deque[tuple[float, dict[str, list[float]]]] = deque(maxlen=MAX_SLOTS)

    def record_sample(self, pid: int | None, size: int | None) -> None:
        """Record a sample: `size` bytes of the app whose first process is `pid`; both None if it is away."""
        # In flight at the last sample, or started since: those that may have caused the change.
        active = Counter(self._in_flight_before)
        active.update(self.started_requests)
        delta = 0
        # Only within one process: a restart gives back memory that no route freed.
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
        """The growth of the last hour by route, the largest first."""
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
