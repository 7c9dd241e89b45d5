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
    settled: bool = False
    cause: str = ""


AlertState = Literal["firing", "flapping", "cleared"]
AlertEvent = Literal["begun", "again", "cleared", "flapping"]

FLAPPING = 3  # beginnings within
WITHIN = 600.0  # seconds
WORSE = 1.05  # times what was last said


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
        self.holds = False
        self.since = 0.0
        self.ended = 0.0
        self.finding = self.worst = Finding(subject, "", "", "")  # now, and since it began
        self._begun: deque[float] = deque(maxlen=FLAPPING)
        self._said = 0.0
        self._level = 0.0

    def __repr__(self) -> str:
        return f"<Alert {self.name} {self.subject}: {self.state}>"

    @property
    def beginnings(self) -> int:
        return len(self._begun)

    def judged(self, now: float, finding: Finding | None, severity: Severity, cooldown: float) -> Iterator[AlertEvent]:
        self.severity = severity
        while self._begun and now - self._begun[0] > WITHIN:
            self._begun.popleft()
        if finding is not None:
            yield from self._found(now, finding, cooldown)
        elif self.holds:
            yield from self._over(now)
        elif self.state == "flapping" and now - self.ended > WITHIN:
            self.state = "cleared"
            yield "cleared"

    def _found(self, now: float, finding: Finding, cooldown: float) -> Iterator[AlertEvent]:
        self.finding = finding
        if not self.holds or finding.level >= self.worst.level:
            self.worst = finding
        if not self.holds:
            self.holds = True
            self._begun.append(now)
            if self.state == "cleared":
                self.since = now if finding.since is None else finding.since
                if len(self._begun) < FLAPPING:
                    self.state = "firing"
                    yield self._say(now, "begun")
                    return
                self.state = "flapping"
                yield self._say(now, "flapping")
                return
        elif self.state == "flapping" and not self._begun:
            self.state = "firing"  # it has held for long: it is plainly there
        worse = finding.level > self._level * WORSE
        if now - self._said >= cooldown and (worse or not finding.settled):
            yield self._say(now, "flapping" if self.state == "flapping" else "again")

    def _over(self, now: float) -> Iterator[AlertEvent]:
        self.holds = False
        self.ended = now
        if self.state == "firing":
            self.state = "cleared"
            yield "cleared"

    def _say(self, now: float, what: AlertEvent) -> AlertEvent:
        self._said = now
        self._level = self.finding.level
        return what
