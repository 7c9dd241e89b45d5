"""The database `outrigger`: what psql can ask of the pool (SHOW POOLS, CLIENTS, SERVERS, STATS, CONFIG)."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from proxy.postgres import wire
from proxy.postgres.wire import HEAD_SIZE, read_head

if TYPE_CHECKING:
    from proxy.postgres.service import Door

Table = tuple[list[str], list[list[object]]]
MOST = 64 * 1024  # bytes of a command
_WORDS = re.compile(r"\s*show\s+(\w+)\s*;?\s*", re.IGNORECASE)


class Console:
    """One connection to it. The simple protocol alone, as psql speaks it."""

    def __init__(self, door: Door, write: Callable[[bytes], None], end: Callable[[bytes], None]) -> None:
        self._door = door
        self._write = write
        self._end = end
        self._data = b""

    def hear(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= HEAD_SIZE:
            kind, length = read_head(self._data)
            if not 4 <= length <= MOST:
                self._end(wire.fatal("08P01", "that is too long for a command"))
                return
            if len(self._data) <= length:
                return
            body, self._data = self._data[HEAD_SIZE : length + 1], self._data[length + 1 :]
            if kind == wire.TERMINATE:
                self._end(b"")
                return
            if kind == wire.QUERY:
                self._write(self._answer(body.rstrip(b"\0").decode("utf-8", "replace")) + wire.ready())
            elif kind == wire.SYNC:
                self._write(wire.ready())
            else:
                self._write(wire.error("0A000", "the console speaks the simple query protocol alone; use psql"))

    def _answer(self, text: str) -> bytes:
        if not text.strip(" ;\n\t"):
            return wire.message(wire.EMPTY_QUERY)
        found = _WORDS.fullmatch(text)
        make = TABLES.get(found[1].lower()) if found is not None else None
        if make is None:
            known = ", ".join(f"SHOW {word.upper()}" for word in TABLES)
            return wire.error("42601", f"the console does not know this; it knows {known}")
        names, rows = make(self._door)
        shown = (wire.row(None if cell is None else str(cell).encode() for cell in line) for line in rows)
        return wire.columns(names) + b"".join(shown) + wire.message(wire.COMPLETE, b"SHOW\0")


def _pools(door: Door) -> Table:
    """As PgBouncer names them: clients active and waiting, servers active, idle, and the longest wait (s)."""
    pool = door.pool
    clients = Counter(client.state for client in door.clients.values())
    servers = Counter(server.state for server in pool.servers)
    names = ["database", "user", "cl_active", "cl_waiting", "cl_idle", "sv_active", "sv_idle", "sv_in_transaction",
             "sv_pinned", "sv_login", "maxwait", "pool_mode"]  # fmt: skip
    active = clients["active"] + clients["idle_in_transaction"] + clients["pinned"]
    return names, [
        [door.database.name, door.database.user, active, clients["waiting"], clients["idle"], servers["active"],
         servers["idle"], servers["idle_in_transaction"], servers["pinned"], len(pool.supply.opening),
         f"{pool.longest_wait():.3f}", pool.policy.mode]
    ]  # fmt: skip


def _clients(door: Door) -> Table:
    names = ["id", "state", "application_name", "port", "server_pid", "pinned_by", "prepared", "seconds"]
    now = door.pool.now()
    lines: list[list[object]] = []
    for client in door.clients.values():
        session, server = client.session, client.server
        since = server.since if server is not None else client.since
        lines.append(
            [client.number, client.state, client.startup.name if client.startup is not None else None, client.port,
             server.backend.pid if server is not None else None, session.pins if session is not None else None,
             len(session.frontend.names) if session is not None else None, f"{now - since:.3f}"]
        )  # fmt: skip
    return names, lines


def _servers(door: Door) -> Table:
    names = ["pid", "state", "client", "transactions", "prepared", "opened_with", "seconds"]
    now = door.pool.now()
    lines: list[list[object]] = [
        [server.backend.pid, server.state, server.client.number if server.client is not None else None,
         server.transactions, len(server.backend.prepared), " ".join(f"{k}={v}" for k, v in server.backend.key),
         f"{now - server.since:.3f}"]
        for server in door.pool.servers
    ]  # fmt: skip
    return names, lines


def _stats(door: Door) -> Table:
    outcomes = door.pool.outcomes
    names = ["database", *(f"transactions_{name}" for name in outcomes), "statements", "connect_failures"]
    return names, [
        [door.database.name, *outcomes.values(), len(door.statements), door.pool.supply.opening.failures],
    ]


def _config(door: Door) -> Table:
    policy = door.pool.policy
    found = [[name, value] for name, value in _flat("postgres", policy) if name != "postgres.url"]
    return ["key", "value"], found


def _flat(prefix: str, value: object) -> Iterable[tuple[str, object]]:
    if dataclasses.is_dataclass(value) and not hasattr(value, "port"):
        for field in dataclasses.fields(value):
            yield from _flat(f"{prefix}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield prefix, ", ".join(value)
    else:
        yield prefix, value


TABLES: dict[str, Callable[[Door], Table]] = {
    "pools": _pools,
    "clients": _clients,
    "servers": _servers,
    "stats": _stats,
    "config": _config,
}
