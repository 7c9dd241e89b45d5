"""The app runs as the same user as the gateway, and cannot read the keys that it holds for it."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_process import APPS, gateway

# A test that ran before in this process may have imported eventlet, which warns of every fork from then on.
pytestmark = pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning")
SECRET = "sk-hunter2-the-real-one"
POLICY = "upstreams: {openai: {api_key: '${OPENAI_API_KEY}'}}\n"
KEY = {"OPENAI_API_KEY": SECRET}
APP = (sys.executable, str(APPS / "plain.py"))
CAPABILITIES = (19, 21, 38)  # SYS_PTRACE, SYS_ADMIN, PERFMON: what a container's root has not

READER = """
import sys
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            print("read", b"hunter2" in file.read(1 << 20))
    except OSError as error:
        print(type(error).__name__)
"""


def without_capabilities() -> None:
    prctl = ctypes.CDLL(None).prctl
    for capability in CAPABILITIES:
        prctl(24, ctypes.c_ulong(capability), 0, 0, 0)  # PR_CAPBSET_DROP; nobody but root has them anyway


def read(*paths: str) -> list[str]:
    """What another process of this user sees of these files."""
    command = [sys.executable, "-c", READER, *paths]
    return subprocess.run(
        command, preexec_fn=without_capabilities, capture_output=True, text=True, check=True, timeout=20
    ).stdout.split("\n")[:-1]


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_neither_environment_nor_memory_of_the_gateway_can_be_read_and_no_child_has_its_keys(tmp_path):
    async with gateway(tmp_path, *APP, policy=POLICY, environ=KEY, preexec=without_capabilities) as g:
        await g.ready()
        closed = [f"/proc/{g.pid}/{name}" for name in ("environ", "maps", "mem", "auxv")]
        assert await asyncio.to_thread(read, *closed) == ["PermissionError"] * len(closed)
        assert await asyncio.to_thread(read, f"/proc/{g.pid}/cmdline", f"/proc/{g.pid}/status") == ["read False"] * 2
        beside = children(g.pid)
        assert g.app_pid() in beside
        assert len(beside) >= 2  # the app, and who ends it if the gateway is killed
        # Executed programs begin anew: their own environments can be read, as ever, and have none of our keys.
        seen = await asyncio.to_thread(read, *(f"/proc/{pid}/environ" for pid in beside))
        assert seen == ["read False"] * len(beside)
        made = (await g.request("/env?OPENAI_API_KEY")).partition(b"\r\n\r\n")[2]
        assert made.startswith(b"sk-outrigger-")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_the_gateway_still_sees_itself_and_its_app(tmp_path):
    async with gateway(tmp_path, *APP, policy=POLICY, environ=KEY, preexec=without_capabilities) as g:
        await g.ready()

        async def read_metric(name: str) -> float:
            text = (await g.request("/metrics", port=g.admin)).decode()
            return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)

        for name in ("process_resident_memory_bytes", "process_open_fds", "process_max_fds", "app_memory_bytes"):
            async with asyncio.timeout(10):
                while not await read_metric(f"outrigger_{name}"):
                    await asyncio.sleep(0.1)
