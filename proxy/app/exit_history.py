"""How the app ended, and how often it did so by itself."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CRASH_REASONS = ("crash", "hung")


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """One end of the app. `status` is 128+N if signal N ended it, as in a shell; `at` is in seconds since the epoch."""

    status: int
    why: str  # crash, hung, stop, or what it was replaced for
    pid: int
    at: float

    @property
    def signal_name(self) -> str | None:
        try:
            return signal.Signals(self.status - 128).name if self.status > 128 else None
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"status {self.status}" + (f" ({self.signal_name})" if self.signal_name else "")


class ExitHistory:
    """The exits since the gateway started. `crashes` counts those that nobody asked for, `last` is the newest."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.crashes = 0
        self.last: ExitRecord | None = None

    def record_exit(self, status: int, why: str, pid: int) -> ExitRecord:
        self.crashes += why in CRASH_REASONS
        self.last = ExitRecord(status, why, pid, self._now())
        return self.last

    def as_status(self, when: Callable[[float], str]) -> Mapping[str, object]:
        """The fields for /status; `when` formats a time."""
        last = self.last
        found = last and {
            "status": last.status,
            "signal": last.signal_name,
            "why": last.why,
            "pid": last.pid,
            "time": when(last.at),
        }
        return {"crashes": self.crashes, "last_exit": found}
