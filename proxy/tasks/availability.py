"""Whether the queue's database answers: what health says, and one event for each time that it is away."""

from __future__ import annotations

from collections.abc import Callable

from proxy.observe.emit import EmitEvent
from proxy.observe.health import ComponentHealth
from proxy.tasks.database import TasksUnavailable


class Availability:
    """Told by everybody who asks the database. `clock` is monotonic."""

    def __init__(self, where: str, *, emit: EmitEvent, clock: Callable[[], float]) -> None:
        self._where = where
        self._emit = emit
        self._clock = clock
        self._since = clock()
        self.away_because: str | None = None

    def __repr__(self) -> str:
        return f"<Availability of {self._where}: {self.away_because or 'it answers'}>"

    def note_success(self) -> None:
        """Something was written. That something could be read says little: a full disk can be read."""
        if self.away_because is None:
            return
        away = self._clock() - self._since
        self.away_because, self._since = None, self._clock()
        self._emit("tasks", f"The queue is there again after {away:.0f} s.", away_s=round(away, 1))

    def note_failure(self, error: TasksUnavailable) -> None:
        # One event for each time away, not one for each try.
        if self.away_because is None:
            self._since = self._clock()
            text = f"The queue of tasks does not answer: {error}; nothing is accepted, and results wait."
            self._emit("tasks", text, level="error", reason=str(error))
        self.away_because = str(error)

    def health(self) -> ComponentHealth:
        if self.away_because is None:
            return ComponentHealth("ok", f"tasks are kept in {self._where}", self._since)
        return ComponentHealth("degraded", self.away_because, self._since)
