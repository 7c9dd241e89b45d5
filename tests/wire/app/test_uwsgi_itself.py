"""uWSGI as PyPI's wheel carries it: with a master it reloads at one signal and ends at another, by its options."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import sysconfig
from pathlib import Path

import pytest
from gateway_process import APPS, ROOT, GatewayProcess, eventually, gateway

PROGRAM = Path(sys.executable).with_name("uwsgi")
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="uWSGI is not installed (pip install pyuwsgi)")
LINE = f"{shlex.quote(str(PROGRAM))} --http-socket 127.0.0.1:$PORT --chdir {shlex.quote(str(APPS))} --module wsgi_pids --threads 4"
# A reload executes the Python behind the environment's link, which finds uWSGI by this alone.
ENVIRON = {"PYTHONPATH": f"{ROOT}{os.pathsep}{sysconfig.get_path('platlib')}"}


async def pids(g: GatewayProcess) -> tuple[int, int]:
    """The worker that answered, and its parent."""
    worker, parent = (await g.until_answer("/")).rpartition(b"\n")[2].split()
    return int(worker), int(parent)


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal (proc_pid_status(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << number - 1)


async def settled(g: GatewayProcess) -> tuple[int, int]:
    """Its master, or its only process, hears signals a moment after its workers answer."""
    worker, parent = await pids(g)
    for number in (signal.SIGTERM, signal.SIGINT):
        await eventually(lambda number=number: catches(worker, number) or catches(parent, number))
    await asyncio.sleep(1)
    return await pids(g)


async def signal_until_ended(g: GatewayProcess, number: int) -> None:
    """What comes while uWSGI is being executed anew is lost, so it is said again."""
    for _ in range(10):
        g.signal(number)
        try:
            await g.ended(2)
            return
        except TimeoutError:
            pass
    raise AssertionError(f"it did not end at {number}")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("--master --processes 2 --die-on-term", "SIGTERM"),
        ("--master --processes 2", "SIGQUIT"),
        ("--master --processes 2", "SIGINT"),
        ("", "SIGTERM"),
    ],
)
async def test_it_ends_at_the_signal_that_doctor_names_and_answers_first(
    tmp_path: Path, options: str, name: str
) -> None:
    async with gateway(
        tmp_path, f"true && {LINE} {options}", policy=f"app: {{stop_signal: {name}}}\n", environ=ENVIRON
    ) as g:
        worker, _ = await settled(g)
        slow = asyncio.create_task(g.request("/slow"))
        await asyncio.sleep(0.5)
        assert await g.stop() == 0
        assert (await slow).startswith(b"HTTP/1.1 200")
        (ended,) = g.events("app.exit")
        assert ended["why"] == "stop"
        assert ended["signal"] != "SIGKILL"
        assert not alive(worker)
        assert not alive(g.app_pid())


@pytest.mark.parametrize(("options", "name"), [("", "SIGTERM"), ("--die-on-term", "SIGQUIT")])
async def test_one_that_reloads_instead_has_stop_timeout_and_nobody_is_left(
    tmp_path: Path, options: str, name: str
) -> None:
    policy = f"app: {{stop_signal: {name}, stop_timeout: 3s}}\n"
    async with gateway(tmp_path, f"{LINE} --master {options}", policy=policy, environ=ENVIRON) as g:
        await settled(g)
        master = g.app_pid()
        assert await g.stop() == 0
        assert "binary reloading uWSGI" in g.output()
        assert g.events("app.exit")[-1]["signal"] == "SIGKILL"
        assert not alive(master)


@pytest.mark.parametrize("behind", ["", "; true"], ids=["executed", "by a shell"])
async def test_without_outrigger_it_ends_as_it_does_alone(tmp_path: Path, behind: str) -> None:
    line = f"{LINE} --master --die-on-term{behind}"
    async with gateway(tmp_path, line, environ={**ENVIRON, "OUTRIGGER": "off"}) as g:
        worker, master = await settled(g)
        assert (master == g.pid) == (not behind)
        assert await g.stop() in (0, 128 + signal.SIGTERM)
        assert not alive(master)
        assert not alive(worker)


@pytest.mark.parametrize("behind", ["", "; true"], ids=["executed", "by a shell"])
async def test_without_outrigger_one_that_reloads_serves_on_and_is_waited_for(tmp_path: Path, behind: str) -> None:
    async with gateway(tmp_path, f"{LINE} --master{behind}", environ={**ENVIRON, "OUTRIGGER": "off"}) as g:
        worker, master = await settled(g)
        g.signal(signal.SIGTERM)
        await eventually(lambda: not alive(worker))
        after, same = await settled(g)
        assert (after != worker, same) == (True, master)
        assert g.process.returncode is None
        await signal_until_ended(g, signal.SIGINT)
        assert not alive(master)


async def test_a_master_that_is_killed_is_replaced_with_its_workers(tmp_path: Path) -> None:
    policy = "app: {stop_signal: SIGQUIT, restart: {backoff: 20ms}}\n"
    async with gateway(tmp_path, f"{LINE} --master --processes 2", policy=policy, environ=ENVIRON) as g:
        worker, master = await settled(g)
        os.kill(master, signal.SIGKILL)
        await eventually(lambda: not alive(worker))  # what it had taken by then is lost
        answer = await g.request("/")
        assert answer.startswith(b"HTTP/1.1 200")
        _, second = await pids(g)
        assert second != master
        assert await g.stop() == 0
