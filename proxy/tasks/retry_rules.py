"""What follows from how a try ended: the result, a further try, or a failure. A pure function, without a clock."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.policy.schema import Background
from proxy.tasks.queue import TryEnd
from proxy.tasks.record import Task, TaskResponse, TaskState

RETRY_STATUSES = frozenset((429, 502, 503, 504))
RETRY_REASONS = frozenset(("connect", "reset", "timeout"))
MAX_RETRY_AFTER = 3600.0  # seconds: an app that asks for more is asked again nevertheless


@dataclass(frozen=True, slots=True)
class TryResult:
    """How a try ended.

    - `reason`: empty if the app answered whole; else `connect` (it did not get the request), `reset` (it broke off
      before the whole answer), `timeout`, `max_result`, `blocked` or `fault`. `detail` says it in a sentence.
    - `response`: the app's answer, None if there is none or not all of it.
    - `retry_after`: seconds that the answer asks to wait, if it does.
    - `seconds`: that the try took; `app_seconds` to the first byte of the answer. `cost` in nano-dollars.
    """

    reason: str = ""
    detail: str = ""
    response: TaskResponse | None = None
    retry_after: float | None = None
    seconds: float = 0.0
    app_seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    calls: int = 0
    cost: int = 0

    @property
    def label(self) -> str:
        """The label of the metric: `ok`, a status after which a task is tried again, or the reason."""
        if self.response is None or self.reason:
            return self.reason or "fault"
        return str(self.response.status) if self.response.status in RETRY_STATUSES else "ok"


def end_of(result: TryResult, task: Task, background: Background) -> TryEnd:
    """What to write down of a try of `task`, whose failures before this try are in it."""
    tries_left = background.retry.attempts - (task.failures + 1)
    response = result.response
    if response is not None and not result.reason:
        if response.status in RETRY_STATUSES and tries_left > 0:
            return _again(result, f"status-{response.status}", task, background)
        # The last answer is the result, whatever it says.
        failed = response.status >= 500
        state: TaskState = "failed" if failed else "succeeded"
        reason = f"status-{response.status}" if failed else ""
        return TryEnd(state, reason, response, cost=result.cost, calls=result.calls)
    if result.reason in RETRY_REASONS and tries_left > 0:
        return _again(result, result.reason, task, background)
    return TryEnd("failed", result.reason or "fault", cost=result.cost, calls=result.calls)


def _again(result: TryResult, reason: str, task: Task, background: Background) -> TryEnd:
    delay = backoff_seconds(background, task.failures)
    if result.retry_after is not None:
        delay = min(MAX_RETRY_AFTER, result.retry_after)
    return TryEnd("delayed", reason, delay=delay, cost=result.cost, calls=result.calls)


def backoff_seconds(background: Background, failures: int) -> float:
    """The wait after the failure number `failures` + 1: `first`, then twice as long each time, at most `max`."""
    backoff = background.retry.backoff
    return min(backoff.max, backoff.first * 2.0 ** min(failures, 30))
