"""The worker of one instance: it claims tasks in their turn, runs them, and writes down how each try ended.

Three loops, each of which goes on when the database is away and says so:

- `run` claims: at once when something was accepted here or a place became free, and by polling, since it may not hear
  of what other instances accept.
- `run_heartbeat` says every HEARTBEAT_SECONDS that this instance is alive, learns which of its tries were cancelled
  elsewhere, and queues what dead instances ran.
- one task of the event loop for each try, `_run_try`, which does not end before its end is written down.

An instance judges nobody dead before its own heartbeats were written for STEADY_SECONDS: after the database was away
everybody looks dead for a moment, until the others have said that they are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from proxy.observe.emit import EmitEvent, LogLevel
from proxy.observe.metrics import Metrics
from proxy.policy.schema import Background
from proxy.tasks.availability import Availability
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.ports import TaskRunner
from proxy.tasks.queue import TaskQueue, TryEnd
from proxy.tasks.record import ClaimedTask, Task, cut_id
from proxy.tasks.retry_rules import TryResult, end_of
from proxy.units import nanos_as_dollars
from proxy.util.background_tasks import BackgroundTasks

HEARTBEAT_SECONDS = 2.0
STEADY_SECONDS = 5.0  # two heartbeats of the others, and a moment
POLL_SECONDS = 1.0  # between two looks at the queue, if nothing wakes the worker
MIN_WRITE_RETRY, MAX_WRITE_RETRY = 0.25, 2.0  # seconds between tries to write a result while the database is away

StopReason = Literal["cancelled", "drain", "lost"]


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What the policy says of a task: its route's `background`, with the time-out that is its own (`schedules`)."""

    background: Background
    timeout: float
    max_result: int


@dataclass(slots=True)
class RunningTry:
    """A try under way. `stop_reason`: why it was told to stop; `ended`: the app has answered, or will not."""

    claimed: ClaimedTask
    attempt: asyncio.Task[TryResult] | None = None
    stop_reason: StopReason | None = None
    ended: bool = False


