"""The life of one alert: a rule that holds, or held, for one subject.

The states are those of Prometheus and Alertmanager. `pending`, while a condition with a `for` holds but not for long
enough, is in the evaluator and not here; `resolved` is called `cleared` in the log and the API. `flapping` is our own.

state      event                                                     next       notification
─────────  ────────────────────────────────────────────────────────  ─────────  ────────────
cleared    the rule holds                                            firing     begun
cleared    the rule holds, for the third time within 10 min          flapping   flapping
firing     the rule still holds, its cooldown is over                firing     again
firing     the rule holds no more                                    cleared    cleared
flapping   the rule holds, its cooldown is over                      flapping   flapping
flapping   the rule holds, and has not begun again for 10 min        firing     again, after its cooldown
flapping   the rule has not held for 10 min                          cleared    cleared
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from proxy.policy.schema import Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that holds for something now, with its figures.

    `subject` is the route, upstream or component that it holds for; empty: the whole. `message` is a sentence, `value`
    and `threshold` are for people. `since` is the clock's time at which it began, if that is known. `level` says how
    bad it is: higher is worse. `is_settled`: it lasts until something else changes (a cap that is spent stays so until
    midnight), so it is repeated only if it is worse. `cause`, if known, is shown in place of the usual likely cause.
    """

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

FLAPPING_STARTS = 3  # times that an alert begins within FLAPPING_WINDOW
FLAPPING_WINDOW = 600.0  # seconds
WORSE_RATIO = 1.05  # of the level at the last notification


class Alert:
    """One alert. Times are the clock's, in seconds.

    `is_active` says whether the rule holds now, `finding` is what was found last, `worst_finding` the worst since it
    began. `started_at` and `ended_at` are when it last began and ended.
    """

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
        # Starts that are too old no longer count towards flapping.
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
            # A flapping alert goes on being one: its next start is no news.
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
        # What cannot get better by itself is repeated only if it got worse.
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
