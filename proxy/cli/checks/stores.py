"""Whether the database can be reached and has room for the pool, and whether ledger and queue can be written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from proxy.cli.detect.app import detect_app
from proxy.cli.detect.database import DRIVER_PACKAGES
from proxy.cli.detect.project_files import Folder
from proxy.cli.output import Finding
from proxy.policy.schema import Policy
from proxy.policy.urls import mask_password, sqlite_path
from proxy.tasks.switch import names_tasks

CONNECT_TIMEOUT = 5.0  # seconds
MAX_ROUND_TRIP = 0.05  # seconds; a database in the same region answers within a few milliseconds


async def check_database(policy: Policy, environ: Mapping[str, str], cwd: Path) -> list[Finding]:
    if not policy.postgres.url and detect_app(Folder(cwd)).packages & DRIVER_PACKAGES:
        text = "the app brings a driver of PostgreSQL, and postgres.url is empty: there is no pool"
        fix = "set DATABASE_URL, or what postgres.url names; where the app uses no database, all is well"
        return [Finding("warning", "database", text, fix)]
    if not policy.postgres.url:
        return [Finding("ok", "database", "no pool: the app's own address of it stays as it is")]
    import asyncpg

    from proxy.postgres.dsn import parse_url

    where = mask_password(policy.postgres.url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            # Without a cache of statements: a transaction pooler in between would lose them.
            connection = await asyncpg.connect(parse_url(policy.postgres.url, environ).dsn, statement_cache_size=0)
            try:
                version = await connection.fetchval("show server_version")
                most = int(await connection.fetchval("show max_connections"))
                began = time.perf_counter()
                # Rows without a database are the server's own processes.
                used = int(await connection.fetchval("select count(*) from pg_stat_activity where datname is not null"))
                took = time.perf_counter() - began
            finally:
                connection.terminate()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError) as error:
        why = (
            f"no answer in {CONNECT_TIMEOUT:g} s" if isinstance(error, TimeoutError) else str(error).partition("\n")[0]
        )
        text = f"{where} cannot be used: {why or type(error).__name__}"
        return [Finding("error", "database", text, "mend postgres.url (DATABASE_URL), or start the database")]
    shown = f"{where}: PostgreSQL {version}, {used} of {most} connections in use, {took * 1000:.0f} ms away"
    if policy.postgres.pool.max > most:
        fix = "make pool.max smaller"
        return [Finding("error", "database", f"{shown}; pool.max is {policy.postgres.pool.max}", fix)]
    # Connections that others have now may not come free; a tenth is left for whoever looks after the database.
    if policy.postgres.pool.max > (most - used) * 0.9:
        fix = "make pool.max smaller, or close other clients"
        return [Finding("warning", "database", f"{shown}; pool.max {policy.postgres.pool.max} takes nearly all", fix)]
    if took > MAX_ROUND_TRIP:
        return [Finding("warning", "database", shown, "move the app and its database into one region")]
    return [Finding("ok", "database", shown)]


async def check_ledger(policy: Policy) -> list[Finding]:
    return [await _check_store(policy.ledger.url, "ledger")]


async def check_tasks(policy: Policy) -> list[Finding]:
    """The database of the queue, if there is a queue and its database is not the ledger's."""
    url = policy.tasks.url
    if not names_tasks(policy) or url is None or url == policy.ledger.url:
        return []
    return [await _check_store(url, "tasks")]


async def _check_store(url: str, part: str) -> Finding:
    """`part` is the section of the policy whose `url` it is."""
    path = sqlite_path(url)
    if path is not None:
        return await asyncio.to_thread(_check_sqlite_file, Path(path), part)
    from proxy.ledger.postgres import check_reachable
    from proxy.ledger.store import LedgerUnavailable

    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            version = await check_reachable(url, mask_password(url))
    except (LedgerUnavailable, TimeoutError) as error:
        why = str(error) or f"{mask_password(url)}: no answer in {CONNECT_TIMEOUT:g} s"
        return Finding("error", part, why, f"mend {part}.url, or start the database")
    if part != "ledger":
        return Finding("ok", part, f"{mask_password(url)} can be reached")
    begun = "is there" if version else "is made with the first start"
    return Finding("ok", part, f"{mask_password(url)} can be reached; the ledger {begun}")


def _check_sqlite_file(path: Path, part: str) -> Finding:
    """Look at the file without writing to it: a gateway that runs may be using it."""
    fix = f"make the folder writable, or name another {part}.url"
    if not path.exists():
        # Missing folders are made too, so the nearest one that exists has to be writable.
        folder = next(one for one in path.absolute().parents if one.exists())
        if os.access(folder, os.W_OK | os.X_OK):
            return Finding("ok", part, f"{path} is made with the first row")
        return Finding("error", part, f"{path} cannot be made: {folder} is not writable", fix)
    # The folder as well: SQLite makes its journal beside the file.
    if not os.access(path, os.W_OK) or not os.access(path.absolute().parent, os.W_OK):
        return Finding("error", part, f"{path} is not writable", fix)
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=2.0)
        try:
            # The header and a first page: a file that is no database fails at one of the two.
            connection.execute("PRAGMA user_version").fetchone()
            count = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding("error", part, f"{path}: {error}", "move it away, and a new one is begun")
    return Finding("ok", part, f"{path} can be read and written" if count else f"{path} is empty as yet")
