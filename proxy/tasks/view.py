"""A task as the outside sees it: the body of `GET /_outrigger/tasks/ID`, and `data` of a callback."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.observe.recent_errors import format_rfc3339
from proxy.tasks.record import Task

TASKS_PATH = "/_outrigger/tasks/"


def task_location(id: str) -> str:
    return f"{TASKS_PATH}{id}"


def task_view(task: Task) -> Mapping[str, object]:
    """Times in RFC 3339; what is not known yet, or does not apply, is null."""
    has_result = task.status is not None and not task.cancelling
    return {
        "id": task.id,
        "route": task.route,
        "status": task.shown_state,
        "reason": task.reason or None,
        "attempts": task.attempts,
        "created": format_rfc3339(task.created),
        "started": _format_time(task.started),
        "ended": _format_time(task.ended),
        "position": task.position or None,
        "response": {"status": task.status} if has_result else None,
        "result": f"{task_location(task.id)}/result" if has_result else None,
    }


def _format_time(at: float | None) -> str | None:
    return None if at is None else format_rfc3339(at)
