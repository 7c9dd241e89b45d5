"""Schedules: the policy's own requests, put into the queue when their cron expression is due.

Every instance looks, and one of them wins: the time that a schedule was last due and dealt with is a row in the queue's
database, which is moved on in the same transaction that adds the task. So a time is dealt with once over all instances,
however many there are and whichever dies.

What becomes of a time that is due:

    at most 10 s late                                  queued
    the one before still waits or runs                 skipped
    later: no instance, or no database, was there      missed; queued with `catch_up`, once, however many there were

A schedule that is new, or whose expression changed, begins now: what was due before was not its business.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from proxy import __version__
from proxy.observe.emit import EmitEvent
from proxy.observe.recent_errors import format_rfc3339
from proxy.policy.schema import Schedule
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.queue import TaskQueue
from proxy.tasks.record import NewTask, TaskRequest, cut_id
from proxy.units import format_duration
from proxy.util.user_names import SCHEDULE_PREFIX

MISSED_SECONDS = 10.0  # after which a time that nobody dealt with was missed
LOOK_SECONDS = 5.0  # the longest between two looks at the clock, which may be set, or stand still with the machine
LOOPBACK = "127.0.0.1"  # from which a schedule's requests come
AWAY_SECONDS = 1.0  # between two tries while the database is away

Outcome = Literal["queued", "skipped", "taken"]


def schedule_user(name: str) -> str:
    """The user that a schedule's tasks, and their calls out, belong to."""
    return f"{SCHEDULE_PREFIX}{name}"


def make_scheduled_request(schedule: Schedule, public_host: str) -> TaskRequest:
    """The request that a schedule makes, as a client would send it.

    `public_host` is the name by which clients reach the app, by https; empty if it is not known. Frameworks refuse
    other names (Django's ALLOWED_HOSTS), and some redirect what did not come by https.
    """
    fields = [
        (b"Host", (public_host or "localhost").encode()),
        (b"User-Agent", f"Outrigger/{__version__} (schedule)".encode()),
    ]
    if schedule.request.method not in ("GET", "HEAD", "OPTIONS"):
        fields.append((b"Content-Length", b"0"))
    if public_host:
        fields.append((b"X-Forwarded-Proto", b"https"))
    target, request_id = schedule.request.path.encode(), secrets.token_hex(16)
    return TaskRequest(schedule.request.method, target, tuple(fields), b"", LOOPBACK, request_id=request_id)


@dataclass(slots=True)
class _Progress:
    """How far a schedule is, as this instance knows: the last time that was dealt with, and the next one."""

    timing: str
    last: float
    next: float


