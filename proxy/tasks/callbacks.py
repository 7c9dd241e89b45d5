"""Callbacks: the end of a task is POSTed to the URL that its client named (Standard Webhooks).

A callback is three columns of its task's row, so it survives restarts and goes on from any instance:

    callback          the URL
    callback_at       when it is due; NULL: there is none, or it is over
    callback_tries    how often it was sent

state      event                                              next
none       the task ends                                      due at once
due        an instance claims it: due again after the lease,  sending
           and one try more, before a byte is sent
sending    2xx                                                over
sending    410, or it was the last try                        over, given up
sending    any other end                                      due again after the next of DELAYS
sending    the instance dies                                  due again when the lease is over

So it goes out once for each end, from one instance; twice only if an instance dies between the receiver's answer and
the row, or if the database is away then. The receiver tells the two by their `webhook-id`, which is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics
from proxy.observe.recent_errors import format_rfc3339
from proxy.policy import schema
from proxy.tasks.callback_delivery import DELIVERY_TIMEOUT, Delivery, deliver_callback
from proxy.tasks.callback_url import CallbackRefused, Resolve, parse_callback_url, resolve_name
from proxy.tasks.database import Database, TasksUnavailable, Transaction
from proxy.tasks.record import Task, cut_id
from proxy.tasks.rows import TASK_COLUMNS, task_from_row
from proxy.tasks.view import task_view
from proxy.units import format_duration

# Seconds between the tries: five quick ones for a receiver that restarts, then hourly for a day.
DELAYS: Sequence[float] = (1.0, 5.0, 30.0, 120.0, 600.0, *(3600.0 for _ in range(24)))
LEASE_SECONDS = DELIVERY_TIMEOUT + 15.0  # that a claim holds: one delivery, and writing down how it went
MAX_AT_ONCE = 16  # deliveries of this instance
POLL_SECONDS = 5.0  # between two looks for callbacks of tasks that ended elsewhere
AWAY_SECONDS = 1.0  # between two tries while the database is away
CLOSE_SECONDS = 5.0  # that deliveries under way have to end at a stop


@dataclass(frozen=True, slots=True)
class DueCallback:
    """A callback that this instance has claimed, for the `tries`-th time, with its task as it ended."""

    task: Task
    url: str
    tries: int

    @property
    def webhook_id(self) -> str:
        """The same at each delivery of this end; another one if the task is tried again and ends again."""
        end = f"{self.task.id}.{round((self.task.ended or 0.0) * 1e6)}"
        return f"msg_{hashlib.sha256(end.encode()).hexdigest()[:32]}"

    def render_body(self) -> bytes:
        """A cancelled task did not succeed, and its receiver waits for an end: the type is `task.failed`, and the
        status says what it was."""
        outcome = "succeeded" if self.task.state == "succeeded" else "failed"
        ended = format_rfc3339(self.task.ended or 0.0)
        body = {"type": f"task.{outcome}", "timestamp": ended, "data": task_view(self.task)}
        return json.dumps(body, ensure_ascii=False).encode()


class CallbackQueue:
    """The callbacks in the queue's database. Every method raises TasksUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, count: int) -> tuple[Sequence[DueCallback], float | None]:
        """At most `count` callbacks that are due, and in how many seconds the next one is, None if there is none."""
        # A look that changes nothing comes first: there is one every few seconds, and mostly nothing is due.
        async with self._database.transaction(write=False) as tx:
            wait = await self._next_due(tx)
        if wait is None or wait > 0 or not count:
            return (), wait
        async with self._database.transaction() as tx:
            rows = await tx.fetch(
                f"SELECT {TASK_COLUMNS}, callback_tries FROM outrigger_tasks WHERE callback_at <= $1"
                f" ORDER BY callback_at LIMIT {count}{self._database.row_lock}",
                tx.now,
            )
            await tx.execute_many(
                "UPDATE outrigger_tasks SET callback_at = $2, callback_tries = callback_tries + 1 WHERE id = $1",
                [(row[0], tx.now + LEASE_SECONDS) for row in rows],
            )
            wait = await self._next_due(tx)
        tasks = [task_from_row(row) for row in rows]
        found = [DueCallback(task, task.callback or "", row[-1] + 1) for task, row in zip(tasks, rows, strict=True)]
        return found, wait

    async def _next_due(self, tx: Transaction) -> float | None:
        rows = await tx.fetch("SELECT min(callback_at) FROM outrigger_tasks WHERE callback_at IS NOT NULL")
        return None if rows[0][0] is None else max(0.0, rows[0][0] - tx.now)

    async def end(self, callback: DueCallback) -> None:
        """It is over: sent, or given up."""
        async with self._database.transaction() as tx:
            # Whoever claimed it meanwhile, it was delivered; but not if the task began anew and ended again.
            await tx.execute(
                "UPDATE outrigger_tasks SET callback_at = NULL WHERE id = $1 AND ended = $2",
                callback.task.id,
                callback.task.ended,
            )

    async def put_off(self, callback: DueCallback, seconds: float) -> None:
        """It is due again in so many seconds, unless another instance has it by now."""
        async with self._database.transaction() as tx:
            await tx.execute(
                "UPDATE outrigger_tasks SET callback_at = $1"
                " WHERE id = $2 AND ended = $3 AND callback_tries = $4 AND callback_at IS NOT NULL",
                tx.now + seconds,
                callback.task.id,
                callback.task.ended,
                callback.tries,
            )


