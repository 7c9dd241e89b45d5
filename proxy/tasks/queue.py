"""The queue: one table, and every question and change that it knows, in SQL that both databases speak.

Users are served in turn by start-time fair queueing (Goyal, Vin and Cheng, 1996), with a task as the unit. A route has
a clock, the `turn` of the task that was claimed last. A new task gets the turn behind its user's last one that waits,
or behind the clock if none waits; tasks are claimed in the order of their turns. So the next one of a user who waits
with nothing else comes after at most one of each other user, and a user with a thousand delays nobody but themselves.
The order is a column: a claim reads an index, whatever waits.

Who accepts or claims on a route holds the route's row until the commit, so `max_queued` and `concurrency` hold over all
instances, and never one more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from proxy.tasks.database import Database, Transaction, placeholders
from proxy.tasks.record import (
    ENDED,
    ClaimedTask,
    NewTask,
    Task,
    TaskResponse,
    TaskState,
    pack_fields,
)
from proxy.tasks.rows import (
    FORGET_REQUEST,
    INSERT,
    REQUEST_COLUMNS,
    TASK_COLUMNS,
    claimed_from_row,
    read_task,
    row_of,
    task_from_row,
    task_of,
    with_position,
)

SUSPECT_KILLS = 2  # tries that ended with their instance: the next one is made alone
MAX_KILLS = 3  # so many, and it is failed
MAX_BATCH = 1000  # rows that are promoted or taken over at once


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a task that was to be accepted.

    `task` is it, or the one that has its Idempotency-Key already (`existed`); None if its route is full.
    """

    task: Task | None
    existed: bool = False


@dataclass(frozen=True, slots=True)
class TryEnd:
    """How one try of a task ended, and what follows.

    - `state`: succeeded or failed, with `response` if there is one; delayed if it is tried again `delay` seconds from
      now; queued if the try was cut off by a drain.
    - `counted`: whether the try counts against `retry.attempts`.
    """

    state: TaskState
    reason: str = ""
    response: TaskResponse | None = None
    delay: float = 0.0
    counted: bool = True
    cost: int = 0
    calls: int = 0


