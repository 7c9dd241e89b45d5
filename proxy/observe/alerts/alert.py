"""One rule that holds, or held, for one subject: begun, said again, over, flapping."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from proxy.policy.schema.alerting import Severity


# [merged from observe/alerts/finding] A rule that holds for something, with its figures.
@dataclass(frozen=True, slots=True)
class Finding:
    """`subject` is the route, upstream or part that it holds for; empty: the whole. `since` is the clock's, where
    it is known. `level` says how bad: higher is worse. `settled`: it lasts until something else changes (a cap
    that is spent stays so until midnight), so it is said again only once it is worse."""

    subject: str
    message: str
    value: str
    threshold: str
    since: float | None = None
    level: float = 0.0
    is_settled: bool = False
    cause: str = ""


AlertState = Literal["firing", "flapping", "cleared"]
AlertEvent = Literal["begun", "again", "cleared", "flapping"]

FLAPPING_STARTS = 3  # beginnings within
FLAPPING_WINDOW = 600.0  # seconds
WORSE_RATIO = 1.05  # times what was last said


@dataclass(frozen=True, slots=True)
class Event:
    """What there is to say of an alert now."""

    what: AlertEvent
    alert: Alert


class Alert:
    """Times are the clock's, in seconds. Says what there is to say at each judging: once when it begins, once when
    it is over, and again after its cooldown while it lasts. One that began three times within 10 min is called
    flapping, once, and nothing else is said until it has been quiet, or has held, for 10 min."""

    def __init__(self, name: str, subject: str) -> None:
        self.name = name
        self.subject = subject
        self.severity: Severity = "warning"
        self.state: AlertState = "cleared"
        self.is_active = False
        self.started_at = 0.0
        self.ended_at = 0.0
        self.finding = self.worst_finding = Finding(subject, "", "", "")  # now, and since it began
        self._starts: deque[float] = deque(maxlen=FLAPPING_STARTS)
        self._notified_at = 0.0
        self._notified_level = 0.0

    def __repr__(self) -> str:
        return f"<Alert {self.name} {self.subject}: {self.state}>"

    @property
    def recent_starts(self) -> int:
        return len(self._starts)

    def update(self, now: float, finding: Finding | None, severity: Severity, cooldown: float) -> Iterator[AlertEvent]:
        self.severity = severity
        while self._starts and now - self._starts[0] > FLAPPING_WINDOW:
            self._starts.popleft()
        if finding is not None:
            yield from self._update_active(now, finding, cooldown)
        elif self.is_active:
            yield from self._update_ended(now)
        elif self.state == "flapping" and now - self.ended_at > FLAPPING_WINDOW:
            self.state = "cleared"
            yield "cleared"

    def _update_active(self, now: float, finding: Finding, cooldown: float) -> Iterator[AlertEvent]:
        self.finding = finding
        if not self.is_active or finding.level >= self.worst_finding.level:
            self.worst_finding = finding
        if not self.is_active:
            self.is_active = True
            self._starts.append(now)
            if self.state == "cleared":
                self.started_at = now if finding.since is None else finding.since
                if len(self._starts) < FLAPPING_STARTS:
                    self.state = "firing"
                    yield self._mark_notified(now, "begun")
                    return
                self.state = "flapping"
                yield self._mark_notified(now, "flapping")
                return
        elif self.state == "flapping" and not self._starts:
            self.state = "firing"  # it has held for long: it is plainly there
        worse = finding.level > self._notified_level * WORSE_RATIO
        if now - self._notified_at >= cooldown and (worse or not finding.is_settled):
            yield self._mark_notified(now, "flapping" if self.state == "flapping" else "again")

    def _update_ended(self, now: float) -> Iterator[AlertEvent]:
        self.is_active = False
        self.ended_at = now
        if self.state == "firing":
            self.state = "cleared"
            yield "cleared"

    def _mark_notified(self, now: float, what: AlertEvent) -> AlertEvent:
        self._notified_at = now
        self._notified_level = self.finding.level
        return what
