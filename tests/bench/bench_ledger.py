"""What the ledger costs: a row on a call's path, rows a second to either database, a report on a million rows."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from bench_tools import table
from postgres_process import postgres

from proxy.ledger.ledger import Ledger
from proxy.ledger.postgres import PostgresStore
from proxy.ledger.record import CallRecord
from proxy.ledger.sqlite import SqliteStore
from proxy.ledger.store import LedgerStore
from proxy.observe.metrics import Metrics
from proxy.policy import schema

MILLION = int(os.environ.get("OUTRIGGER_BENCH_ROWS", "1000000"))
DAY = 86400.0
SHAPES = {"30 days, 2,000 users": (30 * DAY, 2000), "one day, 5,000 users": (DAY, 5000)}


def entries(count: int, span: float, users: int, *, ago: float = 0.0) -> list[CallRecord]:
    """Calls of the `span` seconds that ended so many seconds ago."""
    now = time.time() - ago
    return [
        CallRecord(
            uuid.UUID(int=random.getrandbits(128)).hex,
            now - span * random.random(),
            uuid.UUID(int=random.getrandbits(128)).hex,
            f"premium_user_{int(random.paretovariate(0.5)) % users}",
            "premium",
            random.choice(["ask", "generate", "embed"]),
            "openai",
            random.choice(["gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "text-embedding-3-small"]),
            1200, 200, 300, 0, random.randrange(10**8), 0, "reported", 1, 200, "ok", "miss",
        )
        for _ in range(count)
    ]  # fmt: skip


async def path_cost(url: str) -> list[float]:
    """Microseconds of CPU that open and put take of the loop's thread, the writing off it going on beside."""
    metrics = Metrics(schema.Metrics(), version="bench")
    ledger = Ledger(schema.Ledger(url=url), emit=lambda *_, **__: None, metrics=metrics, clock=time.monotonic)
    await ledger.start()
    made = entries(5000, DAY, 2000)
    costs = []
    for act in (ledger.record_open, ledger.record):
        started = time.thread_time()
        for one in made:
            act(one)
        costs.append((time.thread_time() - started) / len(made) * 1e6)
    await ledger.stop()
    return costs


async def writing(database: LedgerStore, made: list[CallRecord]) -> float:
    """Rows a second in batches of 500."""
    await database.ensure_ready(create=True)
    started = time.perf_counter()
    for at in range(0, len(made), 500):
        await database.write_batch(made[at : at + 500], [])
    rate = len(made) / (time.perf_counter() - started)
    await database.close()
    return rate


async def fill(database: LedgerStore, span: float, users: int) -> None:
    """A million rows, in the order of time."""
    parts = MILLION // 10_000
    for left in reversed(range(parts)):
        made = sorted(entries(10_000, span / parts, users, ago=left * span / parts), key=lambda one: one.at)
        await database.write_batch(made, [])
    await database.close()


def report(url: str, by: str, since: str) -> float:
    """Seconds of a whole `outrigger report --csv`, start of the interpreter included."""
    command = [sys.executable, "-m", "proxy", "report", "--csv", "--by", by, "--since", since]
    environ = {**os.environ, "OUTRIGGER_POLICY_TEXT": f"ledger: {{url: '{url}'}}"}
    started = time.perf_counter()
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def reports(name: str, url: str, since: str) -> list[str]:
    return [name, *(f"{min(report(url, by, since) for _ in range(3)):.2f} s" for by in ("user", "model", "route"))]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder)) as server:
        rows = []
        for name, url, database in (
            ("SQLite", f"sqlite:///{folder}/p.db", SqliteStore(Path(folder) / "w.db")),
            ("PostgreSQL", server.url, PostgresStore(server.url, where="bench")),
        ):
            opened, put = asyncio.run(path_cost(url))
            rate = asyncio.run(writing(database, entries(20_000, DAY, 2000)))
            rows.append([name, f"{opened:.1f} µs", f"{put:.1f} µs", f"{rate:,.0f}"])
        table(["ledger", "open", "put", "rows/s"], rows)

        rows = []
        for at, (name, (span, users)) in enumerate(SHAPES.items()):
            path = Path(folder) / f"million{at}.db"
            started = time.perf_counter()
            asyncio.run(fill(SqliteStore(path), span, users))
            print(
                f"{MILLION:,} rows, {name}: {path.stat().st_size / 2**20:.0f} MiB in {time.perf_counter() - started:.0f} s"
            )
            rows.append(reports(f"SQLite, {name}", f"sqlite:///{path}", "31d"))
            rows.append(reports("  of its last day", f"sqlite:///{path}", "24h"))
            path.unlink()
        span, users = SHAPES["30 days, 2,000 users"]
        asyncio.run(fill(PostgresStore(server.url, where="bench"), span, users))
        rows.append(reports("PostgreSQL, 30 days", server.url, "31d"))
        table([f"report, {MILLION:,} rows", "by user", "by model", "by route"], rows)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"the largest of these processes: {peak:.0f} MiB resident")


if __name__ == "__main__":
    main()