class TaskQueue:
    """The queue as one instance, `instance`, sees it. Every method raises TasksUnavailable."""

    def __init__(self, database: Database, instance: str) -> None:
        self.database = database
        self.instance = instance

    # ── accepting ────────────────────────────────────────────────────────────────────────────

    async def add(self, new: Sequence[NewTask], keep: float) -> list[Added]:
        """Accept tasks: they are on the disk when this returns. One transaction for all of them.

        A key of a task that ended more than `keep` seconds ago is free again.
        """
        async with self.database.transaction() as tx:
            return await self.add_within(tx, new, keep)

    async def add_within(self, tx: Transaction, new: Sequence[NewTask], keep: float) -> list[Added]:
        """`add` as part of a transaction: they are accepted once that is committed."""
        found: dict[str, Added] = {}
        # In the order of the routes' names: two instances that need two of them never wait for each other.
        for route, tasks in groupby(sorted(new, key=lambda task: task.route), lambda task: task.route):
            found |= await self._add_on_route(tx, route, list(tasks), keep)
        return [found[task.id] for task in new]

    async def _add_on_route(self, tx: Transaction, route: str, tasks: list[NewTask], keep: float) -> dict[str, Added]:
        found: dict[str, Added] = {}
        turn, seq = await self._lock_route(tx, route)
        first_seq = seq
        waiting = (
            await tx.fetch(
                "SELECT count(*) FROM outrigger_tasks WHERE route = $1 AND state IN ('queued', 'delayed')", route
            )
        )[0][0]
        turns = await self._last_turns(tx, route, {task.user for task in tasks})
        keys: dict[tuple[str, str], Task] = {}
        rows = []
        for task in tasks:
            if task.key is not None:
                same = keys.get((task.user, task.key)) or await self._find_by_key(tx, task, keep)
                if same is not None:
                    found[task.id] = Added(same, existed=True)
                    continue
            if task.max_queued is not None and waiting >= task.max_queued:
                found[task.id] = Added(None)
                continue
            waiting += 1
            seq += 1
            run_at = max(tx.now + task.delay, task.run_at)
            state: TaskState = "delayed" if run_at > tx.now else "queued"
            place = 0  # a delayed one gets its turn when its time has come
            if state == "queued":
                # From the clock on: who was away does not get the turns that passed meanwhile.
                place = turns[task.user] = max(turn, turns.get(task.user, 0)) + 1
            rows.append(row_of(task, state, place, seq, tx.now, run_at))
            added = task_of(task, state, tx.now, run_at, waiting)
            found[task.id] = Added(added)
            if task.key is not None:
                keys[task.user, task.key] = added
        if rows:
            await tx.execute_many(INSERT, rows)
            await tx.execute("UPDATE outrigger_task_routes SET seq = seq + $2 WHERE route = $1", route, seq - first_seq)
        return found

    async def find_by_key(self, route: str, user: str, key: str, keep: float) -> Task | None:
        """The task that has this Idempotency-Key, unless it ended more than `keep` seconds ago."""
        async with self.database.transaction(write=False) as tx:
            return await self._select_by_key(tx, route, user, key, keep)

    async def _find_by_key(self, tx: Transaction, task: NewTask, keep: float) -> Task | None:
        assert task.key is not None
        found = await self._select_by_key(tx, task.route, task.user, task.key, keep)
        if found is None:  # an older one that has it still gives it back
            await tx.execute(
                "UPDATE outrigger_tasks SET idempotency_key = NULL"
                " WHERE route = $1 AND user_id = $2 AND idempotency_key = $3",
                task.route,
                task.user,
                task.key,
            )
        return found

    async def _select_by_key(self, tx: Transaction, route: str, user: str, key: str, keep: float) -> Task | None:
        rows = await tx.fetch(
            f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE route = $1 AND user_id = $2 AND idempotency_key = $3"
            " AND (ended IS NULL OR ended > $4)",
            route,
            user,
            key,
            tx.now - keep,
        )
        return await with_position(tx, task_from_row(rows[0])) if rows else None

    async def _lock_route(self, tx: Transaction, route: str) -> tuple[int, int]:
        """Hold the route's row until the end of the transaction; its turn and its sequence number."""
        select = "SELECT turn, seq FROM outrigger_task_routes WHERE route = $1"
        rows = await tx.fetch(select + self.database.wait_lock, route)
        if not rows:
            await tx.execute(
                "INSERT INTO outrigger_task_routes VALUES ($1, 0, 0) ON CONFLICT (route) DO NOTHING", route
            )
            rows = await tx.fetch(select + self.database.wait_lock, route)
        return rows[0][0], rows[0][1]

    async def _last_turns(self, tx: Transaction, route: str, users: Iterable[str]) -> dict[str, int]:
        """The turn of each user's last task that waits on a route, of those who have one."""
        names = list(users)
        rows = await tx.fetch(
            "SELECT user_id, max(turn) FROM outrigger_tasks WHERE route = $1 AND state = 'queued'"
            f" AND user_id IN ({placeholders(len(names), 2)}) GROUP BY user_id",
            route,
            *names,
        )
        return {row[0]: row[1] for row in rows}

    # ── running ──────────────────────────────────────────────────────────────────────────────

    async def promote(self) -> float | None:
        """Queue the delayed ones whose time has come, each at its user's turn; when the next one's comes, if any."""
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch("SELECT min(run_at) FROM outrigger_tasks WHERE state = 'delayed'")
            earliest = rows[0][0]
            if earliest is None or earliest > tx.now:
                return None if earliest is None else earliest - tx.now
        async with self.database.transaction() as tx:
            due = await tx.fetch(
                "SELECT DISTINCT route FROM outrigger_tasks WHERE state = 'delayed' AND run_at <= $1", tx.now
            )
            for route in sorted(row[0] for row in due):
                await self._promote_on_route(tx, route)
        return 0.0

    async def _promote_on_route(self, tx: Transaction, route: str) -> None:
        turn, _ = await self._lock_route(tx, route)
        rows = await tx.fetch(
            "SELECT id, user_id, turn FROM outrigger_tasks WHERE route = $1 AND state = 'delayed' AND run_at <= $2"
            f" ORDER BY run_at, seq LIMIT {MAX_BATCH}",
            route,
            tx.now,
        )
        turns = await self._last_turns(tx, route, {row[1] for row in rows})
        changed = []
        for id, user, place in rows:
            # One that was tried before keeps its place: its turn had come.
            if not place:
                place = turns[user] = max(turn, turns.get(user, 0)) + 1
            changed.append((id, place))
        await tx.execute_many(
            "UPDATE outrigger_tasks SET state = 'queued', turn = $2 WHERE id = $1 AND state = 'delayed'", changed
        )

    async def routes_waiting(self) -> list[str]:
        """The routes on which something waits that may run now."""
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch(
                "SELECT route FROM outrigger_task_routes r WHERE EXISTS"
                " (SELECT 1 FROM outrigger_tasks t WHERE t.route = r.route AND t.state = 'queued') ORDER BY route"
            )
        return [row[0] for row in rows]

    async def claim(self, route: str, concurrency: int, *, suspects: bool = False) -> list[ClaimedTask]:
        """Take what may run on a route now, in its turn: at most `concurrency` run over all instances.

        A task that has killed two instances is left out, unless `suspects`, and then it is the only one.
        """
        async with self.database.transaction() as tx:
            turn, _ = await self._lock_route(tx, route)
            running = (
                await tx.fetch("SELECT count(*) FROM outrigger_tasks WHERE route = $1 AND state = 'running'", route)
            )[0][0]
            free = min(1, concurrency - running) if suspects else concurrency - running
            if free <= 0:
                return []
            rows = await tx.fetch(
                f"SELECT {TASK_COLUMNS}, {REQUEST_COLUMNS}, turn FROM outrigger_tasks"
                f" WHERE route = $1 AND state = 'queued' AND kills {'>=' if suspects else '<'} {SUSPECT_KILLS}"
                f" ORDER BY turn, seq LIMIT $2{self.database.row_lock}",
                route,
                free,
            )
            if not rows:
                return []
            ids = [row[0] for row in rows]
            await tx.execute(
                "UPDATE outrigger_tasks SET state = 'running', instance = $1, tried = $2,"
                " started = coalesce(started, $2), attempts = attempts + 1"
                f" WHERE id IN ({placeholders(len(ids), 3)})",
                self.instance,
                tx.now,
                *ids,
            )
            await tx.execute(
                "UPDATE outrigger_task_routes SET turn = $2 WHERE route = $1",
                route,
                # Never back: one that was tried before has an old turn.
                max(turn, *(row[-1] for row in rows)),
            )
        return [claimed_from_row(row, tx.now) for row in rows]

    async def suspect_routes(self) -> list[str]:
        """The routes on which a task waits that has killed two instances."""
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch(
                f"SELECT DISTINCT route FROM outrigger_tasks WHERE state = 'queued' AND kills >= {SUSPECT_KILLS}"
            )
        return [row[0] for row in rows]

    async def end_try(self, id: str, attempt: int, end: TryEnd, *, notify: bool = True) -> Task | None:
        """Write down how a try ended. None if it is not ours to say any more: another instance tries it, or it ended.

        A try whose instance was taken for dead still counts if nobody has begun another one.
        """
        async with self.database.transaction() as tx:
            rows = await tx.fetch(
                f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE id = $1{self.database.wait_lock}", id
            )
            if not rows:
                return None
            task = task_from_row(rows[0])
            # The number of the try is the fence: an instance that hung and wakes up must not end another one's try.
            if task.attempts != attempt or (task.has_ended and not task.cancelling) or task.state == "delayed":
                return None
            state: TaskState = "cancelled" if task.cancelling else end.state
            if state in ENDED:
                await self._write_end(tx, task, state, end)
            else:
                await tx.execute(
                    "UPDATE outrigger_tasks SET state = $2, reason = $3, run_at = $4, failures = failures + $5,"
                    " cost = cost + $6, calls = calls + $7, instance = NULL WHERE id = $1",
                    id,
                    state,
                    end.reason,
                    tx.now + end.delay,
                    int(end.counted),
                    end.cost,
                    end.calls,
                )
            if notify:
                await tx.notify(f"ended {id}")
            return await read_task(tx, id)

    async def _write_end(self, tx: Transaction, task: Task, state: TaskState, end: TryEnd) -> None:
        response = end.response if state != "cancelled" else None
        # A failed one keeps its request until its result goes, so that an operator can try it again.
        forget = "" if state == "failed" else f", {FORGET_REQUEST}"
        await tx.execute(
            "UPDATE outrigger_tasks SET state = $2, reason = $3, ended = $4, failures = failures + $5,"
            " cost = cost + $6, calls = calls + $7, status = $8, status_reason = $9, result_fields = $10, result = $11,"
            " instance = NULL, cancelling = 0,"
            f" callback_at = $12{forget}"
            " WHERE id = $1",
            task.id,
            state,
            end.reason if state != "cancelled" else "",
            tx.now,
            int(end.counted and state != "succeeded"),
            end.cost,
            end.calls,
            response.status if response is not None else None,
            response.reason if response is not None else None,
            pack_fields(response.fields) if response is not None else None,
            response.body if response is not None else None,
            tx.now if task.callback is not None else None,
        )

    async def heartbeat(self, *, write: bool = True) -> dict[str, tuple[int, bool]]:
        """Say that this instance is alive, if `write`. What it runs according to the table: by id the attempt, and
        whether it is to be cancelled."""
        async with self.database.transaction(write=write) as tx:
            if write:
                await tx.execute(
                    "INSERT INTO outrigger_task_instances VALUES ($1, $2)"
                    " ON CONFLICT (id) DO UPDATE SET seen = excluded.seen",
                    self.instance,
                    tx.now,
                )
            rows = await tx.fetch(
                "SELECT id, attempts, cancelling FROM outrigger_tasks WHERE state = 'running' AND instance = $1",
                self.instance,
            )
        return {row[0]: (row[1], bool(row[2])) for row in rows}

    async def leave(self) -> None:
        """This instance ends in order: nobody need wait for it to be taken for dead."""
        async with self.database.transaction() as tx:
            await tx.execute("DELETE FROM outrigger_task_instances WHERE id = $1", self.instance)

    async def live_instances(self, seconds: float) -> list[str]:
        """The instances that were heard of in the last seconds, in the order of their names."""
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch(
                "SELECT id FROM outrigger_task_instances WHERE seen > $1 ORDER BY id", tx.now - seconds
            )
        return [row[0] for row in rows]

    async def take_over(self) -> list[Task]:
        """Queue what dead instances ran, or fail what has killed three; the tasks as they are afterwards."""
        lease = self.database.lease
        async with self.database.transaction() as tx:
            rows = await tx.fetch(
                f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE state = 'running' AND instance <> $1"
                " AND instance NOT IN (SELECT id FROM outrigger_task_instances WHERE seen > $2)"
                f" ORDER BY id LIMIT {MAX_BATCH}{self.database.row_lock}",
                self.instance,
                tx.now - lease,
            )
            found = []
            for task in map(task_from_row, rows):
                # Counted by task: one that brings its instance down each time must not go round for ever.
                await tx.execute("UPDATE outrigger_tasks SET kills = kills + 1 WHERE id = $1", task.id)
                if task.cancelling or task.kills + 1 >= MAX_KILLS:
                    state: TaskState = "cancelled" if task.cancelling else "failed"
                    await self._write_end(tx, task, state, TryEnd(state, "instance-died", counted=False))
                else:
                    await tx.execute(
                        "UPDATE outrigger_tasks SET state = 'queued', instance = NULL, reason = 'instance-died'"
                        " WHERE id = $1",
                        task.id,
                    )
                await tx.notify(f"ended {task.id}")
                found.append(await read_task(tx, task.id))
            # Of those that are gone for good; one that comes back says so itself.
            await tx.execute("DELETE FROM outrigger_task_instances WHERE seen < $1", tx.now - 60 * lease)
        return [task for task in found if task is not None]

    async def cancel(self, id: str) -> Task | None:
        """Cancel a task: at once if it waits, else its instance is told to. As it was before; None if it is unknown."""
        async with self.database.transaction() as tx:
            rows = await tx.fetch(
                f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE id = $1{self.database.wait_lock}", id
            )
            if not rows:
                return None
            task = task_from_row(rows[0])
            if task.has_ended:
                return task
            if task.state == "running":
                await tx.execute("UPDATE outrigger_tasks SET cancelling = 1 WHERE id = $1", id)
                await tx.notify(f"cancel {id}")
            else:
                await self._write_end(tx, task, "cancelled", TryEnd("cancelled", counted=False))
                await tx.notify(f"ended {id}")
            return task
