"""A wrapper that lives on says nothing of the app behind it: refused connections on its port do."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from gateway_process import APPS, eventually, gateway

PLAIN = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'plain.py'))}"
# As nodemon does: it starts the app as a child, and when that crashes waits for a change of its files.
WRAPPER = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); print('waiting for changes', flush=True); time.sleep(1000)"
COMMAND = (sys.executable, "-c", WRAPPER, sys.executable, str(APPS / "plain.py"))


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def test_it_is_replaced_no_request_fails_meanwhile_and_all_of_it_is_told(tmp_path: Path) -> None:
    async with gateway(tmp_path, *COMMAND, policy="app: {stop_timeout: 1s}\n") as g:
        await g.ready()
        child = int(body(await g.request("/pid")))
        assert child != g.app_pid()
        os.kill(child, signal.SIGKILL)
        await eventually(lambda: not Path(f"/proc/{child}").exists())  # what it was sent while it died is lost with it
        asked = await asyncio.gather(*(g.request("/pid") for _ in range(5)))
        assert {answer.split()[1] for answer in asked} == {b"200"}
        assert {int(body(answer)) for answer in asked} != {child}
        (hung,) = await eventually(lambda: g.events("app.hung"))
        assert "Nothing listens on port" in hung["message"]
        metrics = body(await g.request("/metrics", port=g.admin)).decode()
        assert 'outrigger_app_restarts_total{reason="hung"} 1.0' in metrics
        app = json.loads(body(await g.request("/status", port=g.admin)))["app"]
        assert app["crashes"] == 1
        assert app["last_exit"]["why"] == "hung"
        assert app["last_exit"]["signal"] == "SIGTERM"
        assert app["last_exit"]["time"].endswith("Z")
        assert await g.stop() == 0


async def test_it_is_seen_without_a_single_request(tmp_path: Path) -> None:
    async with gateway(tmp_path, *COMMAND, policy="app: {stop_timeout: 1s}\n") as g:
        await g.ready()
        os.kill(int(body(await g.request("/pid"))), signal.SIGKILL)
        await eventually(lambda: len(g.events("app.ready")) == 2, 30)
        assert await g.stop() == 0


async def test_one_that_is_back_in_a_moment_is_left_alone_and_requests_wait(tmp_path: Path) -> None:
    """A reloader takes a second or two: connections are refused meanwhile."""
    again = "import subprocess, sys, time; [(subprocess.run(sys.argv[1:]), time.sleep(1.5)) for _ in range(9)]"
    async with gateway(tmp_path, sys.executable, "-c", again, *COMMAND[3:]) as g:
        await g.ready()
        first = int(body(await g.request("/pid")))
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: not Path(f"/proc/{first}").exists())
        second = int(body(await g.request("/pid")))
        assert second not in (0, first)
        assert not g.events("app.hung")
        assert len(g.events("app.start")) == 1
        assert await g.stop() == 0


async def test_crashes_are_counted_with_status_signal_and_time(tmp_path: Path) -> None:
    async with gateway(tmp_path, f"{PLAIN}; exit 7", policy="app: {restart: {backoff: 20ms}}\n") as g:
        await g.ready()
        os.kill(g.app_pid(), signal.SIGKILL)
        await eventually(lambda: len(g.events("app.ready")) == 2)
        os.kill(int(body(await g.request("/pid"))), signal.SIGTERM)
        await eventually(lambda: len(g.events("app.ready")) == 3)
        first, second = g.events("app.exit")
        assert (first["status"], first["signal"], first["crashes"]) == (137, "SIGKILL", 1)
        assert "status 137 (SIGKILL)" in first["message"]
        assert (second["status"], second["signal"], second["crashes"]) == (7, None, 2)
        app = json.loads(body(await g.request("/status", port=g.admin)))["app"]
        assert (app["crashes"], app["last_exit"]["status"], app["last_exit"]["why"]) == (2, 7, "crash")
        assert await g.stop() == 0