class ScheduleBook:
    """What was dealt with last, in the queue's database. Every method raises TasksUnavailable."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._database = queue.database

    async def open(self, name: str, timing: str, now: float) -> float:
        """The time that was dealt with last; `now` for a schedule that is new or has another timing than before."""
        async with self._database.transaction() as tx:
            rows = await tx.fetch("SELECT timing, last FROM outrigger_task_schedules WHERE name = $1", name)
            if rows and rows[0][0] == timing:
                return float(rows[0][1])
            await tx.execute(
                "INSERT INTO outrigger_task_schedules (name, timing, last) VALUES ($1, $2, $3)"
                " ON CONFLICT (name) DO UPDATE SET timing = excluded.timing, last = excluded.last",
                name,
                timing,
                now,
            )
        return now

    async def queue_task(self, name: str, due: float, task: NewTask, keep: float) -> Outcome:
        """Deal with a time: queue the task, unless the one before still waits or runs, or another instance was here."""
        async with self._database.transaction() as tx:
            rows = await tx.fetch(
                f"SELECT last FROM outrigger_task_schedules WHERE name = $1{self._database.wait_lock}", name
            )
            if not rows or rows[0][0] >= due:
                return "taken"
            await tx.execute("UPDATE outrigger_task_schedules SET last = $2 WHERE name = $1", name, due)
            busy = await tx.fetch(
                "SELECT 1 FROM outrigger_tasks WHERE user_id = $1 AND state IN ('queued', 'delayed', 'running')"
                " LIMIT 1",
                task.user,
            )
            if busy:
                return "skipped"
            await self._queue.add_within(tx, [task], keep)
            return "queued"

    async def pass_over(self, name: str, due: float) -> bool:
        """Deal with a time by leaving it out; whether it was this instance that did."""
        async with self._database.transaction() as tx:
            done = await tx.execute(
                "UPDATE outrigger_task_schedules SET last = $2 WHERE name = $1 AND last < $2", name, due
            )
        return done > 0


class Scheduler:
    """Looks at the clock and deals with what is due. `run` is its whole life; `apply` puts other schedules in force.

    `make_task` makes the task of a schedule, `queued` is called after one was added. `now` is the wall clock, Unix
    seconds: a cron expression is about nothing else.
    """

    def __init__(
        self,
        book: ScheduleBook,
        schedules: Sequence[Schedule],
        *,
        make_task: Callable[[Schedule], NewTask],
        queued: Callable[[], None],
        keep: Callable[[], float],
        emit: EmitEvent,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._book = book
        self._schedules = tuple(schedules)
        self._make_task = make_task
        self._queued = queued
        self._keep = keep
        self._emit = emit
        self._now = now
        self._progress: dict[str, _Progress] = {}
        self._changed = asyncio.Event()

    def apply(self, schedules: Sequence[Schedule]) -> None:
        self._schedules = tuple(schedules)
        names = {schedule.name for schedule in schedules}
        self._progress = {name: known for name, known in self._progress.items() if name in names}
        self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._changed.clear()
            pause = await self.look()
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def look(self) -> float:
        """Deal with what is due now; in how many seconds to look again."""
        for schedule in self._schedules:
            try:
                await self._check_schedule(schedule)
            except TasksUnavailable:  # health tells of it
                return AWAY_SECONDS
        times = [known.next - self._now() for known in self._progress.values()]
        return min((LOOK_SECONDS, *(max(0.0, seconds) for seconds in times)))

    async def _check_schedule(self, schedule: Schedule) -> None:
        now, timing = self._now(), f"{schedule.cron} {schedule.timezone}"
        known = self._progress.get(schedule.name)
        if known is None or known.timing != timing:
            last = await self._book.open(schedule.name, timing, now)
            known = _Progress(timing, last, schedule.cron.next_due(last, schedule.timezone))
            self._progress[schedule.name] = known
        if now < known.next:
            return
        due = schedule.cron.latest_due(known.last, now, schedule.timezone) or known.next
        if now - due <= MISSED_SECONDS or schedule.catch_up:
            await self._queue_task(schedule, due, now)
        elif await self._book.pass_over(schedule.name, due):
            self._log(schedule, due, "missed", "it was missed, since no instance could run it within 10 s")
        known.last, known.next = due, schedule.cron.next_due(due, schedule.timezone)

    async def _queue_task(self, schedule: Schedule, due: float, now: float) -> None:
        task = self._make_task(schedule)
        outcome = await self._book.queue_task(schedule.name, due, task, self._keep())
        if outcome == "queued":
            late = now - due
            how = (
                f"queued {format_duration(round(late))} late, since it was missed"
                if late > MISSED_SECONDS
                else "queued"
            )
            self._log(schedule, due, "queued", f"it is {how}", task=cut_id(task.id), route=task.route)
            self._queued()
        elif outcome == "skipped":
            self._log(schedule, due, "skipped", "it is skipped, since the one before has not ended yet")

    def _log(self, schedule: Schedule, due: float, outcome: str, text: str, **more: str) -> None:
        at = format_rfc3339(due)
        self._emit(
            "schedule",
            f"Schedule {schedule.name}, due at {at}: {text}.",
            level="info" if outcome == "queued" else "warning",
            schedule=schedule.name,
            due=at,
            outcome=outcome,
            **more,
        )
