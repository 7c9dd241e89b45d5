"""A notification: an alert in words, the same for every channel."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from proxy.observe.alerts.alert import FLAPPING_STARTS, FLAPPING_WINDOW, Alert, AlertEvent, AlertState
from proxy.observe.alerts.runbook_hints import runbook_hint, runbook_url
from proxy.policy.alert_condition import Condition
from proxy.policy.schema import Severity


@dataclass(frozen=True, slots=True)
class Notification:
    """What is sent of an alert. `message` begins with the rule's name; `since` is RFC 3339 in UTC; `state` is firing,
    flapping or cleared. `likely_cause`, `first_step` and `runbook` help whoever reads it."""

    name: str
    subject: str
    severity: Severity
    state: AlertState
    since: str
    message: str
    value: str
    threshold: str
    likely_cause: str
    first_step: str
    runbook: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def make_notification(what: AlertEvent, alert: Alert, condition: Condition, now: float, since: str) -> Notification:
    known = runbook_hint(condition)
    finding = alert.worst_finding if what == "cleared" else alert.finding
    state: AlertState = "firing"
    if what == "cleared":
        state = "cleared"
        at = f" of {alert.subject}" if alert.subject else ""
        text = f"all clear{at} after {format_length(alert.ended_at - alert.started_at)}; it was: {finding.message}"
    elif what == "flapping":
        state = "flapping"
        text = (
            f"flapping: it began {FLAPPING_STARTS} times within {format_length(FLAPPING_WINDOW)}; now {finding.message}"
        )
        if alert.recent_starts < FLAPPING_STARTS:
            text = f"still flapping; now {finding.message}"
    elif what == "again":
        text = f"still: {finding.message}"
    else:
        text = finding.message
    return Notification(
        name=alert.name,
        subject=alert.subject,
        severity=alert.severity,
        state=state,
        since=since,
        message=f"{alert.name}: {text}",
        value=finding.value,
        threshold=finding.threshold,
        likely_cause=finding.cause or known.likely_cause,
        first_step=known.first_step,
        runbook=runbook_url(alert.name),
    )


def format_length(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3.0 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
