"""Evaluates the rules: which hold now, for what, and how bad it is.

A condition that must last (`app is down for 30s`) is what Prometheus calls a rule with a `for`: it is looked at once a
second, it is pending from its first bad sample, and it fires when it has been so for its time. A condition on counts
over a window has no state of its own, and is computed when the rules are evaluated (`threshold_rules`).

state      event                                                        next
─────────  ───────────────────────────────────────────────────────────  ────────
ok         bad                                                          pending
pending    bad for its `for`                                            firing
pending    good for as long as its `for`, at most 10 s                  ok
firing     good for as long as its `for`, at most 10 s                  ok
any        unknown (a half-open breaker) for less than 60 s             as it was
any        unknown for longer                                           as if good
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from proxy.observe.alerts.alert import Finding
from proxy.observe.alerts.inputs import AlertInputs
from proxy.observe.alerts.threshold_rules import describe_attempts, evaluate_threshold
from proxy.policy import alert_condition as when
from proxy.policy.alert_condition import Condition

MAX_RECOVERY_SECONDS = 10.0  # the longest that a condition must be good again before it counts as over
UNKNOWN_SECONDS = 60.0  # for which an unknown sample leaves a condition as it was


class PendingCondition:
    """The state of one condition for one subject; `since` is when it became bad, None if it is good.

    If it is bad again before it was good for long enough, it goes on from where it was: an app that crashes again and
    again is down, however often it is up for a moment.
    """

    __slots__ = ("_recovering_since", "_unknown_since", "seconds", "since")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.since: float | None = None
        self._recovering_since: float | None = None
        self._unknown_since: float | None = None

    def update(self, now: float, bad: bool | None, since: float | None = None) -> None:
        """Take a sample; `bad` is None if it is unknown. `since` is when it began, if that is known."""
        if bad is None:
            self._unknown_since = now if self._unknown_since is None else self._unknown_since
            if now - self._unknown_since < UNKNOWN_SECONDS:
                return
            bad = False
        else:
            self._unknown_since = None
        if bad:
            # The component may know better when it began: samples are a second apart.
            if self.since is None:
                self.since = now if since is None else min(now, since)
            self._recovering_since = None
        elif self.since is not None:
            self._recovering_since = now if self._recovering_since is None else self._recovering_since
            if now - self._recovering_since >= min(self.seconds, MAX_RECOVERY_SECONDS):
                self.since = self._recovering_since = None

    def is_firing(self, now: float) -> bool:
        return self.since is not None and now - self.since >= self.seconds


# components that are never reported as down
DEGRADED_AT_WORST = ("upstreams", "ledger", "tasks", "memory", "connections", "store")
CONDITIONS_WITH_FOR = (when.ComponentIs, when.BreakerOpen, when.MemoryAbove)
MIB = 1024 * 1024


class AlertEvaluator:
    """Evaluates conditions, and keeps the state of those that must last. One for all rules."""

    def __init__(self, inputs: AlertInputs) -> None:
        self._inputs = inputs
        self._pending: dict[tuple[Condition, str], PendingCondition] = {}

    def update_conditions(self, now: float, conditions: set[Condition]) -> None:
        """Take a sample of every condition that must last; called once a second."""
        for old in {key[0] for key in self._pending} - conditions:
            self._carry_over(old, conditions)
        for condition in conditions:
            match condition:
                case when.ComponentIs():
                    self._update_part(now, condition)
                case when.BreakerOpen():
                    found = self._inputs.breakers()
                    # Upstreams that a reload took out have no state any more.
                    for key in [k for k in self._pending if k[0] == condition and k[1] not in found]:
                        del self._pending[key]
                    for name, breaker in found.items():
                        if condition.upstream in (None, name):
                            self._pending_condition(condition, name, condition.for_seconds).update(now, breaker.open)
                case when.MemoryAbove():
                    share = self._inputs.sample().memory_share
                    bad = share is not None and share > condition.share
                    self._pending_condition(condition, "", condition.for_seconds).update(now, bad)
                case _:
                    pass

    def evaluate(self, now: float, condition: Condition) -> Iterator[Finding]:
        match condition:
            case when.ComponentIs():
                yield from self._evaluate_part(now, condition)
            case when.BreakerOpen():
                yield from self._evaluate_breaker(now, condition)
            case when.MemoryAbove():
                yield from self._evaluate_memory(now, condition)
            case _:
                yield from evaluate_threshold(self._inputs, condition)

    def _carry_over(self, old: Condition, conditions: set[Condition]) -> None:
        """A rule of which a reload changed only the `for` goes on from where it was."""
        heir = next((new for new in conditions if _differ_in_duration_only(old, new)), None)
        for key in [key for key in self._pending if key[0] == old]:
            pending = self._pending.pop(key)
            if isinstance(heir, CONDITIONS_WITH_FOR) and (heir, key[1]) not in self._pending:
                pending.seconds = heir.for_seconds
                self._pending[heir, key[1]] = pending

    def _pending_condition(self, condition: Condition, subject: str, seconds: float) -> PendingCondition:
        key = (condition, subject)
        found = self._pending.get(key)
        if found is None:
            found = self._pending[key] = PendingCondition(seconds)
        return found

    def _update_part(self, now: float, condition: when.ComponentIs) -> None:
        state = self._inputs.parts()[condition.part]
        bad = state.state == "down" or (
            state.state == "degraded" and (condition.state == "degraded" or condition.part in DEGRADED_AT_WORST)
        )
        pending = self._pending_condition(condition, condition.part, condition.for_seconds)
        # An expected absence is neither good nor bad: the state stays as it was.
        if condition.part == "app" and bad and self._inputs.is_app_absence_expected():
            return
        pending.update(now, bad, state.since)

    def _evaluate_part(self, now: float, condition: when.ComponentIs) -> Iterator[Finding]:
        pending = self._pending_condition(condition, condition.part, condition.for_seconds)
        if not pending.is_firing(now) or pending.since is None:
            return
        part, state = condition.part, self._inputs.parts()[condition.part]
        name = "the app" if part == "app" else part
        length = level = now - pending.since
        if part == "app" and state.state == "ok":
            text, level = f"the app is up for the moment, but went down {length:.0f} s ago and may again", 0.0
        else:
            text = f"{name} is {state.state} for {length:.0f} s: {state.reason}"
        yield Finding(part, text, f"{length:.0f} s", str(condition), since=pending.since, level=level)

    def _evaluate_breaker(self, now: float, condition: when.BreakerOpen) -> Iterator[Finding]:
        for name, breaker in self._inputs.breakers().items():
            pending = self._pending.get((condition, name))
            if pending is None or not pending.is_firing(now) or pending.since is None:
                continue
            length = now - pending.since
            text = f"the breaker of {name} is open for {length:.0f} s, its calls are refused: {breaker.why}"
            text += describe_attempts(self._inputs.window(60.0).attempts.get(name, {}), "attempts of the last minute")
            yield Finding(
                name,
                text,
                f"open for {length:.0f} s",
                str(condition),
                since=pending.since,
                level=0.0 if breaker.forced else length,
                is_settled=breaker.forced,
            )

    def _evaluate_memory(self, now: float, condition: when.MemoryAbove) -> Iterator[Finding]:
        pending, sample = self._pending_condition(condition, "", condition.for_seconds), self._inputs.sample()
        share = sample.memory_share
        if not pending.is_firing(now) or share is None:
            return
        text = (
            f"{share:.0%} of the memory limit of {(sample.limit_bytes or 0) / MIB:.0f} MiB is in use"
            f" (app {(sample.app_bytes or 0) / MIB:.0f} MiB, gateway {sample.gateway_bytes / MIB:.0f} MiB)"
        )
        yield Finding("", text, f"{share:.0%}", str(condition), since=pending.since, level=share)


def _differ_in_duration_only(old: Condition, new: Condition) -> bool:
    """Whether they are the same condition with another `for`."""
    return (
        isinstance(old, CONDITIONS_WITH_FOR)
        and isinstance(new, CONDITIONS_WITH_FOR)
        and replace(old, for_seconds=new.for_seconds) == new
    )
