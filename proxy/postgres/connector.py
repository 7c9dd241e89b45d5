"""Opening connections to the database, by asyncpg: the address in all its spellings, TLS, SCRAM, failover.

asyncpg gives the connection away: `Connection._transport` is taken by `set_protocol`, as asyncpg itself does when it
starts TLS; its own protocol hears of the connection's end, and is otherwise at rest. What of asyncpg is private and
used here stands in tests/unit/postgres/test_postgres_asyncpg.py, which fails if a version of it differs.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from asyncpg import connect_utils

from proxy.errors import OutriggerError
from proxy.postgres import pg_errors
from proxy.postgres.auth.startup import OTHER_DATABASE, PoolKey
from proxy.postgres.server_state import ServerState

# What a server reports of itself (PostgreSQL 11 to 18); asyncpg cannot be asked for all it was told.
REPORTED_PARAMETERS = (
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "scram_iterations",
    "search_path",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
)
# Classes of errors that trying again does not mend: a password, a name, a setting.
FINAL_SQLSTATES = ("28", "3D", "22", "42", "0A")


class ConnectFailed(OutriggerError):
    """`sqlstate` is the database's own, or of class 08 if it was not reached; `final`: the database itself says no, and
    would say so again."""

    def __init__(self, sqlstate: str, text: str, *, final: bool) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.final = final


class AsyncpgConnection:
    """A connection of asyncpg's, as much of it as is used, and what is known of its server (`backend`)."""

    __slots__ = ("_connection", "backend")

    def __init__(self, connection: Any, backend: ServerState) -> None:
        self._connection = connection
        self.backend = backend

    @property
    def transport(self) -> asyncio.Transport:
        transport: asyncio.Transport = self._connection._transport
        return transport

    @property
    def protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._connection._protocol
        return protocol

    async def cancel(self) -> None:
        """Ask the server to cancel what this connection does; back when it has been asked."""
        # A connection of its own, with the process number and secret of this one (54.2.8); TLS if this one has it.
        connection = self._connection
        protocol = connection._protocol
        await connect_utils._cancel(
            loop=asyncio.get_running_loop(),
            addr=connection._addr,
            params=connection._params,
            backend_pid=protocol.backend_pid,
            backend_secret=protocol.backend_secret,
        )


async def connect(dsn: str, key: PoolKey, name: str, timeout: float) -> AsyncpgConnection:
    """`name` is the connection's application_name, `key` what else it is opened with; `timeout` in seconds. Raises
    ConnectFailed."""
    settings = {**dict(key), "application_name": name}
    database = settings.pop(OTHER_DATABASE, None)
    try:
        async with asyncio.timeout(timeout):
            connection = await asyncpg.connect(
                dsn,
                timeout=timeout,
                statement_cache_size=0,  # so that asyncpg prepares nothing of its own on it
                database=database,  # None: the address's
                server_settings=settings,
            )
    except asyncpg.PostgresError as error:
        code = error.sqlstate or pg_errors.CONNECTION_FAILURE
        raise ConnectFailed(code, str(error), final=code.startswith(FINAL_SQLSTATES)) from error
    except asyncpg.InterfaceError as error:
        raise ConnectFailed(pg_errors.CONNECTION_REFUSED, str(error), final=True) from error
    except TimeoutError:
        raise ConnectFailed(pg_errors.CONNECTION_REFUSED, f"no connection within {timeout:g} s", final=False) from None
    except (OSError, ValueError) as error:
        raise ConnectFailed(pg_errors.CONNECTION_REFUSED, str(error) or type(error).__name__, final=False) from error
    reported = connection.get_settings()
    parameters = {
        known.encode(): str(value).encode()
        for known in REPORTED_PARAMETERS
        if (value := getattr(reported, known, None)) is not None
    }
    return AsyncpgConnection(connection, ServerState(key, name, parameters, connection.get_server_pid()))
