"""The whole gateway with its ledger: nothing in the app's folder, a part of health, a report beside it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from free_ports import free_port
from gateway_process import APPS, ROOT, eventually, gateway

APP = (sys.executable, str(APPS / "plain.py"))


async def health(running) -> dict:
    answer = await running.request("/healthz", port=running.admin)
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def report(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy", "report", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OUTRIGGER_POLICY_TEXT": "version: 1"}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=30)


async def test_an_app_that_calls_nobody_finds_its_folder_as_it_was(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    async with gateway(tmp_path, *APP, cwd=folder) as g:
        await g.ready()
        await g.request("/world")
        found = await health(g)
        assert (found["status"], found["ledger"]["state"]) == ("ok", "ok")
        assert b"outrigger_ledger_backlog_rows 0.0" in await g.request("/metrics", port=g.admin)
        said = await asyncio.to_thread(report, folder, "--csv")
        assert (said.returncode, said.stdout.count("\n")) == (0, 1)
        assert f"there is no ledger at {folder}/var/outrigger.db, where ledger.url of" in said.stderr
        assert await g.stop() == 0
    assert list(folder.iterdir()) == []


async def test_a_database_that_is_away_degrades_the_health_and_hurts_nothing_else(tmp_path):
    policy = f"ledger: {{url: 'postgresql://u:hunter2@127.0.0.1:{free_port()}/d'}}\n"
    async with gateway(tmp_path, *APP, policy=policy) as g:
        await g.ready()
        assert (await g.request("/world")).startswith(b"HTTP/1.1 200")
        found = await health(g)
        assert (found["status"], found["ledger"]["state"]) == ("degraded", "degraded")
        assert "calls go on and are remembered" in (await eventually(lambda: g.events("ledger")))[0]["message"]
        assert await g.stop() == 0
        assert "hunter2" not in g.output() + json.dumps(found)
