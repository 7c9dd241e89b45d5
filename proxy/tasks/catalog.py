"""What is asked of the queue, and done to it, by clients, operators and time: nothing here takes part in a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxy.tasks.database import Database, placeholders
from proxy.tasks.record import Task, TaskResponse, unpack_fields
from proxy.tasks.rows import ENDED_STATES, FORGET_REQUEST, TASK_COLUMNS, read_task, task_from_row, with_position

MAX_LISTED = 1000
MAX_IDS = 500  # in one question; SQLite before 3.32 takes 999 values
PRUNE_ROWS = 200  # at a time: a claim waits for one such piece at most


class TaskCatalog:
    """The tasks of all instances. Every method raises TasksUnavailable."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def find(self, id: str) -> Task | None:
        """A task by its id, with its position."""
        async with self.database.transaction(write=False) as tx:
            task = await read_task(tx, id)
            return None if task is None else await with_position(tx, task)

    async def ended_among(self, ids: Sequence[str]) -> list[str]:
        """Those of these tasks that have ended."""
        found = []
        async with self.database.transaction(write=False) as tx:
            for at in range(0, len(ids), MAX_IDS):
                some = ids[at : at + MAX_IDS]
                rows = await tx.fetch(
                    f"SELECT id FROM outrigger_tasks WHERE id IN ({placeholders(len(some))})"
                    f" AND (state IN ({ENDED_STATES}) OR cancelling = 1)",
                    *some,
                )
                found += [row[0] for row in rows]
        return found

    async def result(self, id: str) -> TaskResponse | None:
        """The app's answer to a task, if there is one."""
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch(
                "SELECT status, status_reason, result_fields, result FROM outrigger_tasks"
                " WHERE id = $1 AND status IS NOT NULL AND result IS NOT NULL",
                id,
            )
        if not rows:
            return None
        status, reason, fields, body = rows[0]
        return TaskResponse(status, bytes(reason), unpack_fields(bytes(fields)), bytes(body))

    async def retry(self, id: str) -> Task | None:
        """Try a failed task once more, as if it had never been tried, or one that waits for its time at once. As it is
        afterwards; None if it is unknown, has no request any more, or is running."""
        async with self.database.transaction() as tx:
            done = await tx.execute(
                "UPDATE outrigger_tasks SET state = 'delayed', run_at = $2, ended = NULL, failures = 0, kills = 0,"
                " status = NULL, status_reason = NULL, result_fields = NULL, result = NULL, callback_at = NULL,"
                " callback_tries = 0 WHERE id = $1 AND state IN ('failed', 'delayed') AND fields IS NOT NULL",
                id,
                tx.now,
            )
            return await read_task(tx, id) if done else None

    async def list(self, *, route: str | None = None, state: str | None = None, limit: int = 100) -> list[Task]:
        """The newest tasks, of one route or of one state, as the outside knows states."""
        conditions, values = ["1 = 1"], list[object]()
        if route is not None:
            values.append(route)
            conditions.append(f"route = ${len(values)}")
        if state == "queued":
            conditions.append("state IN ('queued', 'delayed')")
        elif state is not None:
            values.append(state)
            conditions.append(f"state = ${len(values)}")
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch(
                f"SELECT {TASK_COLUMNS} FROM outrigger_tasks WHERE {' AND '.join(conditions)}"
                f" ORDER BY created DESC, seq DESC LIMIT {min(limit, MAX_LISTED)}",
                *values,
            )
        return [task_from_row(row) for row in rows]

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """How many tasks there are by route and state, over all instances; delayed ones are queued."""
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch("SELECT route, state, count(*) FROM outrigger_tasks GROUP BY route, state")
        found: dict[tuple[str, str], int] = {}
        for route, state, count in rows:
            key = (route, "queued" if state == "delayed" else state)
            found[key] = found.get(key, 0) + count
        return found

    async def longest_waits(self) -> Mapping[str, float]:
        """For each route, how long the task has waited in seconds that could have run first."""
        async with self.database.transaction(write=False) as tx:
            rows = await tx.fetch(
                "SELECT route, min(CASE WHEN run_at > created THEN run_at ELSE created END) FROM outrigger_tasks"
                " WHERE state = 'queued' GROUP BY route"
            )
        return {row[0]: max(0.0, tx.now - row[1]) for row in rows}

    async def prune(self, keep: float) -> int:
        """Drop results `keep` seconds after the end, and the rows after another `keep`; how many rows were changed.

        A little at a time, so that no claim waits for it.
        """
        async with self.database.transaction() as tx:
            # Two instances that prune at once take different rows in place of waiting for each other.
            stale = await tx.fetch(
                f"SELECT id FROM outrigger_tasks WHERE state IN ({ENDED_STATES}) AND ended <= $1 AND ended > $2"
                " AND (result IS NOT NULL OR fields IS NOT NULL)"
                f" ORDER BY ended LIMIT {PRUNE_ROWS}{self.database.row_lock}",
                tx.now - keep,
                tx.now - 2 * keep,
            )
            gone = await tx.fetch(
                f"SELECT id FROM outrigger_tasks WHERE state IN ({ENDED_STATES}) AND ended <= $1"
                # Whoever is still to be told of its end gets the whole of it.
                " AND callback_at IS NULL"
                f" ORDER BY ended LIMIT {PRUNE_ROWS}{self.database.row_lock}",
                tx.now - 2 * keep,
            )
            await tx.execute_many(
                f"UPDATE outrigger_tasks SET result = NULL, result_fields = NULL, {FORGET_REQUEST} WHERE id = $1",
                [(row[0],) for row in stale],
            )
            await tx.execute_many("DELETE FROM outrigger_tasks WHERE id = $1", [(row[0],) for row in gone])
        return len(stale) + len(gone)
