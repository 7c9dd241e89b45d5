"""What an operator sees of the queue: how much waits by route, what waits longest, what runs, what failed and why.

It is asked for while somebody looks at the dashboard or runs `ctl tasks`: one read transaction over a few indexed rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxy.observe.metrics import TASK_OUTCOMES
from proxy.tasks.catalog import TaskCatalog
from proxy.tasks.database import Database
from proxy.tasks.record import Task
from proxy.tasks.rows import TASK_COLUMNS, task_from_row
from proxy.tasks.view import task_view
from proxy.units import NANOS

MAX_SHOWN = 20  # of each list
MIN_PREFIX = 6  # characters of an id that a log line shows more of
# Since when a task could have run: one that was delayed does not wait before its time has come.
_WAITING_SINCE = "CASE WHEN run_at > created THEN run_at ELSE created END"


class TaskOverview:
    """Reads the queue of all instances. Every method raises TasksUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._catalog = TaskCatalog(database)

    async def lists(self) -> Mapping[str, object]:
        """`waiting` (the longest first), `running` (the oldest first) and `failed` (the newest first)."""
        async with self._database.transaction(write=False) as tx:
            waiting = await tx.fetch(
                f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE state = 'queued'"
                f" ORDER BY {_WAITING_SINCE}, seq LIMIT {MAX_SHOWN}"
            )
            running = await tx.fetch(
                f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE state = 'running' ORDER BY tried LIMIT {MAX_SHOWN}"
            )
            failed = await tx.fetch(
                f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE state = 'failed'"
                f" ORDER BY ended DESC LIMIT {MAX_SHOWN}"
            )
        found = {"waiting": waiting, "running": running, "failed": failed}
        return {name: [operator_view(task_from_row(row), tx.now) for row in rows] for name, rows in found.items()}

    async def list(self, *, route: str | None, status: str | None, limit: int) -> Sequence[Mapping[str, object]]:
        """The newest tasks, of one route or of one status."""
        async with self._database.transaction(write=False) as tx:
            now = tx.now
        return [operator_view(task, now) for task in await self._catalog.list(route=route, state=status, limit=limit)]

    async def find(self, id: str) -> tuple[Task | None, int]:
        """The task that an id, or the beginning of one, names; None if there is none or several. And how many."""
        task = await self._catalog.find(id)
        if task is not None or len(id) < MIN_PREFIX or not id.isascii() or not id.isalnum():
            return task, int(task is not None)
        async with self._database.transaction(write=False) as tx:
            rows = await tx.fetch(f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE id LIKE $1 LIMIT 2", f"{id}%")
        if len(rows) != 1:
            return None, len(rows)
        return await self._catalog.find(rows[0][0]), 1

    async def view(self, task: Task) -> Mapping[str, object]:
        """A task as an operator sees it."""
        async with self._database.transaction(write=False) as tx:
            return operator_view(task, tx.now)


def operator_view(task: Task, now: float) -> Mapping[str, object]:
    """What GET says of a task, and whose it is, what it cost, and how long it has waited or run so far, in seconds."""
    waits = task.state == "queued"
    waited = now - max(task.created, task.run_at) if waits else None
    since = task.started if task.state == "running" else None
    return {
        **task_view(task),
        "user": task.user,
        "tier": task.tier,
        "cost_usd": round(task.cost / NANOS, 6),
        "calls": task.calls,
        "waits_s": None if waited is None else round(max(0.0, waited), 1),
        "runs_s": None if since is None else round(max(0.0, now - since), 1),
        # Whether `ctl task ID retry` can do anything.
        "can_retry": task.state in ("failed", "delayed"),
        "can_cancel": not task.has_ended,
    }


def count_by_route(
    counts: Mapping[tuple[str, str], int], longest_waits: Mapping[str, float], names: Sequence[str]
) -> Mapping[str, Mapping[str, object]]:
    """For each of these routes, and each other that has tasks: how many there are in each state, and the longest wait
    in seconds."""
    routes = list(dict.fromkeys((*names, *sorted(route for route, _ in counts))))
    return {
        route: {
            **{state: counts.get((route, state), 0) for state in ("queued", "running", *TASK_OUTCOMES)},
            "longest_wait_s": round(longest_waits.get(route, 0.0), 1),
        }
        for route in routes
    }
