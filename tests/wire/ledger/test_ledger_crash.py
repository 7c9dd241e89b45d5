"""`kill -9` at any moment: at most the last second of settled calls is lost, and no reservation of a longer call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path

LOAD = Path(__file__).parents[2] / "helpers" / "ledger_load.py"
ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("OUTRIGGER_KILLS", "8"))
AT_ONCE = 4  # ledgers, each with its share of the kills
GRACE = 2.0  # seconds: the promise is one, and machines that run tests are slow at times


@dataclass
class Told:
    """What one life of the process said that it did: cost and moment by id."""

    opened: dict[str, tuple[int, float]] = field(default_factory=dict)
    put: dict[str, tuple[int, float]] = field(default_factory=dict)
    dropped: dict[str, tuple[int, float]] = field(default_factory=dict)

    def note(self, line: bytes) -> None:
        what, id, cost, when = line.decode().split()
        {"open": self.opened, "put": self.put, "drop": self.dropped}[what][id] = (int(cost), float(when))


async def live_and_die(path: Path, seconds: float) -> tuple[Told, float]:
    """Let it work, for so long from its first row on and for 50 calls at least, and kill it; what it said, and when it
    was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(LOAD),
        f"sqlite:///{path}",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        reported = Told()
        reported.note(await asyncio.wait_for(process.stdout.readline(), 20))
        loop = asyncio.get_running_loop()
        end = float("inf")
        while loop.time() < end or len(reported.put) <= 50:
            if end == float("inf") and has_rows(path):
                end = loop.time() + seconds
            reported.note(await asyncio.wait_for(process.stdout.readline(), 20))
        process.kill()
        killed = loop.time()
        for line in (await process.stdout.read()).splitlines(keepends=True):
            if line.endswith(b"\n"):
                reported.note(line)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
    return reported, killed


def has_rows(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            return connection.execute("SELECT 1 FROM outrigger_calls LIMIT 1").fetchone() is not None
        except sqlite3.OperationalError:  # it has no tables yet, or is being written
            return False


async def test_a_killed_process_loses_at_most_its_last_second_and_doubles_nothing(tmp_path: Path) -> None:
    lives = (killed_again_and_again(tmp_path / f"{n}.db", -(-KILLS // AT_ONCE)) for n in range(AT_ONCE))
    oldest = max(await asyncio.gather(*lives))
    print(f"{KILLS} kills; the oldest thing lost was {oldest:.2f} s old")


async def killed_again_and_again(path: Path, kills: int) -> float:
    """How old the oldest thing was that was lost, in seconds."""
    lost_ages = [0.0]
    for _ in range(kills):
        reported, killed = await live_and_die(path, random.uniform(1.0, 3.5))
        connection = sqlite3.connect(path)
        found = {
            id: (cost, outcome)
            for id, cost, outcome in connection.execute("SELECT id, cost, outcome FROM outrigger_calls")
        }
        assert connection.execute("SELECT SUM(calls), SUM(cost) FROM outrigger_hours").fetchone() == (
            len(found),
            sum(cost for cost, _ in found.values()),
        )
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        for id, (cost, when) in reported.put.items():
            if found.get(id) != (cost, "ok"):
                lost_ages.append(killed - when)
        for id, (reserved, when) in reported.opened.items():
            if id not in reported.put and id not in reported.dropped and found.get(id) != (reserved, "open"):
                lost_ages.append(killed - when)
        for id, (_, when) in reported.dropped.items():
            if id in found:
                lost_ages.append(killed - when)  # an open row that was to go
        assert max(lost_ages) < GRACE
        assert len(reported.put) > 50
    return max(lost_ages)
