"""The database `outrigger`: what psql can ask of the pool (SHOW POOLS, CLIENTS, SERVERS, STATS, CONFIG).

Commands and columns are PgBouncer's, as far as it has them (its manual, "Admin console").
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from proxy.postgres import pg_errors, wire
from proxy.postgres.client import ClientConnection
from proxy.postgres.dsn import DatabaseAddress
from proxy.postgres.pool import Pool
from proxy.postgres.statement_registry import StatementRegistry
from proxy.postgres.wire import HEADER_SIZE, read_header

Table = tuple[list[str], list[list[object]]]  # names of the columns, and rows
MAX_COMMAND_BYTES = 64 * 1024
_SHOW = re.compile(r"\s*show\s+(\w+)\s*;?\s*", re.IGNORECASE)


class ConsoleSource(Protocol):
    """What the console shows: the service."""

    pool: Pool
    clients: dict[int, ClientConnection]
    statements: StatementRegistry
    database: DatabaseAddress


class AdminConsole:
    """One connection to it. It speaks the simple protocol alone, as psql does."""

    def __init__(self, source: ConsoleSource, write: Callable[[bytes], None], end: Callable[[bytes], None]) -> None:
        self._source = source
        self._write = write
        self._end = end
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= HEADER_SIZE:
            kind, length = read_header(self._data)
            if not 4 <= length <= MAX_COMMAND_BYTES:
                self._end(pg_errors.protocol_violation("that is too long for a command"))
                return
            if len(self._data) <= length:
                return
            body, self._data = self._data[HEADER_SIZE : length + 1], self._data[length + 1 :]
            if kind == wire.TERMINATE:
                self._end(b"")
                return
            if kind == wire.QUERY:
                reply = self._answer_query(body.rstrip(b"\0").decode("utf-8", "replace"))
                self._write(reply + wire.ready_for_query())
            elif kind == wire.SYNC:
                self._write(wire.ready_for_query())
            # No ReadyForQuery after this one: a client of the extended protocol sends a Sync, which is answered by it.
            else:
                text = "the console speaks the simple query protocol alone; use psql"
                self._write(wire.error_response(pg_errors.FEATURE_NOT_SUPPORTED, text))

    def _answer_query(self, text: str) -> bytes:
        if not text.strip(" ;\n\t"):
            return wire.message(wire.EMPTY_QUERY)
        found = _SHOW.fullmatch(text)
        make_table = TABLES.get(found[1].lower()) if found is not None else None
        if make_table is None:
            known = ", ".join(f"SHOW {word.upper()}" for word in TABLES)
            return wire.error_response(pg_errors.SYNTAX_ERROR, f"the console does not know this; it knows {known}")
        names, rows = make_table(self._source)
        shown = (wire.data_row(None if cell is None else str(cell).encode() for cell in row) for row in rows)
        return wire.row_description(names) + b"".join(shown) + wire.message(wire.COMMAND_COMPLETE, b"SHOW\0")


def show_pools(source: ConsoleSource) -> Table:
    """As PgBouncer names them: clients active and waiting, servers active, idle, and the longest wait (s)."""
    pool, database = source.pool, source.database
    clients = Counter(client.state for client in source.clients.values())
    servers = Counter(server.state for server in pool.servers)
    row: dict[str, object] = {
        "database": database.name,
        "user": database.user,
        "cl_active": clients["active"] + clients["idle_in_transaction"] + clients["pinned"],
        "cl_waiting": clients["waiting"],
        "cl_idle": clients["idle"],
        "sv_active": servers["active"],
        "sv_idle": servers["idle"],
        "sv_in_transaction": servers["idle_in_transaction"],
        "sv_pinned": servers["pinned"],
        "sv_login": len(pool.launcher.attempts),
        "maxwait": f"{pool.longest_wait():.3f}",
        "pool_mode": pool.policy.mode,
    }
    return list(row), [list(row.values())]


def show_clients(source: ConsoleSource) -> Table:
    names = ["id", "state", "application_name", "port", "server_pid", "pinned_by", "prepared", "seconds"]
    now = source.pool.now()
    rows: list[list[object]] = []
    for client in source.clients.values():
        link, startup = client.link, client.startup
        server = link.server if link is not None else None
        since = server.since if server is not None else link.since if link is not None else client.since
        rows.append(
            [
                client.number,
                client.state,
                startup.application_name if startup is not None else None,
                client.port,
                server.backend.pid if server is not None else None,
                link.session.pin_reasons if link is not None else None,
                len(link.session.frontend.statements) if link is not None else None,
                f"{now - since:.3f}",
            ]
        )
    return names, rows


def show_servers(source: ConsoleSource) -> Table:
    names = ["pid", "state", "client", "transactions", "prepared", "opened_with", "seconds"]
    now = source.pool.now()
    rows: list[list[object]] = [
        [
            server.backend.pid,
            server.state,
            server.link.client_number if server.link is not None else None,
            server.transactions,
            len(server.backend.prepared),
            " ".join(f"{name}={value}" for name, value in server.backend.pool_key),
            f"{now - server.since:.3f}",
        ]
        for server in source.pool.servers
    ]
    return names, rows


def show_stats(source: ConsoleSource) -> Table:
    pool = source.pool
    names = ["database", *(f"transactions_{name}" for name in pool.outcomes), "statements", "connect_failures"]
    failures = pool.launcher.attempts.failures
    return names, [[source.database.name, *pool.outcomes.values(), len(source.statements), failures]]


def show_config(source: ConsoleSource) -> Table:
    """Everything but the URL, which may hold a password."""
    settings = flatten_policy("postgres", source.pool.policy)
    return ["key", "value"], [[name, value] for name, value in settings if name != "postgres.url"]


def flatten_policy(prefix: str, value: object) -> Iterable[tuple[str, object]]:
    if dataclasses.is_dataclass(value) and not hasattr(value, "port"):
        for field in dataclasses.fields(value):
            yield from flatten_policy(f"{prefix}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield prefix, ", ".join(value)
    else:
        yield prefix, value


TABLES: dict[str, Callable[[ConsoleSource], Table]] = {
    "pools": show_pools,
    "clients": show_clients,
    "servers": show_servers,
    "stats": show_stats,
    "config": show_config,
}