class TaskWorker:
    """Runs tasks on this instance. `settings` says what the policy in force has for a task; `on_change` is called
    with the id of each task that changed, and with whether that was its end; `on_try` with how long a try took."""

    def __init__(
        self,
        queue: TaskQueue,
        runner: TaskRunner,
        *,
        settings: Callable[[Task], TaskSettings],
        background: Callable[[str], Background],
        availability: Availability,
        emit: EmitEvent,
        redact: Callable[[str], str],
        metrics: Metrics,
        clock: Callable[[], float],
        on_change: Callable[[str, bool], None],
        on_try: Callable[[str, float], None],
    ) -> None:
        self._queue = queue
        self._runner = runner
        self._settings = settings
        self._background = background
        self._availability = availability
        self._emit = emit
        self._redact = redact
        self._metrics = metrics
        self._clock = clock
        self._on_change = on_change
        self._on_try = on_try
        self._tries: dict[str, RunningTry] = {}
        self._tasks = BackgroundTasks()
        self._wake = asyncio.Event()
        self._claiming = asyncio.Lock()  # a drain begins when no claim is on its way
        self._hot: set[str] = set()  # routes to claim on at once
        self._next_poll = 0.0
        self._alone = False  # a task runs that has killed two instances: nothing else runs beside it
        self._making_room = False  # such a task waits until nothing runs here
        self._orphans: set[str] = set()  # claimed by us as the table says, and unknown here
        self.draining = False
        self._steady_since: float | None = None  # since when every heartbeat was written

    def __repr__(self) -> str:
        state = "draining" if self.draining else "claiming"
        return f"<TaskWorker {state}, {len(self._tries)} running>"

    def __len__(self) -> int:
        return len(self._tries)

    def wake(self, route: str | None = None) -> None:
        """Something may be claimed on a route, or on any of them."""
        if route is None:
            self._next_poll = 0.0
        else:
            self._hot.add(route)
        self._wake.set()

    def cancel(self, id: str) -> None:
        """Stop a task's try, if it runs here: its connection to the app is closed."""
        self._stop_try(self._tries.get(id), "cancelled")

    async def drain(self, seconds: float) -> None:
        """Claim nothing any more; what runs may finish for so long, and is queued again otherwise."""
        self.draining = True
        deadline = self._clock() + seconds
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                async with self._claiming:
                    await self._tasks.wait()
        except TimeoutError:
            for running in list(self._tries.values()):
                self._stop_try(running, "drain")
        # To be queued again takes a write each; a database that is away finds out by itself, when our lease is over.
        try:
            async with asyncio.timeout(max(2.0, deadline - self._clock())):
                await self._tasks.wait()
        except TimeoutError:
            self._tasks.cancel()

    def close(self) -> None:
        """End everything now; other instances take over."""
        self._tasks.cancel()

    # ── claiming ─────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Claim what may run, for ever."""
        while not self.draining:
            try:
                async with asyncio.timeout(self._seconds_to_poll()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self.draining or not self._runner.is_ready:
                self._next_poll = max(self._next_poll, self._clock() + POLL_SECONDS / 4)
                continue
            try:
                async with self._claiming:
                    await self._claim_round()
            except TasksUnavailable as away:
                self._availability.note_failure(away)
                self._next_poll = self._clock() + POLL_SECONDS

    def _seconds_to_poll(self) -> float:
        return max(0.0, self._next_poll - self._clock())

    async def _claim_round(self) -> None:
        if self._clock() >= self._next_poll:
            next_due = await self._queue.promote()
            while next_due == 0.0:
                next_due = await self._queue.promote()
            self._next_poll = self._clock() + min(POLL_SECONDS, POLL_SECONDS if next_due is None else next_due)
            await self._look_for_suspects()
            self._hot.update(await self._queue.routes_waiting())
        if self._alone or self._making_room:
            return
        hot, self._hot = self._hot, set()
        try:
            # Asked again for each route: the app may have gone, or a drain begun, while the others were claimed.
            while hot and self._runner.is_ready and not self.draining:
                route = hot.pop()
                for claimed in await self._queue.claim(route, self._background(route).concurrency):
                    await self._start_try(claimed)
        finally:
            self._hot |= hot

    async def _look_for_suspects(self) -> None:
        """Run a task that has killed two instances, with nothing else beside it."""
        routes = await self._queue.suspect_routes()
        self._making_room = False
        if not routes or self._alone:
            return
        if self._tries:
            # One instance makes room, the others go on; whoever has nothing to do takes it before that.
            live = await self._queue.live_instances(self._queue.database.lease)
            self._making_room = bool(live) and live[0] == self._queue.instance
            return
        for route in routes:
            for claimed in await self._queue.claim(route, self._background(route).concurrency, suspects=True):
                self._alone = not self.draining
                await self._start_try(claimed)
                return

    async def _start_try(self, claimed: ClaimedTask) -> None:
        if self.draining:  # the drain began while the answer to the claim was on its way
            await self._give_back(claimed.task.id, claimed.task.attempts, "drain")
            return
        running = self._tries[claimed.task.id] = RunningTry(claimed)
        self._metrics.task_wait_seconds.labels(claimed.task.route).observe(claimed.waited)
        self._on_change(claimed.task.id, False)
        self._tasks.start(self._run_try(running))

    # ── a try ────────────────────────────────────────────────────────────────────────────────

    async def _run_try(self, running: RunningTry) -> None:
        """One try, from the claim to what is written down of it."""
        task = running.claimed.task
        settings = self._settings(task)
        try:
            work = self._runner.run_task(running.claimed, settings.timeout, settings.max_result)
            running.attempt = asyncio.get_running_loop().create_task(work)
            # Not awaited itself: being told to stop ends the attempt, and this goes on to write that down.
            await asyncio.wait((running.attempt,))
            running.ended = True
            result = None if running.attempt.cancelled() else running.attempt.result()
            end = self._end_of(running, result, settings.background)
            if end is not None:
                written = await self._write_end(running.claimed, end)
                self._account(running.claimed, result, end, written)
        finally:
            if running.attempt is not None:
                running.attempt.cancel()
            del self._tries[task.id]
            self._alone = self._alone and bool(self._tries)
            # After a suspect every route may have something that waited for it.
            self.wake(task.route if task.kills == 0 else None)

    def _end_of(self, running: RunningTry, result: TryResult | None, background: Background) -> TryEnd | None:
        """What to write down; None if somebody else runs the task by now."""
        if result is not None:
            return end_of(result, running.claimed.task, background)
        if running.stop_reason == "cancelled":
            return TryEnd("cancelled", counted=False)
        if running.stop_reason == "drain":
            return TryEnd("queued", "drain", counted=False)
        return None

    async def _write_end(self, claimed: ClaimedTask, end: TryEnd) -> Task | None:
        """Write down how a try ended, as often as it takes: what the app answered is not lost to a database that is
        away for a while. The task as it is then; None if it is not ours to say any more."""
        pause = MIN_WRITE_RETRY
        while True:
            try:
                written = await self._queue.end_try(claimed.task.id, claimed.task.attempts, end)
            except TasksUnavailable as away:
                self._availability.note_failure(away)
                await asyncio.sleep(pause)
                pause = min(MAX_WRITE_RETRY, pause * 2)
                continue
            self._availability.note_success()
            self._on_change(claimed.task.id, written is not None and written.has_ended)
            return written

    def _account(self, claimed: ClaimedTask, result: TryResult | None, end: TryEnd, written: Task | None) -> None:
        """The try's metrics, and its line in the log."""
        task, request = claimed.task, claimed.request
        outcome = end.state if written is None else written.state
        label = result.label if result is not None else "drain" if end.state == "queued" else "cancelled"
        self._metrics.task_attempts_total.labels(task.route, label).inc()
        if result is not None:
            self._metrics.task_run_seconds.labels(task.route).observe(result.seconds)
            self._on_try(task.route, result.seconds)
        if written is not None and written.has_ended:
            self._metrics.tasks_total.labels(task.route, written.state).inc()
        level: LogLevel = "warning" if outcome == "failed" else "info"
        status = result.response.status if result is not None and result.response is not None else None
        said = {"queued": "queued again", "delayed": "to be tried again"}.get(outcome, outcome)
        self._emit(
            "task",
            f"{request.method} {task.route}: try {task.attempts} of {cut_id(task.id)}: {said}"
            + (f" ({end.reason})" if end.reason else ""),
            level=level,
            request_id=request.request_id,
            trace_id=request.trace_id,
            task=cut_id(task.id),
            route=task.route,
            method=request.method,
            path=self._redact(request.target.decode("utf-8", "replace")),
            status=status,
            attempt=task.attempts,
            outcome=outcome,
            reason=end.reason or None,
            detail=(result.detail or None) if result is not None else None,
            wait_ms=round(claimed.waited * 1000, 3),
            duration_ms=None if result is None else round(result.seconds * 1000, 3),
            app_ms=None if result is None else round(result.app_seconds * 1000, 3),
            user=task.user,
            tier=task.tier,
            bytes_in=None if result is None else result.bytes_in,
            bytes_out=None if result is None else result.bytes_out,
            cost_usd=None if result is None or not result.cost else nanos_as_dollars(result.cost),
            calls=0 if result is None else result.calls,
        )

    def _stop_try(self, running: RunningTry | None, reason: StopReason) -> None:
        # One that has ended is on its way into the table, and there its end is judged.
        if running is None or running.ended or running.attempt is None:
            return
        running.stop_reason = running.stop_reason or reason
        running.attempt.cancel()

    # ── being alive ──────────────────────────────────────────────────────────────────────────

    async def run_heartbeat(self) -> None:
        """Say that this instance is alive, and look after what dead ones left, for ever."""
        lease = self._queue.database.lease
        next_takeover = self._clock() + lease / 3
        while True:
            try:
                known = list(self._tries.values())
                # Alone on a file, and with nothing that others could take over, there is nobody to be told: a disk is
                # not written to for nothing. While the queue is away only a write shows that it is back.
                write = self._queue.database.shared or bool(known) or self._availability.away_because is not None
                self._compare(known, await self._queue.heartbeat(write=write))
                if write:
                    self._availability.note_success()
                now = self._clock()
                if self._steady_since is None:
                    self._steady_since = now
                if now >= next_takeover and now - self._steady_since >= STEADY_SECONDS:
                    next_takeover = now + lease / 3
                    self._note_taken_over(await self._queue.take_over())
            except TasksUnavailable as away:
                self._steady_since = None
                self._availability.note_failure(away)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _compare(self, known: list[RunningTry], table: dict[str, tuple[int, bool]]) -> None:
        """Stop tries that the table says are cancelled, or run elsewhere by now; give back what nobody runs here.

        `known` are those that ran before the table was read: a later claim cannot be in it.
        """
        for running in known:
            attempt, cancelling = table.get(running.claimed.task.id, (0, False))
            if cancelling:
                self._stop_try(running, "cancelled")
            elif attempt != running.claimed.task.attempts:
                self._stop_try(running, "lost")
        # The answer to a claim was lost: the table says that we run it. Seen twice, since a claim may be on its way.
        orphans = {id for id in table if id not in self._tries}
        for id in orphans & self._orphans:
            self._tasks.start(self._give_back(id, table[id][0], "lost"))
        self._orphans = orphans

    async def _give_back(self, id: str, attempt: int, reason: str) -> None:
        """Queue a task again that was claimed and is not tried."""
        try:
            await self._queue.end_try(id, attempt, TryEnd("queued", reason, counted=False))
        except TasksUnavailable as away:
            self._availability.note_failure(away)

    def _note_taken_over(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._metrics.task_attempts_total.labels(task.route, "died").inc()
            if task.has_ended:
                self._metrics.tasks_total.labels(task.route, task.state).inc()
            text = f"The instance that ran {cut_id(task.id)} is gone: it is {task.state} after try {task.attempts}."
            self._emit(
                "task",
                text,
                level="warning",
                task=cut_id(task.id),
                route=task.route,
                attempt=task.attempts,
                outcome=task.state,
                reason=task.reason,
                user=task.user,
            )
            self._on_change(task.id, task.has_ended)
        if tasks:
            self.wake()
