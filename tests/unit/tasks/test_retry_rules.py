"""What follows from how a try ended."""

from __future__ import annotations

import pytest

from proxy.policy.schema import Background, TaskBackoff, TaskRetry
from proxy.tasks.record import Task, TaskResponse
from proxy.tasks.retry_rules import TryResult, backoff_seconds, end_of

BACKGROUND = Background(retry=TaskRetry(attempts=3, backoff=TaskBackoff(first=5.0, max=12.0)))


def task_with(failures: int) -> Task:
    # fmt: off
    return Task(
        "id", "r", "u", "t", "running", "", failures + 1, failures, 0, 0.0, 0.0, 0.0, None, None, 0, 0, "", None, False,
    )
    # fmt: on


def answered(status: int, retry_after: float | None = None) -> TryResult:
    return TryResult(response=TaskResponse(status, b"", (), b""), retry_after=retry_after)


@pytest.mark.parametrize(
    ("result", "failures", "state", "reason", "delay"),
    [
        (answered(200), 0, "succeeded", "", 0.0),
        (answered(404), 0, "succeeded", "", 0.0),
        (answered(500), 0, "failed", "status-500", 0.0),
        (answered(503), 0, "delayed", "status-503", 5.0),
        (answered(503), 1, "delayed", "status-503", 10.0),
        (answered(503), 2, "failed", "status-503", 0.0),
        (answered(429, 90.0), 0, "delayed", "status-429", 90.0),
        (answered(429, 90_000.0), 0, "delayed", "status-429", 3600.0),
        (answered(429), 2, "succeeded", "", 0.0),
        (TryResult("connect"), 0, "delayed", "connect", 5.0),
        (TryResult("reset"), 1, "delayed", "reset", 10.0),
        (TryResult("timeout"), 2, "failed", "timeout", 0.0),
        (TryResult("max_result"), 0, "failed", "max_result", 0.0),
        (TryResult("blocked"), 0, "failed", "blocked", 0.0),
        (TryResult("fault"), 0, "failed", "fault", 0.0),
    ],
)
def test_a_try_ends_as_the_contract_says(result, failures, state, reason, delay) -> None:
    end = end_of(result, task_with(failures), BACKGROUND)
    assert (end.state, end.reason, end.delay) == (state, reason, delay)
    assert end.response is (None if state == "delayed" or result.reason else result.response)


def test_backoff_doubles_up_to_its_bound_however_often() -> None:
    assert [backoff_seconds(BACKGROUND, failures) for failures in (0, 1, 2, 3, 5000)] == [5.0, 10.0, 12.0, 12.0, 12.0]


def test_what_it_cost_is_kept_whatever_became_of_it() -> None:
    for result in (
        TryResult("reset", cost=7, calls=2),
        TryResult(response=TaskResponse(200, b"", (), b""), cost=7, calls=2),
    ):
        end = end_of(result, task_with(0), BACKGROUND)
        assert (end.cost, end.calls) == (7, 2)


@pytest.mark.parametrize(
    ("result", "label"),
    [
        (answered(200), "ok"),
        (answered(500), "ok"),
        (answered(503), "503"),
        (TryResult("timeout"), "timeout"),
        (TryResult(), "fault"),
    ],
)
def test_the_metrics_label_is_one_of_few(result, label) -> None:
    assert result.label == label
