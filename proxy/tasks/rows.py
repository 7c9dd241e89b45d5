"""Rows of the queue's table, as values and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from proxy.tasks.database import Transaction, placeholders
from proxy.tasks.record import ENDED, ClaimedTask, NewTask, Task, TaskRequest, TaskState, pack_fields, unpack_fields

TASK_COLUMNS = (
    "id, route, user_id, tier, state, reason, attempts, failures, kills, created, run_at, started, ended, status,"
    " cost, calls, fingerprint, callback, cancelling"
)
REQUEST_COLUMNS = "method, target, fields, body, peer, chunked, request_id, trace_id"
INSERT = (
    "INSERT INTO outrigger_tasks (id, route, user_id, tier, state, turn, seq, created, run_at, method, target, fields,"
    " body, chunked, peer, request_id, trace_id, idempotency_key, fingerprint, callback)"
    f" VALUES ({placeholders(20)})"
)
ENDED_STATES = ", ".join(f"'{state}'" for state in ENDED)
FORGET_REQUEST = "target = NULL, fields = NULL, body = NULL"


async def read_task(tx: Transaction, id: str) -> Task | None:
    rows = await tx.fetch(f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE id = $1", id)
    return task_from_row(rows[0]) if rows else None


async def with_position(tx: Transaction, task: Task) -> Task:
    """With its place among those that wait on its route; delayed ones come behind the others, by their time."""
    if task.state == "queued":
        rows = await tx.fetch(
            "SELECT count(*) FROM outrigger_tasks o, (SELECT turn, seq FROM outrigger_tasks WHERE id = $1) own"
            " WHERE o.route = $2 AND o.state = 'queued'"
            " AND (o.turn < own.turn OR (o.turn = own.turn AND o.seq <= own.seq))",
            task.id,
            task.route,
        )
    elif task.state == "delayed":
        rows = await tx.fetch(
            "SELECT count(*) FROM outrigger_tasks WHERE route = $1"
            " AND (state = 'queued' OR (state = 'delayed' AND run_at <= $2))",
            task.route,
            task.run_at,
        )
    else:
        return task
    return replace(task, position=max(1, rows[0][0]))


def row_of(task: NewTask, state: str, turn: int, seq: int, now: float, run_at: float) -> tuple[object, ...]:
    request = task.request
    return (
        task.id,
        task.route,
        task.user,
        task.tier,
        state,
        turn,
        seq,
        now,
        run_at,
        request.method,
        request.target,
        pack_fields(request.fields),
        request.body,
        int(request.chunked),
        request.peer,
        request.request_id,
        request.trace_id,
        task.key,
        request.fingerprint(),
        task.callback,
    )


def task_of(task: NewTask, state: TaskState, now: float, run_at: float, position: int) -> Task:
    # fmt: off
    return Task(
        task.id, task.route, task.user, task.tier, state, "", 0, 0, 0, now, run_at, None, None, None, 0, 0,
        task.request.fingerprint(), task.callback, False, position,
    )
    # fmt: on


def task_from_row(row: Sequence[Any]) -> Task:
    values = list(row[:19])
    values[18] = bool(values[18])
    return Task(*values)


def claimed_from_row(row: Sequence[Any], now: float) -> ClaimedTask:
    task = task_from_row(row)
    method, target, fields, body, peer, chunked, request_id, trace_id = row[19:27]
    request = TaskRequest(
        method, bytes(target), unpack_fields(bytes(fields)), bytes(body), peer, bool(chunked), request_id, trace_id
    )
    started = now if task.started is None else task.started
    claimed = replace(task, state="running", attempts=task.attempts + 1, started=started)
    return ClaimedTask(claimed, request, max(0.0, now - max(task.created, task.run_at)))
