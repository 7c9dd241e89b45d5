"""How many connections there may be, in all and by address, and how the lack of places is reported."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable

from proxy.errors import Refusal
from proxy.observe.emit import EmitEvent, LogLevel
from proxy.observe.metrics import Metrics
from proxy.policy.schema import Connections

ASSUMED_DESCRIPTORS = 1 << 20  # descriptors, if there is no limit
MAX_REJECTING = 256  # connections at once that only get a refusal
LOG_INTERVAL = 10.0  # seconds between two log lines for the same reason
EXHAUSTION_SECONDS = 60.0  # for which the lack of descriptors shows in health

TOTAL, PER_ADDRESS, DESCRIPTORS = REASONS = ("total", "per_address", "descriptors")


def available_descriptors() -> int:
    """File descriptors for connections of clients and to the app.

    A quarter of the process's descriptors (64 to 1,024) is left for calls out, the database, the ledger and listeners.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = ASSUMED_DESCRIPTORS
    return max(1, limit - min(1024, max(64, limit // 4)))


class ConnectionLimits:
    """The policy's `listen.connections`. An address holds a place from `acquire` to `release`.

    - `total`, `per_address` (None for no limit): connections of clients, at most.
    - `descriptor_room`: connections of clients and to the app together, at most.
    - `max_rejecting`: connections that are only told that there is no place.
    """

    def __init__(self, policy: Connections, *, clock: Callable[[], float], emit: EmitEvent, metrics: Metrics) -> None:
        self._clock = clock
        self._emit = emit
        self._metrics = metrics
        self._by_address: dict[str, int] = {}
        self._logged_at: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()
        self._last_at: dict[str, float] = {}
        self.apply(policy)

    def apply(self, policy: Connections) -> None:
        """Put other limits in force. Whoever is connected stays, and counts."""
        self.descriptor_room = available_descriptors()
        self.total = self.descriptor_room if policy.total == "auto" else min(policy.total, self.descriptor_room)
        self.per_address = policy.per_address
        # Rejections take descriptors too, so they may have an eighth of them at most.
        self.max_rejecting = min(MAX_REJECTING, max(1, self.descriptor_room // 8))

    # ── by address ───────────────────────────────────────────────────────────────────────────

    def acquire(self, address: str) -> bool:
        """Count a connection of this address; False if it has all that it may have."""
        held = self._by_address.get(address, 0)
        if self.per_address is not None and held >= self.per_address:
            return False
        self._by_address[address] = held + 1
        return True

    def release(self, address: str) -> None:
        left = self._by_address[address] - 1
        # An address without connections is forgotten, so that the memory is bounded by the connections.
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

    # ── reporting ─────────────────────────────────────────────────────────────────────────

    def refusal(self, reason: str) -> Refusal:
        """The refusal for a client that finds no place. It is counted, and logged now and then."""
        self._count_refusal(reason)
        if reason == PER_ADDRESS:
            bound = f"This address has its {self.per_address} connections (listen.connections.per_address)."
        elif reason == TOTAL:
            bound = f"All {self.total} connections are taken (listen.connections.total)."
        else:
            bound = "There are too many connections for this instance at the moment."
        return Refusal("overloaded", 503, "Too many connections", bound, retry_after=1.0, close=True)

    def note_exhaustion(self) -> None:
        """No descriptor was left, for a client or for a connection to the app."""
        self._last_at[DESCRIPTORS] = self._clock()
        self._log_throttled(DESCRIPTORS, "error")

    def count_evicted(self, count: int) -> None:
        """So many idle connections were closed to make room."""
        self._metrics.connections_evicted_total.inc(count)

    def current_trouble(self) -> str | None:
        """What is wrong at the moment, for the health report; None if nothing is."""
        now = self._clock()
        if now - self._last_at.get(DESCRIPTORS, -EXHAUSTION_SECONDS) < EXHAUSTION_SECONDS:
            return f"no file descriptor was left in the last minute; {_REMEDY}"
        if now - self._last_at.get(TOTAL, -LOG_INTERVAL) < LOG_INTERVAL:
            return f"all {self.total} connections are taken (listen.connections.total)"
        return None

    def _count_refusal(self, reason: str) -> None:
        self._metrics.connections_refused_total.labels(reason).inc()
        self._last_at[reason] = self._clock()
        self._unlogged[reason] += 1
        self._log_throttled(reason, "warning")

    def _log_throttled(self, reason: str, level: LogLevel) -> None:
        """Log at most once in LOG_INTERVAL for each reason, with the number of refusals since."""
        now = self._clock()
        if now - self._logged_at.get(reason, -LOG_INTERVAL) < LOG_INTERVAL:
            return
        self._logged_at[reason] = now
        count = self._unlogged.pop(reason, 0)
        refused = f"; {count} refused since this was last told" if count else ""
        self._emit("connections.refused", f"{_MESSAGES[reason]}{refused}.", level=level, reason=reason, refused=count)


_REMEDY = "raise the limit (ulimit -n, LimitNOFILE), or write a smaller listen.connections.total"
_MESSAGES = {
    TOTAL: "All connections are taken (listen.connections.total)",
    PER_ADDRESS: "An address has all the connections that it may have (listen.connections.per_address)",
    DESCRIPTORS: f"No file descriptor is left: {_REMEDY}",
}
