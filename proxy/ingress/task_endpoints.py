"""`/_outrigger/tasks/ID` on the public listener: whoever has the id may ask for the task, fetch its result, cancel it.

An id is 128 random bits, so no token is asked for. Pages of another origin may ask too, as the page that made the
request did.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.errors import Refusal
from proxy.http.client_connection import ClientConnection
from proxy.ingress.background import (
    preferences_of,
    retry_after_line,
    unavailable,
    write_empty,
    write_json,
    write_result,
)
from proxy.ingress.exchange import Exchange
from proxy.ingress.headers import TASK_REQUEST_FIELDS, is_preflight
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.record import Task
from proxy.tasks.view import TASKS_PATH, task_view

if TYPE_CHECKING:
    from proxy.tasks.service import TaskService

_PATH = re.compile(re.escape(TASKS_PATH) + r"([0-9a-f]{32})(/result)?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
METHODS = "GET, HEAD, DELETE, OPTIONS"
PREFLIGHT_SECONDS = 600  # that a browser need not ask again


class TaskEndpoints:
    """Answers for tasks. `find_service` gives the queue, None if no policy has named it."""

    def __init__(
        self, find_service: Callable[[], TaskService | None], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._find_service = find_service
        self._clock = clock

    def claims(self, path: str) -> bool:
        return path.startswith(TASKS_PATH)

    async def handle(self, connection: ClientConnection, x: Exchange) -> bool:
        """Answer a request. True if its connection may serve another one. Raises Refusal."""
        if is_preflight(x):
            return write_empty(connection, x, _preflight_lines(x))
        service, found = self._find_service(), _PATH.fullmatch(x.path)
        if service is None or found is None:
            raise _unknown()
        try:
            return await self._answer(connection, x, service, found[1], is_result=found[2] is not None)
        except TasksUnavailable as away:
            raise unavailable(away) from away

    async def _answer(
        self, connection: ClientConnection, x: Exchange, service: TaskService, id: str, *, is_result: bool
    ) -> bool:
        if x.method == "DELETE" and not is_result:
            return await self._cancel(connection, x, service, id)
        if x.method not in ("GET", "HEAD"):
            raise Refusal("method-not-allowed", 405, "Method not allowed", f"Only {METHODS} here.")
        wait = preferences_of(x).wait
        task = self._check(await (service.wait_for_end(id, wait) if wait else service.find(id)), service)
        if not task.has_ended:
            return write_json(connection, x, 202, task_view(task), [retry_after_line(service, task)])
        if not is_result:
            return write_json(connection, x, 200, task_view(task), [])
        result = None if task.cancelling else await service.result(id)
        if result is None:
            detail = f"This task {task.shown_state}{f' ({task.reason})' if task.reason else ''} without an answer."
            raise Refusal("no-result", 404, "No result", detail)
        return write_result(connection, x, result)

    async def _cancel(self, connection: ClientConnection, x: Exchange, service: TaskService, id: str) -> bool:
        task = self._check(await service.cancel(id), service)
        if task.has_ended:
            detail = f"This task {task.shown_state} before; there is nothing to cancel."
            raise Refusal("task-ended", 409, "The task has ended", detail)
        return write_empty(connection, x, [])

    def _check(self, task: Task | None, service: TaskService) -> Task:
        if task is None:
            raise _unknown()
        if service.is_gone(task, self._clock()):
            raise Refusal("task-gone", 410, "Gone", "This task has ended so long ago that its result is not kept.")
        return task


def _unknown() -> Refusal:
    return Refusal("task-unknown", 404, "No such task", "There is no task of this id; it may have been kept until now.")


def _preflight_lines(x: Exchange) -> list[bytes]:
    """What lets a page of another origin ask (Fetch standard, section 4.8)."""
    asked = (x.joined_header("Access-Control-Request-Headers") or "").lower().split(",")
    names = dict.fromkeys((*TASK_REQUEST_FIELDS, *(name.strip() for name in asked if _TOKEN.fullmatch(name.strip()))))
    return [
        f"Access-Control-Allow-Methods: {METHODS}\r\n".encode(),
        f"Access-Control-Allow-Headers: {', '.join(names)}\r\n".encode(),
        b"Access-Control-Max-Age: %d\r\n" % PREFLIGHT_SECONDS,
    ]
