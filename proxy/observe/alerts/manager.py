"""The alert manager: evaluates the rules every `alerts.every`, and notifies the log and all channels of what is new.

The life of an alert: the evaluator finds that its rule holds (pending before that, if the rule has a `for`); an `Alert`
is made, or found by its name and subject, and decides whether a notification is due; the notification is logged and
put into the queue of each channel. When the rule holds no more the alert is cleared; it is shown for a day after that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from proxy.observe.alerts.alert import Alert, AlertEvent
from proxy.observe.alerts.channels import CHANNELS
from proxy.observe.alerts.delivery import DeliveryQueue
from proxy.observe.alerts.evaluator import AlertEvaluator
from proxy.observe.alerts.inputs import AlertInputs
from proxy.observe.alerts.notification import Notification, make_notification
from proxy.observe.emit import EmitEvent, LogLevel
from proxy.observe.metrics import Metrics
from proxy.observe.process_sampler import ResourceSample
from proxy.policy.schema import AlertRule
from proxy.policy.schema import Alerts as Policy
from proxy.util.background_tasks import BackgroundTasks

KEEP_SECONDS = 86400.0  # seconds for which an alert is shown after it has ended
MAX_ALERTS = 200  # that are remembered
FLUSH_SECONDS = 2.0  # seconds that a stop gives to what still waits to be sent
POLL_SECONDS = 1.0  # seconds between checks whether an evaluation is due: a reload may change `every`

AlertKey = tuple[str, str]


class AlertManager:
    """Evaluates, remembers and notifies. For the loop's thread alone. `clock` is monotonic, `now` the wall clock; `app`
    is the app's name in messages."""

    def __init__(
        self,
        policy: Policy,
        inputs: AlertInputs,
        *,
        clock: Callable[[], float],
        emit: EmitEvent,
        metrics: Metrics,
        app: str,
        version: str,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._policy = policy
        self._inputs = inputs
        self._clock = clock
        self._emit = emit
        self._metrics = metrics
        self._app = app
        self._version = version
        self._now = now
        self._sleep = sleep
        self._evaluator = AlertEvaluator(inputs)
        self._alerts: dict[AlertKey, Alert] = {}
        self._last_messages: dict[AlertKey, str] = {}
        self._queues: dict[str, DeliveryQueue] = {}
        self._faults_logged_at: dict[str, float] = {}
        self._closing = BackgroundTasks()
        self._declare_rules()

    async def run(self) -> None:
        """Until it is cancelled."""
        self._update_queues()
        evaluated_at = self._clock()
        while True:
            await self._sleep(min(POLL_SECONDS, max(0.0, evaluated_at + self._policy.every - self._clock())))
            if self._clock() - evaluated_at < self._policy.every:
                continue
            evaluated_at = self._clock()
            self.evaluate_rules()

    def update_conditions(self, _: ResourceSample | None = None) -> None:
        """Take a sample of the conditions that must last; called once a second."""
        try:
            self._evaluator.update_conditions(self._clock(), {rule.when for rule in self._policy.rules.values()})
        except Exception as error:  # the sampler that calls this must not end by it
            self._log_fault("the rules", error)

    def evaluate_rules(self) -> Sequence[Notification]:
        """Evaluate every rule now, and notify of what is new; the notifications."""
        # While the gateway stops, everything fails, and none of it is news.
        if self._inputs.is_stopping():
            return ()
        self.update_conditions()
        now = self._clock()
        notifications: list[Notification] = []
        for name, rule in self._policy.rules.items():
            try:
                notifications += self._evaluate_rule(now, name, rule)
            except Exception as error:  # a fault in one rule must not silence the others
                self._log_fault(name, error)
        self._remove_old_alerts(now)
        self._notify_channels(notifications)  # all of an evaluation in one message
        return notifications

    def apply(self, policy: Policy) -> None:
        """Put newer rules in force: an alert of the same name and subject goes on, one without a rule is dropped."""
        self._policy = policy
        for key in [key for key in self._alerts if key[0] not in policy.rules]:
            del self._alerts[key]
            self._last_messages.pop(key, None)
        self._declare_rules()
        self._update_queues()

    def status(self) -> list[dict[str, object]]:
        """The alerts that fire, and those that ended within the last day; the most recent first."""
        found = sorted(self._alerts.items(), key=lambda item: -max(item[1].started_at, item[1].ended_at))
        return [
            {
                "name": alert.name,
                "subject": alert.subject,
                "severity": alert.severity,
                "state": alert.state,
                "since": self._format_time(alert.started_at if alert.state != "cleared" else alert.ended_at),
                "began": self._format_time(alert.started_at),
                # while it is active, as it is now; afterwards, as its last notification said
                "message": f"{alert.name}: {alert.finding.message}"
                if alert.is_active
                else self._last_messages.get(key, alert.finding.message),
            }
            for key, alert in found
        ]

    async def close(self) -> None:
        """Give what waits to be sent 2 s, then end."""
        closing = [queue.close(FLUSH_SECONDS) for queue in self._queues.values()]
        self._queues = {}
        await asyncio.gather(*closing, self._closing.wait(), return_exceptions=True)

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────

    def _evaluate_rule(self, now: float, name: str, rule: AlertRule) -> list[Notification]:
        cooldown = self._policy.cooldown
        repeat_after = cooldown.critical if rule.severity == "critical" else cooldown.warning
        found = {finding.subject: finding for finding in self._evaluator.evaluate(now, rule.when)}
        for subject in found:
            if (name, subject) not in self._alerts:
                self._alerts[name, subject] = Alert(name, subject)
        notifications = []
        for key, alert in self._alerts.items():
            if key[0] != name:
                continue
            # Also those that were not found: an alert learns only so that it is over.
            for what in alert.update(now, found.get(key[1]), rule.severity, repeat_after):
                notifications.append(self._make_notification(what, alert, rule, now))
        firing = any(alert.state != "cleared" for key, alert in self._alerts.items() if key[0] == name)
        self._metrics.alerts_firing.labels(name).set(1 if firing else 0)
        return notifications

    def _make_notification(self, what: AlertEvent, alert: Alert, rule: AlertRule, now: float) -> Notification:
        made = make_notification(what, alert, rule.when, now, self._format_time(alert.started_at))
        self._last_messages[alert.name, alert.subject] = made.message
        return made

    def _remove_old_alerts(self, now: float) -> None:
        over = sorted(
            (alert.ended_at, key)
            for key, alert in self._alerts.items()
            if alert.state == "cleared" and not alert.is_active
        )
        # Alerts that fire are never removed; of the others the oldest go first.
        many = len(self._alerts) - MAX_ALERTS
        for index, (ended, key) in enumerate(over):
            if index < many or now - ended > KEEP_SECONDS:
                del self._alerts[key]
                self._last_messages.pop(key, None)

    def _log_fault(self, what: str, error: Exception) -> None:
        """Log that a rule cannot be evaluated; once an hour for each."""
        now = self._clock()
        if now - self._faults_logged_at.get(what, float("-inf")) >= 3600.0:
            self._faults_logged_at[what] = now
            text = f"{what} cannot be evaluated_at: {type(error).__name__}: {error}."
            self._emit("alert.fault", text, level="error", alert=what)

    # ── notification ──────────────────────────────────────────────────────────────────────────────

    def _notify_channels(self, notices: Sequence[Notification]) -> None:
        if not notices:
            return
        for each in notices:
            level: LogLevel = (
                "info" if each.state == "cleared" else "error" if each.severity == "critical" else "warning"
            )
            facts: Mapping[str, str] = {k: v for k, v in each.as_dict().items() if k not in ("name", "message")}
            self._emit("alert", each.message, level=level, alert=each.name, **facts)
        for name, queue in self._queues.items():
            queue.enqueue(CHANNELS[name](notices, self._app, self._version))

    def _update_queues(self) -> None:
        """Keep a queue for each address that the policy names; what waits for an older address is still sent there."""
        for name in CHANNELS:
            url: str | None = getattr(self._policy, name)
            queue = self._queues.get(name)
            if queue is not None and queue.url != url:
                del self._queues[name]
                self._closing.start(queue.close(FLUSH_SECONDS))
            if url and name not in self._queues:
                self._queues[name] = DeliveryQueue(
                    name,
                    url,
                    emit=self._emit,
                    sent=partial(self._count_delivery, name),
                    duration=self._metrics.alert_delivery_seconds.labels(name),
                )

    def _count_delivery(self, queue: str, result: str) -> None:
        self._metrics.alerts_sent_total.labels(queue, result).inc()

    def _declare_rules(self) -> None:
        gauge = self._metrics.alerts_firing
        for (name,), _ in list(gauge.children()):
            if name not in self._policy.rules:
                gauge.remove(name)
        for name in self._policy.rules:
            gauge.labels(name)

    def _format_time(self, at: float) -> str:
        moment = datetime.fromtimestamp(self._now() - (self._clock() - at), UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}Z"
