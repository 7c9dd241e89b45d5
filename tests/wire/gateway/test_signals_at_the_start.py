"""A signal that comes before anything was started is not lost, as process 1 of a container either."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from free_ports import free_port
from gateway_process import ROOT, eventually, gateway
from test_gateway_container import UNSHARE, can_unshare, children

WATCHING = """
import signal, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("proxy.") and name != "proxy.__main__":
            caught = [number.name for number in (signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(number))]
            print("before", name, "caught:", *caught, flush=True)
            sys.meta_path.remove(self)
        return None

sys.meta_path.insert(0, Watch())
"""


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal (SigCgt, proc_pid_status(5))."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(fields["SigCgt"], 16) >> (number - 1) & 1)


async def test_handlers_are_there_before_anything_else_is_imported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCHING)
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    async with gateway(tmp_path, "true", environ=environ) as g:
        await g.ended()
        assert "before proxy.cli caught: SIGTERM SIGHUP" in g.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_before_the_policy_is_read_it_ends_with_status_0(tmp_path: Path, number: int) -> None:
    """The policy is a pipe that nobody writes to: the process waits there."""
    os.mkfifo(tmp_path / "policy")
    arguments = ("--policy", str(tmp_path / "policy"))
    async with gateway(tmp_path, "sleep", "1000", arguments=arguments) as g:
        await eventually(lambda: catches(g.pid, signal.SIGHUP))  # the last of them
        g.signal(signal.SIGHUP)
        g.signal(number)
        assert await g.ended() == 0
        assert "Traceback" not in g.output()


@pytest.mark.skipif(not can_unshare(), reason="this machine lets nobody make a process namespace")
async def test_process_one_ends_as_well(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy")
    process = await asyncio.create_subprocess_exec(
        *UNSHARE, sys.executable, "-m", "proxy", "--policy", str(tmp_path / "policy"), "--", "sleep", "1000",
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "PORT": str(free_port())},
    )  # fmt: skip
    try:
        await eventually(lambda: any(catches(pid, signal.SIGTERM) for pid in children(process.pid)))
        (one,) = children(process.pid)
        os.kill(one, signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
