"""What a pool does by the clock, decided from what its servers are doing now; the pool carries it out.

Two time-outs of the policy are kept here rather than set on the server, so that an app's own `SET statement_timeout`
keeps its meaning: `timeout.query` (the query is cancelled, and its client told why) and
`timeout.idle_in_transaction` (the client is hung up on, and its transaction rolled back).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proxy.policy.schema import Postgres
from proxy.postgres import pg_errors, wire
from proxy.postgres.server import ServerConnection
from proxy.units import format_duration

REACTION_SECONDS = 5.0  # that a server has to react to a cancel, and to a check


class Abort(NamedTuple):
    """The server does not answer: its connection is dropped without a word."""

    server: ServerConnection


class CancelQuery(NamedTuple):
    """Its query is cancelled, and `error` is what the client gets in place of the server's own."""

    server: ServerConnection
    error: bytes


class EndClient(NamedTuple):
    """The client of the server gets `error` and is hung up on."""

    server: ServerConnection
    error: bytes
    abort_server: bool = False


Action = Abort | CancelQuery | EndClient


def janitor_interval(policy: Postgres) -> float:
    """Seconds between two looks: 1, or less if a time-out is short enough to be missed by that."""
    timeouts = [bound for bound in (policy.timeout.query, policy.timeout.idle_in_transaction) if bound is not None]
    return max(0.05, min(1.0, *(bound / 5 for bound in timeouts))) if timeouts else 1.0


def find_overdue(servers: Iterable[ServerConnection], policy: Postgres, now: float) -> list[Action]:
    """What is to be done about servers that have done the same thing for too long."""
    actions: list[Action] = []
    for server in servers:
        # `since` begins anew with every message that the client sends when nothing is owed, and with the last reply.
        state, elapsed = server.state, now - server.since
        if server.checking:
            if elapsed > REACTION_SECONDS:
                actions.append(Abort(server))
        elif state == "active":
            action = _judge_query(server, policy.timeout.query, elapsed)
            if action is not None:
                actions.append(action)
        elif state == "idle_in_transaction":
            limit = policy.timeout.idle_in_transaction
            if limit is not None and elapsed > limit:
                text = (
                    "terminated: idle in a transaction for longer than"
                    f" postgres.timeout.idle_in_transaction ({format_duration(limit)})"
                )
                actions.append(EndClient(server, wire.fatal_response(pg_errors.IDLE_IN_TRANSACTION_TIMEOUT, text)))
    return actions


def _judge_query(server: ServerConnection, limit: float | None, elapsed: float) -> Action | None:
    if limit is None or elapsed <= limit:
        return None
    text = f"canceled: it took longer than postgres.timeout.query ({format_duration(limit)})"
    if not server.query_timed_out:
        return CancelQuery(server, wire.error_response(pg_errors.QUERY_CANCELED, text))
    if elapsed > limit + REACTION_SECONDS:
        # Neither the query nor its cancel is answered: nobody is there any more.
        return EndClient(server, wire.fatal_response(pg_errors.QUERY_CANCELED, text), abort_server=True)
    return None


def find_retired(
    idle: Sequence[ServerConnection], server_count: int, policy: Postgres, now: float, *, limit: int
) -> list[ServerConnection]:
    """Idle servers to close: those that have served their time, that are beyond the limit, or that nobody has needed
    for `pool.idle`, as long as `pool.min` are left."""
    # A server that is too old goes even if fewer than `pool.min` are left: another one is opened for it.
    spare = server_count - policy.pool.min
    retired: list[ServerConnection] = []
    for server in idle:
        old = now >= server.retire_at or server_count > limit
        if old or (spare > 0 and now - server.since > policy.pool.idle):
            spare -= 1
            retired.append(server)
    return retired
