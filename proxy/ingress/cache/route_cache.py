"""The cache of one route: its answers in memory, what is being filled, and what was emptied a moment ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from proxy.ingress.cache.fills import Fills
from proxy.ingress.cache.memory import RouteMemory
from proxy.ingress.cache.stored_response import StoredResponse
from proxy.policy.schema import Route, RouteCache

MAX_EMPTIED = 1000  # paths that are known to have been emptied; of more, all count as emptied when the oldest was
EMPTIED_SECONDS = 600.0  # for which that is known: longer than an answer takes to come


class RouteCacheState:
    """`policy` may be replaced while requests are under way. `on_put` is called with each answer that is kept and
    the time at which the app was asked for it; `on_shared_end` is of `Fills`.

    `clock` is the loop's, `wall_clock` returns Unix time; both in seconds.
    """

    def __init__(
        self,
        route: Route,
        policy: RouteCache,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        on_put: Callable[[RouteCacheState, StoredResponse, float], None],
        on_shared_end: Callable[[bytes, bool], None],
    ) -> None:
        self.name = route.name
        self.policy = policy
        self.clock = clock
        self.wall_clock = wall_clock
        self.memory = RouteMemory(policy.max)
        self.ahead_bytes = 0  # in memory for clients that do not read as fast as they are answered
        self.fills = Fills(clock, on_shared_end)
        self._on_put = on_put
        self._emptied: OrderedDict[tuple[str | None, str | None], float] = OrderedDict()  # host and path, when

    def put(self, entry: StoredResponse, asked_at: float) -> bool:
        """Keep an answer that the app was asked for at this time of the clock. False if it is too large."""
        if not self.memory.put(entry):
            return False
        self._on_put(self, entry, asked_at)
        return True

    def remove(self, entry: StoredResponse) -> None:
        self.memory.remove(entry)

    def empty(self, path: str | None, host: str | None = None) -> int:
        """Forget the answers of a path, or all; how many there were. What is on its way now is not kept either."""
        now = self.clock()
        while self._emptied and next(iter(self._emptied.values())) < now - EMPTIED_SECONDS:
            self._emptied.popitem(last=False)
        if len(self._emptied) >= MAX_EMPTIED:
            # Too many to know them one by one: whatever was asked for before now is not kept.
            self._emptied.clear()
            self._emptied[None, None] = now
        self._emptied.pop((host, path), None)
        self._emptied[host, path] = now
        return self.memory.clear() if path is None else self.memory.remove_path(path, host)

    def was_emptied_since(self, when: float, host: str, path: str) -> bool:
        """Whether an answer that was asked for at `when` may be older than what emptied its URI."""
        if not self._emptied:
            return False
        found = (self._emptied.get(key) for key in ((host, path), (None, path), (None, None)))
        return any(at is not None and at >= when for at in found)
