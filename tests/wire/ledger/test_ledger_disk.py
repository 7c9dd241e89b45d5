"""Disks that are full: calls go on or not, as the policy says, and everything is written once there is room."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import eventually

from proxy.ledger.ledger import Ledger
from proxy.ledger.record import CallRecord
from proxy.observe.metrics import Metrics
from proxy.policy import schema

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("on_error", ["remember", "deny"])
def test_files_that_may_not_grow_are_remembered_for(tmp_path: Path, on_error: str) -> None:
    path = tmp_path / "x.db"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[2] / "helpers" / "ledger_disk_full.py"), str(path), on_error],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["waiting"] >= 1000
    assert said["refuses"] == (on_error == "deny")
    assert str(path) in said["reason"]
    assert ["written again" in text for text in said["events"]] == [False, True]
    connection = sqlite3.connect(path)
    count, cost = connection.execute("SELECT COUNT(*), SUM(cost) FROM outrigger_calls").fetchone()
    connection.close()
    assert (count, cost) == (said["put"], said["put"] * (said["put"] + 1) // 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system of half a mebibyte cannot be mounted here (not root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_disk_that_is_full_is_written_to_once_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    events: list[str] = []
    ledger = Ledger(
        schema.Ledger(url=f"sqlite:///{small_disk}/x.db"),
        emit=lambda _, text, **__: events.append(text),
        metrics=Metrics(schema.Metrics(), version="1"),
        clock=time.monotonic,
    )
    await ledger.start()
    ledger.record(CallRecord("0", 1000.0, None, "ada", "", "", "openai", "gpt", cost=1, outcome="ok"))
    await eventually(lambda: ledger.rows_waiting == 0)
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    for n in range(1, 300):
        ledger.record(CallRecord(f"{n}", 1000.0, None, "ada", "", "", "openai", "gpt", cost=1, outcome="ok"))
    await eventually(lambda: ledger.health().state == "degraded")
    assert "full" in ledger.health().reason or "disk I/O" in ledger.health().reason
    ballast.unlink()
    await eventually(lambda: ledger.health().state == "ok", 20)
    await asyncio.wait_for(ledger.stop(), 10)
    connection = sqlite3.connect(small_disk / "x.db")
    assert connection.execute("SELECT COUNT(*), SUM(cost) FROM outrigger_calls").fetchone() == (300, 300)
    connection.close()
    assert len(events) == 2
