"""The demo with ways to break it: what an app has of its own accord, on purpose."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "demo"))
from app import app

if Path(os.environ["BROKEN"]).exists():
    sys.exit("ImportError: no module named 'forgotten_in_requirements'")

_kept: list[bytearray] = []


@app.post("/hang")
async def hang() -> None:
    """Nothing is answered any more, not even a probe."""
    time.sleep(3600)


@app.post("/leak")
async def leak(mib: int = 8) -> dict[str, int]:
    _kept.append(bytearray(os.urandom(1024) * 1024 * mib))
    return {"kept": sum(len(one) for one in _kept)}


@app.post("/forget")
async def forget(seconds: float = 60.0) -> dict[str, bool]:
    """A transaction that is opened, and then something else is waited for."""
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        async with connection.transaction():
            await connection.fetchval("select 1")
            await asyncio.sleep(seconds)
    finally:
        await connection.close()
    return {"done": True}