class CallbackSender:
    """Sends what is due, a few at once. `run` is its whole life; `apply` puts another policy in force."""

    def __init__(
        self,
        queue: CallbackQueue,
        policy: schema.Tasks,
        *,
        emit: EmitEvent,
        metrics: Metrics,
        resolve: Resolve = resolve_name,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._policy = policy
        self._emit = emit
        self._metrics = metrics
        self._resolve = resolve
        self._now = now
        self._due = asyncio.Event()
        self._deliveries: dict[asyncio.Task[None], DueCallback] = {}

    def apply(self, policy: schema.Tasks) -> None:
        self._policy = policy
        self.wake()

    def wake(self) -> None:
        """A task has ended here: look at once."""
        self._due.set()

    async def run(self) -> None:
        """Until it is cancelled; deliveries under way go on until `close`."""
        while True:
            self._due.clear()
            try:
                callbacks, wait = await self._queue.claim(MAX_AT_ONCE - len(self._deliveries))
            except TasksUnavailable:  # health tells of it
                await asyncio.sleep(AWAY_SECONDS)
                continue
            for callback in callbacks:
                delivery = asyncio.create_task(self._deliver(callback))
                self._deliveries[delivery] = callback
                delivery.add_done_callback(self._forget)
            full = len(self._deliveries) >= MAX_AT_ONCE  # then the end of one wakes us
            pause = POLL_SECONDS if wait is None or full else min(wait, POLL_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Give deliveries under way a few seconds; those that are cut off are due at once, for the next instance."""
        if not self._deliveries:
            return
        callbacks = dict(self._deliveries)
        _, late = await asyncio.wait(callbacks, timeout=patience)
        for delivery in late:
            delivery.cancel()
        if late:
            await asyncio.wait(late)
        try:
            async with asyncio.timeout(AWAY_SECONDS):
                for delivery in late:
                    await self._queue.put_off(callbacks[delivery], 0.0)
        except (TasksUnavailable, TimeoutError):
            pass  # then when their lease is over

    def _forget(self, delivery: asyncio.Task[None]) -> None:
        self._deliveries.pop(delivery, None)
        self._due.set()
        # A fault of ours costs this delivery, which its lease brings back; the log and Sentry hear of it.
        if not delivery.cancelled() and (error := delivery.exception()) is not None:
            facts = {"message": "a callback could not be sent", "exception": error, "task": delivery}
            delivery.get_loop().call_exception_handler(facts)

    async def _deliver(self, callback: DueCallback) -> None:
        policy = self._policy
        delivery = await deliver_callback(
            callback.url,
            callback.render_body(),
            callback.webhook_id,
            listed_hosts=policy.callbacks,
            secret=policy.secret,
            resolve=self._resolve,
            now=self._now,
        )
        delay = DELAYS[callback.tries - 1] if callback.tries <= len(DELAYS) else None
        is_over = delivery.result in ("ok", "gone") or delay is None
        self._metrics.callbacks_total.labels(
            "given_up" if is_over and delivery.result not in ("ok", "gone") else delivery.result
        ).inc()
        self._log_delivery(callback, delivery, None if is_over else delay)
        await self._write_down(callback, None if is_over else delay)

    async def _write_down(self, callback: DueCallback, delay: float | None) -> None:
        """Until the database takes it, or the lease is over and the callback is anybody's again."""
        try:
            async with asyncio.timeout(LEASE_SECONDS - DELIVERY_TIMEOUT):
                while True:
                    try:
                        if delay is None:
                            await self._queue.end(callback)
                        else:
                            await self._queue.put_off(callback, delay)
                        return
                    except TasksUnavailable:
                        await asyncio.sleep(AWAY_SECONDS)
        except TimeoutError:
            pass

    def _log_delivery(self, callback: DueCallback, delivery: Delivery, delay: float | None) -> None:
        # Neither path nor query: each of them may be a secret of the receiver's.
        try:
            host = parse_callback_url(callback.url, self._policy.callbacks).shown
        except CallbackRefused:
            host = "a host that tasks.callbacks does not list"
        if delay is not None:
            then = f"; it is sent again in {format_duration(delay)}"
        else:
            then = "" if delivery.result == "ok" else "; it is given up"
        task = cut_id(callback.task.id)
        self._emit(
            "callback",
            f"The callback of task {task} to {host}: {delivery.detail}{then}.",
            level="info" if delivery.result == "ok" else "warning" if delay is not None else "error",
            task=task,
            route=callback.task.route,
            host=host,
            result=delivery.result,
            status=delivery.status,
            tries=callback.tries,
        )
