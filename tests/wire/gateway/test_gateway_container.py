"""The gateway as process 1, which it is in an image: what its app leaves behind is its own to bury."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from free_ports import free_port
from gateway_process import APPS, ROOT, GatewayProcess, eventually

UNSHARE = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]


def can_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def children(pid: int) -> dict[int, str]:
    """Pids and states."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(one): Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0] for one in pids}


@pytest.mark.skipif(not can_unshare(), reason="this machine lets nobody make a process namespace")
async def test_process_one_buries_the_orphans_of_its_app_and_ends_at_once(tmp_path: Path):
    port, admin, egress = free_port(), free_port(), free_port()
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"listen: {{public: '127.0.0.1:{port}', admin: '127.0.0.1:{admin}', egress: '127.0.0.1:{egress}', drain: 1s}}\n"
        "app: {stop_timeout: 100s}\n"
    )
    app = f"(sleep 0.1 & sleep 4 &); exec '{sys.executable}' '{APPS / 'plain.py'}'"  # the last outlives the app
    out = tmp_path / "out.log"
    with open(out, "wb") as log:
        process = await asyncio.create_subprocess_exec(
            *UNSHARE, sys.executable, "-m", "proxy", "run", "--policy", str(policy), "--", app,
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "PORT": str(port)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        running = GatewayProcess(process, port, admin, out, egress)
        await running.ready(60)
        (gateway,) = children(process.pid)
        await eventually(lambda: "Z" not in children(gateway).values(), 20)
        os.kill(gateway, signal.SIGTERM)
        assert await running.ended(40) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
