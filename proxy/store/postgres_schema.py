"""The tables and functions of the store in PostgreSQL: made at the first connection, and brought up to date.

Each subject has a SchemaPart with its own version, as instances of two versions of Outrigger run side by side during a
deploy: what an older one calls stays. A migration holds an advisory lock of its transaction, since a transaction pooler
gives the session to others after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.store.interface import SchemaPart

MIGRATION_LOCK = 0x6F757473  # the advisory lock of the migration
KEPT = "kept"

CLOCK = SchemaPart(
    "clock",
    (
        (
            # Everything decides by this one clock. Not now(), which stands still in a transaction: whoever waited for
            # a lock would count at the time at which it began to wait.
            "CREATE FUNCTION {schema}.clock_us() RETURNS bigint LANGUAGE sql VOLATILE AS"
            " $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$",
        ),
    ),
)
KEPT_VALUES = SchemaPart(
    "kept",
    (
        (
            "CREATE TABLE {schema}.kept (key text PRIMARY KEY, value bytea NOT NULL, expires bigint NOT NULL)",
            "CREATE INDEX kept_expires ON {schema}.kept (expires)",
        ),
    ),
    expiring=("kept",),
)


def quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def migrate(connection: Any, name: str, parts: Sequence[SchemaPart]) -> None:
    """Bring the schema up to date, by a connection of asyncpg's; a newer one is left as it is. Raises asyncpg's
    errors."""
    schema = quote_name(name)
    # In a transaction: behind a pooler, asyncpg's two steps of one query could meet two servers.
    async with connection.transaction():
        found = await _read_versions(connection, name)
    if all(found.get(part.name, 0) >= len(part.steps) for part in parts):
        return
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        # Not CREATE SCHEMA IF NOT EXISTS, which needs the right to create one even if there is one.
        if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema):
            await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {schema}.versions (part text PRIMARY KEY, version int NOT NULL)"
        )
        found = await _read_versions(connection, name)
        # All in one message: with a database of another region, one round trip for each statement would be too many.
        statements: list[str] = []
        for part in parts:
            have = found.get(part.name, 0)
            statements += (statement.replace("{schema}", schema) for step in part.steps[have:] for statement in step)
            if have < len(part.steps):
                statements.append(
                    f"INSERT INTO {schema}.versions VALUES ('{part.name}', {len(part.steps)})"
                    " ON CONFLICT (part) DO UPDATE SET version = excluded.version"
                )
        if statements:  # another instance may have made it meanwhile
            await connection.execute(";\n".join(statements))


async def _read_versions(connection: Any, name: str) -> dict[str, int]:
    schema = quote_name(name)
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.versions"):
        return {}
    rows = await connection.fetch(f"SELECT part, version FROM {schema}.versions")
    return {row[0]: row[1] for row in rows}
