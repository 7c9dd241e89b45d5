"""The database `outrigger`: what psql can ask of the pool (SHOW POOLS, CLIENTS, SERVERS, STATS, CONFIG)."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from proxy.postgres import wire
from proxy.postgres.wire import HEADER_SIZE, read_header

if TYPE_CHECKING:
    from proxy.postgres.service import PostgresService

Table = tuple[list[str], list[list[object]]]
MAX_COMMAND_BYTES = 64 * 1024  # bytes of a command
_SHOW = re.compile(r"\s*show\s+(\w+)\s*;?\s*", re.IGNORECASE)


class AdminConsole:
    """One connection to it. The simple protocol alone, as psql speaks it."""

    def __init__(self, door: PostgresService, write: Callable[[bytes], None], end: Callable[[bytes], None]) -> None:
        self._door = door
        self._write = write
        self._end = end
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= HEADER_SIZE:
            kind, length = read_header(self._data)
            if not 4 <= length <= MAX_COMMAND_BYTES:
                self._end(wire.fatal_response("08P01", "that is too long for a command"))
                return
            if len(self._data) <= length:
                return
            body, self._data = self._data[HEADER_SIZE : length + 1], self._data[length + 1 :]
            if kind == wire.TERMINATE:
                self._end(b"")
                return
            if kind == wire.QUERY:
                self._write(self._answer(body.rstrip(b"\0").decode("utf-8", "replace")) + wire.ready_for_query())
            elif kind == wire.SYNC:
                self._write(wire.ready_for_query())
            else:
                self._write(
                    wire.error_response("0A000", "the console speaks the simple query protocol alone; use psql")
                )

    def _answer(self, text: str) -> bytes:
        if not text.strip(" ;\n\t"):
            return wire.message(wire.EMPTY_QUERY)
        found = _SHOW.fullmatch(text)
        make = TABLES.get(found[1].lower()) if found is not None else None
        if make is None:
            known = ", ".join(f"SHOW {word.upper()}" for word in TABLES)
            return wire.error_response("42601", f"the console does not know this; it knows {known}")
        names, rows = make(self._door)
        shown = (wire.data_row(None if cell is None else str(cell).encode() for cell in line) for line in rows)
        return wire.row_description(names) + b"".join(shown) + wire.message(wire.COMMAND_COMPLETE, b"SHOW\0")


def show_pools(door: PostgresService) -> Table:
    """As PgBouncer names them: clients active and waiting, servers active, idle, and the longest wait (s)."""
    pool = door.pool
    clients = Counter(client.state for client in door.clients.values())
    servers = Counter(server.state for server in pool.servers)
    names = [
        "database",
        "user",
        "cl_active",
        "cl_waiting",
        "cl_idle",
        "sv_active",
        "sv_idle",
        "sv_in_transaction",
        "sv_pinned",
        "sv_login",
        "maxwait",
        "pool_mode",
    ]
    active = clients["active"] + clients["idle_in_transaction"] + clients["pinned"]
    return names, [
        [
            door.database.name,
            door.database.user,
            active,
            clients["waiting"],
            clients["idle"],
            servers["active"],
            servers["idle"],
            servers["idle_in_transaction"],
            servers["pinned"],
            len(pool.launcher.attempts),
            f"{pool.longest_wait():.3f}",
            pool.policy.mode,
        ]
    ]


def show_clients(door: PostgresService) -> Table:
    names = ["id", "state", "application_name", "port", "server_pid", "pinned_by", "prepared", "seconds"]
    now = door.pool.now()
    lines: list[list[object]] = []
    for client in door.clients.values():
        session, server = client.session, client.server
        since = server.since if server is not None else client.since
        lines.append(
            [
                client.number,
                client.state,
                client.startup.application_name if client.startup is not None else None,
                client.port,
                server.backend.pid if server is not None else None,
                session.pin_reasons if session is not None else None,
                len(session.frontend.statements) if session is not None else None,
                f"{now - since:.3f}",
            ]
        )
    return names, lines


def show_servers(door: PostgresService) -> Table:
    names = ["pid", "state", "client", "transactions", "prepared", "opened_with", "seconds"]
    now = door.pool.now()
    lines: list[list[object]] = [
        [
            server.backend.pid,
            server.state,
            server.client.number if server.client is not None else None,
            server.transactions,
            len(server.backend.prepared),
            " ".join(f"{k}={v}" for k, v in server.backend.pool_key),
            f"{now - server.since:.3f}",
        ]
        for server in door.pool.servers
    ]
    return names, lines


def show_stats(door: PostgresService) -> Table:
    outcomes = door.pool.outcomes
    names = ["database", *(f"transactions_{name}" for name in outcomes), "statements", "connect_failures"]
    return names, [
        [door.database.name, *outcomes.values(), len(door.statements), door.pool.launcher.attempts.failures],
    ]


def show_config(door: PostgresService) -> Table:
    policy = door.pool.policy
    found = [[name, value] for name, value in flatten_policy("postgres", policy) if name != "postgres.url"]
    return ["key", "value"], found


def flatten_policy(prefix: str, value: object) -> Iterable[tuple[str, object]]:
    if dataclasses.is_dataclass(value) and not hasattr(value, "port"):
        for field in dataclasses.fields(value):
            yield from flatten_policy(f"{prefix}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield prefix, ", ".join(value)
    else:
        yield prefix, value


TABLES: dict[str, Callable[[PostgresService], Table]] = {
    "pools": show_pools,
    "clients": show_clients,
    "servers": show_servers,
    "stats": show_stats,
    "config": show_config,
}
