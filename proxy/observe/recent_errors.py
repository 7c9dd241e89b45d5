"""The most recent errors, and who was refused most, for the dashboard. The log has all of them."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

MAX_ERRORS = 50  # of requests, and as many of calls
MAX_TEXT_LENGTH = 300  # characters of a path or a reason
SLOT_SECONDS = 600.0  # an hour is six full slots and the begun one
MAX_SLOTS = 7
MAX_USERS_PER_SLOT = 500  # the one refused longest ago is dropped first
MAX_USERS_SHOWN = 10


class RecentErrors:
    """Keeps failed requests, failed calls and refusals, each within a bound. `now` is the wall clock, `redact` removes
    the secrets from a request target."""

    def __init__(self, redact: Callable[[str], str], *, now: Callable[[], float] = time.time) -> None:
        self._redact = redact
        self._now = now
        self._requests: deque[Mapping[str, object]] = deque(maxlen=MAX_ERRORS)
        self._calls: deque[Mapping[str, object]] = deque(maxlen=MAX_ERRORS)
        self._slots: deque[tuple[int, OrderedDict[tuple[str, str], _RefusalCount]]] = deque(maxlen=MAX_SLOTS)

    def add_request_error(
        self, request_id: str, route: str, method: str, target: str, user: str, status: int, reason: str, took: float
    ) -> None:
        self._requests.append(
            {
                "time": format_rfc3339(self._now()),
                "request_id": request_id,
                "route": route,
                "method": method,
                "path": self._redact(target)[:MAX_TEXT_LENGTH],
                "user": user[:MAX_TEXT_LENGTH],
                "status": status,
                "reason": reason[:MAX_TEXT_LENGTH],
                "duration_ms": round(took * 1000, 1),
            }
        )

    def add_call_error(
        self, request_id: str | None, upstream: str, model: str | None, user: str, status: int, reason: str, took: float
    ) -> None:
        self._calls.append(
            {
                "time": format_rfc3339(self._now()),
                "request_id": request_id,
                "upstream": upstream,
                "model": model and model[:MAX_TEXT_LENGTH],
                "user": user[:MAX_TEXT_LENGTH],
                "status": status or None,
                "reason": reason[:MAX_TEXT_LENGTH],
                "duration_ms": round(took * 1000, 1),
            }
        )

    def add_refusal(self, user: str, tier: str, where: str, reason: str) -> None:
        """Count a refusal by a limit, a cap or an operator; `where` is a route or an upstream."""
        slot = self._current_slot()
        key = (user[:MAX_TEXT_LENGTH], reason)
        entry = slot.get(key)
        if entry is None:
            entry = slot[key] = _RefusalCount()
            # Users are chosen by clients, so their number must be bounded.
            if len(slot) > MAX_USERS_PER_SLOT:
                slot.popitem(last=False)
        else:
            slot.move_to_end(key)
        entry.count += 1
        entry.tier, entry.where, entry.last = tier, where, self._now()

    # ── read ─────────────────────────────────────────────────────────────────────────────────

    def request_errors(self) -> list[Mapping[str, object]]:
        """Requests that were answered with 500 and above, the newest first."""
        return list(reversed(self._requests))

    def call_errors(self) -> list[Mapping[str, object]]:
        """Calls out that failed, the newest first."""
        return list(reversed(self._calls))

    def most_refused_users(self) -> list[Mapping[str, object]]:
        """The users that were refused most in the last hour."""
        self._current_slot()
        sums: dict[tuple[str, str], _RefusalCount] = {}
        for _, slot in self._slots:
            for key, entry in slot.items():
                whole = sums.setdefault(key, _RefusalCount())
                whole.count += entry.count
                whole.tier, whole.where, whole.last = entry.tier, entry.where, entry.last
        top = sorted(sums.items(), key=lambda pair: -pair[1].count)[:MAX_USERS_SHOWN]
        return [
            {
                "user": user,
                "reason": reason,
                "tier": entry.tier,
                "where": entry.where,
                "refused": entry.count,
                "last": format_rfc3339(entry.last),
            }
            for (user, reason), entry in top
        ]

    def count_refused_users(self) -> Counter[str]:
        """How many users each route and upstream refused in the last hour."""
        self._current_slot()
        pairs = {(entry.where, user) for _, slot in self._slots for (user, _), entry in slot.items()}
        return Counter(where for where, _ in pairs)

    def _current_slot(self) -> OrderedDict[tuple[str, str], _RefusalCount]:
        number = int(self._now() / SLOT_SECONDS)
        while self._slots and self._slots[0][0] <= number - MAX_SLOTS:
            self._slots.popleft()
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append((number, OrderedDict()))
        return self._slots[-1][1]


class _RefusalCount:
    __slots__ = ("count", "last", "tier", "where")

    def __init__(self) -> None:
        self.count = 0
        self.tier = ""
        self.where = ""
        self.last = 0.0


def format_rfc3339(moment: float) -> str:
    """A time in seconds since the epoch by RFC 3339, in UTC, to the second."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S}Z"
