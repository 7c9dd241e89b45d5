"""What `/status` says of tasks and schedules, and what `ctl task` and `ctl tasks` ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from proxy.errors import Refusal
from proxy.observe.recent_errors import format_rfc3339
from proxy.parts import Parts
from proxy.policy import schema
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.record import Task

if TYPE_CHECKING:
    from proxy.tasks.overview import TaskOverview
    from proxy.tasks.service import TaskService

ASK_SECONDS = 2.0  # that a look at the status waits for the queue's database
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
MAX_LISTED, DEFAULT_LISTED = 1000, 50


class TaskReport:
    """`wall_clock` returns Unix time."""

    def __init__(self, parts: Parts, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._parts = parts
        self._wall_clock = wall_clock
        self._overview: TaskOverview | None = None

    async def build_status(self) -> Mapping[str, object] | None:
        """`tasks` of /status: counts that are seconds old at most, and lists of what an operator looks for; None if the
        policy names no tasks. A database that does not answer costs the lists, and `away` says why."""
        service = self._parts.tasks.service
        if service is None:
            return None
        from proxy.tasks.overview import count_by_route  # loaded with the queue

        names = [route.name for route in self._parts.policy.routes if route.background.mode != "off"]
        lists: Mapping[str, object] = {"waiting": [], "running": [], "failed": []}
        away = service.availability.away_because
        if away is None:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    lists = await self._tasks_overview(service).lists()
            except TasksUnavailable as error:
                away = str(error)
            except TimeoutError:
                away = f"it did not answer in {ASK_SECONDS:g} s"
        return {
            "where": service.database.where,
            "away": away,
            "routes": count_by_route(service.counts, service.longest_waits, names),
            **lists,
            "schedules": [self._show_schedule(schedule) for schedule in self._parts.policy.schedules],
        }

    async def list_tasks(self, query: Mapping[str, str]) -> Mapping[str, object]:
        """The newest tasks, by `route`, `status` and `limit` of the query. Raises Refusal."""
        status, limit = query.get("status"), query.get("limit", str(DEFAULT_LISTED))
        if status is not None and status not in STATUSES:
            raise Refusal("bad-request", 400, "No such status", f"A task is {', '.join(STATUSES)}.")
        if not (limit.isascii() and limit.isdigit() and 0 < int(limit) <= MAX_LISTED):
            raise Refusal("bad-request", 400, "Not a limit", f"`limit` is a number from 1 to {MAX_LISTED}.")
        overview = self._tasks_overview(find_service(self._parts))
        try:
            return {"tasks": await overview.list(route=query.get("route"), status=status, limit=int(limit))}
        except TasksUnavailable as away:
            raise tasks_unavailable(away) from away

    async def show_task(self, id: str) -> Mapping[str, object]:
        """One task, by its id or the beginning that log lines show. Raises Refusal."""
        overview = self._tasks_overview(find_service(self._parts))
        try:
            return {"task": await overview.view(await find_task(overview, id))}
        except TasksUnavailable as away:
            raise tasks_unavailable(away) from away

    def _tasks_overview(self, service: TaskService) -> TaskOverview:
        from proxy.tasks.overview import TaskOverview

        if self._overview is None:
            self._overview = TaskOverview(service.database)
        return self._overview

    def _show_schedule(self, schedule: schema.Schedule) -> Mapping[str, object]:
        due = schedule.cron.next_due(self._wall_clock(), schedule.timezone)
        return {
            "name": schedule.name,
            "cron": str(schedule.cron),
            "timezone": schedule.timezone,
            "request": f"{schedule.request.method} {schedule.request.path.partition('?')[0]}",
            "next": format_rfc3339(due),
        }


def find_service(parts: Parts) -> TaskService:
    """Raises Refusal if the policy names no tasks."""
    if parts.tasks.service is None:
        text = "The policy lets nothing run later: no route has `background`, and there are no `schedules`."
        raise Refusal("not-found", 404, "There are no tasks", text)
    return parts.tasks.service


async def find_task(overview: TaskOverview, id: str) -> Task:
    """The task that an id or its beginning names. Raises Refusal."""
    task, count = await overview.find(id.removesuffix("…"))
    if task is not None:
        return task
    text = "Several tasks begin so; give more of the id." if count else "There is no such task (any more)."
    raise Refusal("task-unknown", 404, "No such task", text)


def tasks_unavailable(away: TasksUnavailable) -> Refusal:
    return Refusal("tasks-unavailable", 503, "Tasks unavailable", f"The queue's database does not answer: {away}.")
