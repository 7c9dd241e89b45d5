"""OUTRIGGER=off with a line that only a shell can run: it ends as the shell would have."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest


async def start(tmp: Path, line: str) -> asyncio.subprocess.Process:
    environ = {**os.environ, "OUTRIGGER": "off", "HERE": str(tmp)}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "proxy", "--", line, env=environ)


async def until_there(file: Path) -> int:
    async with asyncio.timeout(20):
        while not file.exists() or not file.read_text().strip():
            await asyncio.sleep(0.02)
    return int(file.read_text())


async def test_an_app_that_crashes_beside_a_job_in_the_background_ends_it_so_that_the_platform_starts_anew(
    tmp_path: Path,
) -> None:
    process = await start(tmp_path, 'sleep 60 & echo $! > "$HERE/job"; sleep 0.2; exit 7')
    job = await until_there(tmp_path / "job")
    try:
        began = time.monotonic()
        assert await asyncio.wait_for(process.wait(), 10) == 7
        assert time.monotonic() - began < 5
    finally:
        os.kill(job, signal.SIGKILL)
        if process.returncode is None:
            process.kill()


async def test_told_to_stop_it_waits_for_all_of_them(tmp_path: Path) -> None:
    job = "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.5), open(sys.argv[1] + '/done', 'w').close(), sys.exit()))"
    job += "; open(sys.argv[1] + '/job', 'w').write('1'); time.sleep(60)"
    process = await start(tmp_path, f'{shlex.quote(sys.executable)} -c "{job}" "$HERE" & wait')
    await until_there(tmp_path / "job")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) in (143, 0)
    assert (tmp_path / "done").exists()


async def test_a_signal_ends_it_with_the_shells_status(tmp_path: Path) -> None:
    process = await start(tmp_path, 'sleep 60 & echo $! > "$HERE/job"; wait')
    await until_there(tmp_path / "job")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
async def test_it_ends_where_nobody_buries_orphans(tmp_path: Path) -> None:
    """Process 1 of a container is often a shell, or an app, that waits for nobody but its own children."""
    heir = (
        "import ctypes, subprocess, sys, time; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"
        "p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait(); print('ended', flush=True)"
    )
    line = '(trap "" TERM; echo $$ > "$HERE/job"; sleep 1) & wait'
    environ = {**os.environ, "OUTRIGGER": "off", "HERE": str(tmp_path)}
    words = (sys.executable, "-c", heir, sys.executable, "-m", "proxy", "--", line)
    process = await asyncio.create_subprocess_exec(*words, env=environ, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        pid = int(await process.stdout.readline())
        await until_there(tmp_path / "job")
        os.kill(pid, signal.SIGTERM)
        assert await asyncio.wait_for(process.stdout.readline(), 10) == b"ended\n"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
