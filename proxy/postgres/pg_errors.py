"""Every SQLSTATE that the pool itself raises, and the messages that carry them.

The codes are PostgreSQL's own (documentation, appendix A), and so is the `routine` if a driver goes by it: asyncpg
tells a stale plan by `RevalidateCachedQuery`, and a cancelled query by `ProcessInterrupts`. An ERROR leaves the
client its session, a FATAL is the last message that it gets.
"""

from __future__ import annotations

from proxy.postgres import wire
from proxy.postgres.session_state import describe_pins

PROTOCOL_VIOLATION = "08P01"
CONNECTION_REFUSED = "08001"  # sqlclient_unable_to_establish_sqlconnection
CONNECTION_FAILURE = "08006"
FEATURE_NOT_SUPPORTED = "0A000"
IDLE_IN_TRANSACTION_TIMEOUT = "25P03"
INVALID_AUTHORIZATION = "28000"
INVALID_PASSWORD = "28P01"  # noqa: S105 an SQLSTATE
SYNTAX_ERROR = "42601"
TOO_MANY_CONNECTIONS = "53300"
QUERY_CANCELED = "57014"
ADMIN_SHUTDOWN = "57P01"
CANNOT_CONNECT_NOW = "57P03"
INTERNAL_ERROR = "XX000"

STALE_PLAN = wire.error_response(
    FEATURE_NOT_SUPPORTED, "cached plan must not change result type", routine="RevalidateCachedQuery"
)
CANCELED_BY_CLIENT = wire.error_response(
    QUERY_CANCELED, "canceling statement due to user request", routine="ProcessInterrupts"
)
SERVER_CLOSED = wire.fatal_response(CONNECTION_FAILURE, "the database closed the connection")
POOL_DRAINING = wire.fatal_response(ADMIN_SHUTDOWN, "terminating connection: the pool is stopping")
POOL_DRAINED = wire.fatal_response(ADMIN_SHUTDOWN, "the pool is stopping")
POOL_STOPPED = wire.fatal_response(ADMIN_SHUTDOWN, "terminating connection: the pool has stopped")


def protocol_violation(text: str) -> bytes:
    return wire.fatal_response(PROTOCOL_VIOLATION, text)


def too_many_clients(limit: int) -> bytes:
    return wire.fatal_response(TOO_MANY_CONNECTIONS, f"sorry, too many clients already: postgres.clients is {limit}")


def pin_limit_reached(pin_flags: int, severity: str = "ERROR") -> bytes:
    """Too many connections are held for state that cannot be shared."""
    return wire.error_response(
        TOO_MANY_CONNECTIONS,
        f"{describe_pins(pin_flags) or 'state of the session'} needs a database connection of its own,"
        " and no more may be held so",
        severity=severity,
        hint="postgres.pin.max says how many may; SHOW CLIENTS of database outrigger says who holds them.",
    )


def pool_exhausted(text: str, severity: str = "ERROR") -> bytes:
    return wire.error_response(
        TOO_MANY_CONNECTIONS, text, severity=severity, hint="Raise postgres.pool.max or shorten transactions."
    )


def database_unreachable(text: str, severity: str = "ERROR") -> bytes:
    return wire.error_response(CANNOT_CONNECT_NOW, text, severity=severity)


def settings_not_restored(server_error: bytes) -> bytes:
    """`server_error` is the body of the ErrorResponse with which the server refused a client's settings."""
    fields = wire.error_fields(server_error)
    return wire.fatal_response(
        fields.get("C", INTERNAL_ERROR),
        f"what this session had set cannot be set again: {fields.get('M', '')}",
    )


def cleanup_failed(text: str) -> bytes:
    return wire.fatal_response(INTERNAL_ERROR, f"{text} did not do what it should")
