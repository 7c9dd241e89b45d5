"""What `ctl task ID` and `ctl tasks` show: one task with all that is known of it, or a line for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO
from urllib.parse import urlencode

from proxy.cli.arguments import Arguments
from proxy.cli.output import print_line, print_pairs, print_table

STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
HEAD = ("id", "route", "status", "tries", "waits s", "runs s", "user", "created", "reason")
SPARE = ("created", "runs s", "tries", "user")  # the columns that go first on a narrow terminal


def tasks_path(arguments: Arguments) -> str | None:
    """The path to ask for `ctl tasks`; None if its options make no sense."""
    status = arguments.last_value("--status")
    if status is not None and status not in STATUSES:
        return None
    query = {"tasks": "1", "route": arguments.last_value("--route"), "status": status}
    return "/status?" + urlencode({name: value for name, value in query.items() if value is not None})


def print_tasks(tasks: Sequence[Mapping[str, object]], out: TextIO) -> None:
    """A table, the newest first."""
    if not tasks:
        print_line(out, "No such task.")
        return
    foot = (f"{len(tasks)} task{'' if len(tasks) == 1 else 's'}", *("" for _ in HEAD[1:]))
    print_table(HEAD, [_row(task) for task in tasks], foot, SPARE, out)


def print_task(task: Mapping[str, object], out: TextIO) -> None:
    """All that is known of a task, a line each."""
    pairs = []
    for name, value in task.items():
        if value is None or name.startswith("can_"):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        pairs.append((name, str(value)))
    print_pairs(pairs, out)


def _row(task: Mapping[str, object]) -> tuple[str, ...]:
    names = ("id", "route", "status", "attempts", "waits_s", "runs_s", "user", "created", "reason")
    return tuple("" if task[name] is None else str(task[name]) for name in names)
