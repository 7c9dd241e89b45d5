"""The queue as the rest of the gateway sees it: accept, ask, cancel; and the worker behind it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

from proxy.observe.emit import EmitEvent
from proxy.observe.health import ComponentHealth
from proxy.observe.metrics import Metrics
from proxy.policy.schema import Background, Policy, Route, Schedule
from proxy.policy.urls import mask_password, sqlite_path
from proxy.tasks.availability import Availability
from proxy.tasks.callbacks import CallbackQueue, CallbackSender
from proxy.tasks.catalog import PRUNE_ROWS, TaskCatalog
from proxy.tasks.database import Database, TasksUnavailable
from proxy.tasks.ports import TaskRunner
from proxy.tasks.queue import Added, TaskQueue
from proxy.tasks.record import NewTask, Task, TaskResponse, new_id
from proxy.tasks.scheduler import ScheduleBook, Scheduler, make_scheduled_request, schedule_user
from proxy.tasks.worker import TaskSettings, TaskWorker
from proxy.util.background_tasks import BackgroundTasks

MAX_BATCH = 100  # tasks accepted in one transaction
COUNT_SECONDS = 2.0  # how old the gauges may be
PRUNE_SECONDS, PRUNE_PAUSE = 30.0, 0.05
WAIT_POLL_SECONDS = 1.0  # how late an end may be known here that came on an instance that is not heard
STOP_SECONDS = 3.0
RESTART_SECONDS = 1.0  # after which a loop that had a fault goes on
START_SECONDS = 5.0  # that a start waits for the database


class TaskService:
    """Made when the policy first names it; `start` opens the database, which may be away.

    `public_host` is the name by which clients reach the app, empty if it is not known; requests of schedules have it.

    - `queue` and `catalog`: for parts of this room that have questions of their own.
    - `counts`, `longest_waits`: of all instances, at most COUNT_SECONDS old.
    """

    def __init__(
        self,
        policy: Policy,
        runner: TaskRunner,
        *,
        emit: EmitEvent,
        redact: Callable[[str], str],
        metrics: Metrics,
        clock: Callable[[], float],
        public_host: str = "",
    ) -> None:
        self._emit = emit
        self._runner = runner
        self._public_host = public_host
        self._metrics = metrics
        self._clock = clock
        self.database = open_database(policy.tasks.url or policy.ledger.url, self._hear)
        instance = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.queue = TaskQueue(self.database, instance)
        self.catalog = TaskCatalog(self.database)
        self.availability = Availability(self.database.where, emit=emit, clock=clock)
        self.worker = TaskWorker(
            self.queue,
            runner,
            settings=self.settings_of,
            background=self.background_of,
            availability=self.availability,
            emit=emit,
            redact=redact,
            metrics=metrics,
            clock=clock,
            on_change=self._note_change,
            on_try=self._note_seconds,
        )
        self.callbacks = CallbackSender(CallbackQueue(self.database), policy.tasks, emit=emit, metrics=metrics)
        self.scheduler = Scheduler(
            ScheduleBook(self.queue),
            policy.schedules,
            make_task=self._make_scheduled_task,
            queued=self.worker.wake,
            keep=lambda: self.policy.keep,
            emit=emit,
        )
        self.counts: Mapping[tuple[str, str], int] = {}
        self.longest_waits: Mapping[str, float] = {}
        self._mean_seconds: dict[str, float] = {}  # that a task of a route runs, a running mean
        self._pending: list[tuple[NewTask, asyncio.Future[Added]]] = []
        self._accepting = asyncio.Event()
        self._changes: dict[str, set[asyncio.Event]] = {}  # who waits for news of a task
        self._loops = BackgroundTasks()
        self._is_started = False
        self.apply(policy)

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    def apply(self, policy: Policy) -> None:
        """Take a newer policy; the database stays."""
        self.policy = policy.tasks
        self._routes: Mapping[str, Route] = {route.name: route for route in policy.routes}
        self._metrics.declare_tasks(name for name, route in self._routes.items() if route.background.mode != "off")
        self._schedules = {schedule_user(schedule.name): schedule for schedule in policy.schedules}
        self.callbacks.apply(policy.tasks)
        self.scheduler.apply(policy.schedules)
        self.worker.wake()

    async def start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        try:
            async with asyncio.timeout(START_SECONDS):
                await self.queue.heartbeat()
        except TimeoutError:
            late = TasksUnavailable(f"{self.database.where} did not answer in {START_SECONDS:g} s")
            self.availability.note_failure(late)
        except TasksUnavailable as away:
            self.availability.note_failure(away)
        for loop in (
            self.worker.run,
            self.worker.run_heartbeat,
            self.callbacks.run,
            # Goes on while the gateway drains: what comes due then is there for the next instance.
            self.scheduler.run,
            self._accept_forever,
            self._count_forever,
            self._prune_forever,
            self._watch_forever,
        ):
            self._loops.start(self._keep_running(loop))

    async def _keep_running(self, loop: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run one of the loops; a fault of ours in it must not end the queue."""
        while True:
            try:
                await loop()
                return
            except Exception as error:  # the outermost seam of everything that runs here by itself
                self._emit("fault", f"{type(error).__name__}: {error}", level="error")
                await asyncio.sleep(RESTART_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Claim nothing any more; what runs may finish for so long, and is queued again otherwise. Who waits for the
        end of a task is answered now."""
        self.worker.draining = True
        for waiters in self._changes.values():
            for change in waiters:
                change.set()
        await self.worker.drain(seconds)

    async def stop(self) -> None:
        if self._is_started:
            self.worker.draining = True
            self.worker.close()
            await self._loops.close()
            await self.callbacks.close()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.queue.leave()
            except (TasksUnavailable, TimeoutError):
                pass
        try:
            async with asyncio.timeout(1.0):
                await self.database.close()
        except (TasksUnavailable, TimeoutError):
            pass

    def health(self) -> ComponentHealth:
        return self.availability.health()

    # ── what clients ask ─────────────────────────────────────────────────────────────────────

    async def submit(self, task: NewTask) -> Added:
        """Accept a task; it is on the disk when this returns. Raises TasksUnavailable."""
        self._check_available()
        future: asyncio.Future[Added] = asyncio.get_running_loop().create_future()
        self._pending.append((task, future))
        self._accepting.set()
        return await future

    async def find_by_key(self, route: str, user: str, key: str) -> Task | None:
        """The task that has this (hashed) Idempotency-Key. Raises TasksUnavailable."""
        self._check_available()
        return await self.queue.find_by_key(route, user, key, self.policy.keep)

    async def find(self, id: str) -> Task | None:
        """Raises TasksUnavailable."""
        self._check_available()
        return await self.catalog.find(id)

    async def result(self, id: str) -> TaskResponse | None:
        """Raises TasksUnavailable."""
        return await self.catalog.result(id)

    async def cancel(self, id: str) -> Task | None:
        """The task as it was; None if it is unknown. One that runs here has lost its connection when this returns.

        Raises TasksUnavailable.
        """
        self._check_available()
        task = await self.queue.cancel(id)
        if task is not None and not task.has_ended:
            if task.state != "running":
                self._metrics.tasks_total.labels(task.route, "cancelled").inc()
            self.worker.cancel(id)
            self._note_change(id, True)
        return task

    async def retry(self, id: str) -> Task | None:
        """Raises TasksUnavailable."""
        task = await self.catalog.retry(id)
        if task is not None:
            self.worker.wake()
        return task

    async def wait_for_end(self, id: str, seconds: float) -> Task | None:
        """The task when it has ended, or after so many seconds, or when a drain begins. Raises TasksUnavailable."""
        deadline = self._clock() + seconds
        change = asyncio.Event()
        self._changes.setdefault(id, set()).add(change)
        try:
            while True:
                task = await self.find(id)
                left = deadline - self._clock()
                if task is None or task.has_ended or left <= 0 or self.worker.draining:
                    return task
                try:
                    async with asyncio.timeout(left):
                        await change.wait()
                except TimeoutError:
                    pass
                change.clear()
        finally:
            waiters = self._changes[id]
            waiters.discard(change)
            if not waiters:
                del self._changes[id]

    def is_gone(self, task: Task, now: float) -> bool:
        """Whether its result is not kept any more (`tasks.keep`)."""
        return task.ended is not None and task.ended <= now - self.policy.keep

    def expected_seconds(self, task: Task) -> float:
        """In how many seconds it makes sense to ask for it again: a guess by how long its route's tasks run."""
        mean = self._mean_seconds.get(task.route, 1.0)
        if task.position:
            ahead = task.position / max(1, self.background_of(task.route).concurrency)
            return min(60.0, max(1.0, ahead * mean))
        return min(30.0, max(1.0, mean / 2))

    def expected_full_seconds(self, route: str) -> float:
        """In how many seconds a full queue may have a place again."""
        return max(1.0, self._mean_seconds.get(route, 1.0) / self.background_of(route).concurrency)

    def background_of(self, route: str) -> Background:
        """The `background` of a route; the defaults for one that is not in the policy any more."""
        found = self._routes.get(route)
        return found.background if found is not None else Background()

    def settings_of(self, task: Task) -> TaskSettings:
        background, schedule = self.background_of(task.route), self._schedules.get(task.user)
        timeout = background.timeout if schedule is None else schedule.timeout
        return TaskSettings(background, timeout, self.policy.max_result)

    def _make_scheduled_task(self, schedule: Schedule) -> NewTask:
        # No bound of its route concerns it: neither `max_queued` nor a rate limit.
        request, user = make_scheduled_request(schedule, self._public_host), schedule_user(schedule.name)
        route, tier = self._runner.find_route(request, user)
        return NewTask(new_id(), route, user, tier, request)

    def _check_available(self) -> None:
        # The worker's loops look whether it is back: no request has to wait for a time-out meanwhile.
        if self.availability.away_because is not None:
            raise TasksUnavailable(self.availability.away_because)

    # ── loops ────────────────────────────────────────────────────────────────────────────────

    async def _accept_forever(self) -> None:
        """Write what is to be accepted: all that came while the last transaction was written goes into the next."""
        while True:
            await self._accepting.wait()
            self._accepting.clear()
            while self._pending:
                batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
                await self._accept_batch(batch)

    async def _accept_batch(self, batch: list[tuple[NewTask, asyncio.Future[Added]]]) -> None:
        try:
            added = await self.queue.add([task for task, _ in batch], self.policy.keep)
        except TasksUnavailable as away:
            self.availability.note_failure(away)
            for _, future in batch:
                if not future.done():
                    future.set_exception(TasksUnavailable(str(away), doubtful=away.doubtful))
            return
        except Exception as error:  # a fault of ours: nobody may wait for ever, and the loop says what it was
            for _, future in batch:
                if not future.done():
                    future.set_exception(TasksUnavailable(f"{type(error).__name__}: {error}"))
            raise
        self.availability.note_success()
        for (task, future), one in zip(batch, added, strict=True):
            if not future.done():
                future.set_result(one)
            self.worker.wake(task.route)

    async def _count_forever(self) -> None:
        while True:
            try:
                await self.database.listen()
                self.counts = await self.catalog.counts()
                self.longest_waits = await self.catalog.longest_waits()
                self._set_gauges()
            except TasksUnavailable as away:
                self.availability.note_failure(away)
            await asyncio.sleep(COUNT_SECONDS)

    def _set_gauges(self) -> None:
        gauge = self._metrics.tasks
        for (route, state), _ in list(gauge.children()):
            if (route, state) not in self.counts:
                gauge.labels(route, state).set(0)
        for (route, state), count in self.counts.items():
            gauge.labels(route, state).set(count)
        oldest = self._metrics.task_oldest_wait_seconds
        for (route,), _ in list(oldest.children()):
            if route not in self.longest_waits:
                oldest.labels(route).set(0)
        for route, seconds in self.longest_waits.items():
            oldest.labels(route).set(seconds)

    async def _watch_forever(self) -> None:
        """Wake who waits for a task that another instance has ended: one question for all who wait, whether or not
        instances hear of each other."""
        while True:
            await asyncio.sleep(WAIT_POLL_SECONDS)
            if not (self.database.shared and self._changes):
                continue
            try:
                for id in await self.catalog.ended_among(list(self._changes)):
                    self._wake_waiting(id)
            except TasksUnavailable as away:
                self.availability.note_failure(away)

    async def _prune_forever(self) -> None:
        while True:
            await asyncio.sleep(min(PRUNE_SECONDS, self.policy.keep))
            try:
                while await self.catalog.prune(self.policy.keep) >= PRUNE_ROWS:
                    await asyncio.sleep(PRUNE_PAUSE)
            except TasksUnavailable as away:
                self.availability.note_failure(away)

    # ── news ─────────────────────────────────────────────────────────────────────────────────

    def _note_seconds(self, route: str, seconds: float) -> None:
        """How long a try ran, for guesses."""
        mean = self._mean_seconds.get(route)
        self._mean_seconds[route] = seconds if mean is None else mean + (seconds - mean) * 0.1

    def _wake_waiting(self, id: str) -> None:
        for change in self._changes.get(id, ()):
            change.set()

    def _note_change(self, id: str, has_ended: bool) -> None:
        self._wake_waiting(id)
        if has_ended and self.policy.callbacks:
            self.callbacks.wake()

    def _hear(self, text: str) -> None:
        """What another instance says: `cancel ID` or `ended ID`."""
        word, _, id = text.partition(" ")
        if word == "cancel":
            self.worker.cancel(id)
        elif word == "ended":
            self._note_change(id, True)


def open_database(url: str, hear: Callable[[str], None]) -> Database:
    """The database that a URL names. Its driver is loaded only then, and nothing is opened yet."""
    path = sqlite_path(url)
    if path is not None:
        from proxy.tasks.sqlite_database import SqliteDatabase

        return SqliteDatabase(Path(path))
    from proxy.tasks.postgres_database import PostgresDatabase

    return PostgresDatabase(url, where=mask_password(url), on_notify=hear)
