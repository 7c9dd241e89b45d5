"""How the app ended, and how often without being asked to."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CRASH_REASONS = ("crash", "hung")


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """`status` is 128+N where signal N ended it, as a shell says it; `at` in seconds since the epoch."""

    status: int
    why: str  # crash, hung, or what it was replaced for
    pid: int
    at: float

    @property
    def signal(self) -> str | None:
        try:
            return signal.Signals(self.status - 128).name if self.status > 128 else None
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"status {self.status}" + (f" ({self.signal})" if self.signal else "")


class ExitHistory:
    """Since the gateway's start. `crashes` counts those that nobody asked for."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.crashes = 0
        self.last: ExitRecord | None = None

    def record(self, status: int, why: str, pid: int) -> ExitRecord:
        self.crashes += why in CRASH_REASONS
        self.last = ExitRecord(status, why, pid, self._now())
        return self.last

    def status(self, when: Callable[[float], str]) -> Mapping[str, object]:
        """For /status; `when` writes a moment."""
        last = self.last
        found = last and {
            "status": last.status,
            "signal": last.signal,
            "why": last.why,
            "pid": last.pid,
            "time": when(last.at),
        }
        return {"crashes": self.crashes, "last_exit": found}
