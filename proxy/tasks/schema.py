"""The tables of the queue: what each version adds to the one before, for both databases.

`outrigger_tasks` has a row for each task, its request and its result among it. `outrigger_task_routes` has a row for
each route: who accepts or claims holds it until the commit, so that counts and turns of a route are decided by one at
a time. `outrigger_task_instances` is who was heard of when. `outrigger_task_schedules` has a row for each schedule of
the policy: its expression and time zone, and the time that was dealt with last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxy.tasks.record import ENDED

PART = "tasks"  # of the table `outrigger_schema`, which tells the versions of all parts

SQLITE_TYPES: Mapping[str, str] = {"text": "TEXT", "real": "REAL", "integer": "INTEGER", "bytes": "BLOB", "schema": ""}
POSTGRES_TYPES: Mapping[str, str] = {
    "text": "text",
    "real": "float8",
    "integer": "int8",
    "bytes": "bytea",
    "schema": "public.",
}

_ENDED = ", ".join(f"'{state}'" for state in ENDED)

# Never change a step that was released: databases in the field have run it. Add one at the end.
STEPS: Sequence[Sequence[str]] = (
    (
        "CREATE TABLE {schema}outrigger_tasks ("
        "id {text} PRIMARY KEY, route {text} NOT NULL, user_id {text} NOT NULL, tier {text} NOT NULL,"
        " state {text} NOT NULL, reason {text} NOT NULL DEFAULT '',"
        # Its place in the queue: the turn of its user, then the order in which they came.
        " turn {integer} NOT NULL, seq {integer} NOT NULL,"
        " attempts {integer} NOT NULL DEFAULT 0, failures {integer} NOT NULL DEFAULT 0,"
        " kills {integer} NOT NULL DEFAULT 0,"
        " created {real} NOT NULL, run_at {real} NOT NULL, started {real}, tried {real}, ended {real},"
        " instance {text}, cancelling {integer} NOT NULL DEFAULT 0,"
        # The request.
        " method {text} NOT NULL, target {bytes}, fields {bytes}, body {bytes}, chunked {integer} NOT NULL,"
        " peer {text} NOT NULL, request_id {text} NOT NULL, trace_id {text},"
        " idempotency_key {text}, fingerprint {text} NOT NULL,"
        # The result.
        " status {integer}, status_reason {bytes}, result_fields {bytes}, result {bytes},"
        " cost {integer} NOT NULL DEFAULT 0, calls {integer} NOT NULL DEFAULT 0,"
        # Who is told of its end: where, when next, and how often it was tried.
        " callback {text}, callback_at {real}, callback_tries {integer} NOT NULL DEFAULT 0)",
        # What waits, in the order in which it runs; by user, for the next turn of each.
        "CREATE INDEX outrigger_tasks_queue ON {schema}outrigger_tasks (route, turn, seq) WHERE state = 'queued'",
        "CREATE INDEX outrigger_tasks_users ON {schema}outrigger_tasks (route, user_id, turn) WHERE state = 'queued'",
        "CREATE INDEX outrigger_tasks_suspects ON {schema}outrigger_tasks (route)"
        " WHERE state = 'queued' AND kills >= 2",
        "CREATE INDEX outrigger_tasks_delayed ON {schema}outrigger_tasks (run_at) WHERE state = 'delayed'",
        "CREATE INDEX outrigger_tasks_running ON {schema}outrigger_tasks (route, instance) WHERE state = 'running'",
        "CREATE INDEX outrigger_tasks_counts ON {schema}outrigger_tasks (route, state)",
        f"CREATE INDEX outrigger_tasks_ended ON {{schema}}outrigger_tasks (ended) WHERE state IN ({_ENDED})",
        "CREATE INDEX outrigger_tasks_callbacks ON {schema}outrigger_tasks (callback_at) WHERE callback_at IS NOT NULL",
        "CREATE UNIQUE INDEX outrigger_tasks_keys ON {schema}outrigger_tasks (route, user_id, idempotency_key)"
        " WHERE idempotency_key IS NOT NULL",
        "CREATE TABLE {schema}outrigger_task_routes"
        " (route {text} PRIMARY KEY, turn {integer} NOT NULL, seq {integer} NOT NULL)",
        "CREATE TABLE {schema}outrigger_task_instances (id {text} PRIMARY KEY, seen {real} NOT NULL)",
    ),
    (
        "CREATE TABLE {schema}outrigger_task_schedules"
        " (name {text} PRIMARY KEY, timing {text} NOT NULL, last {real} NOT NULL)",
    ),
)


def statements(step: Sequence[str], types: Mapping[str, str]) -> list[str]:
    """A step in the words of one database."""
    return [statement.format_map(types) for statement in step]
