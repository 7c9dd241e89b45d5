"""What docs/tasks.md shows: its policies together are one that is taken, and its commands do what it says."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from gateway_process import ROOT, gateway
from postgres_cluster import needs
from task_client import TASK_APP, parse_answer
from test_callback_delivery import receiver

PAGE = (ROOT / "docs" / "tasks.md").read_text()
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


def policy_of_the_page() -> dict:
    """Its blocks of YAML put together."""
    whole: dict = {}
    for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for key, value in yaml.safe_load(text).items():
            if isinstance(value, dict):
                whole.setdefault(key, {}).update(value)
            else:
                whole[key] = value
    return whole


def commands_of_the_page() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_page_has_commands_for_what_it_tells() -> None:
    said = " ".join(commands_of_the_page())
    for word in (
        "respond-async",
        "wait=30",
        "/result",
        "Idempotency-Key",
        "Outrigger-Delay",
        "Outrigger-Callback",
        "DELETE",
    ):
        assert word in said


@needs("curl")
async def test_its_commands_do_what_it_says(tmp_path: Path) -> None:
    policy = policy_of_the_page()
    policy["tasks"]["callbacks"] += ["127.0.0.1"]
    programs = tmp_path / "bin"
    programs.mkdir()
    shim = programs / "outrigger"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m proxy "$@"\n')
    shim.chmod(0o755)
    environ = {"OUTRIGGER_TASKS_SECRET": SECRET}
    async with (
        gateway(tmp_path, *TASK_APP, policy=yaml.safe_dump(policy), environ=environ) as g,
        receiver() as there,
    ):
        await g.ready()
        environ |= {
            **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "OUTRIGGER_POLICY": str(tmp_path / f"policy-{g.port}.yaml"),
        }  # fmt: skip
        statuses = []
        for command in commands_of_the_page():
            command = command.replace("127.0.0.1:10000", f"127.0.0.1:{g.port}")
            command = command.replace("https://hooks.example.com", f"http://127.0.0.1:{there.port}")
            code, out = await run(command, environ)
            # What succeeded is not tried again, and the command says so.
            assert code == 0 or (" retry" in command and b"can be tried again" in out), (command, out)
            if command.startswith("curl -si "):
                answer = parse_answer(out)
                statuses.append(answer.status)
                if answer.status == 202:
                    environ["ID"] = answer.json["id"]
        # Accepted; its result; the answer itself within `wait`; delayed, and cancelled; with a callback.
        assert statuses == [202, 200, 200, 202, 204, 202]
        for _ in range(200):
            if there.heard:
                break
            await asyncio.sleep(0.1)
        assert there.heard[0][0] == "/done?key=1"


async def run(command: str, environ: dict[str, str]) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environ
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out


@pytest.mark.parametrize("word", ["task.succeeded", "webhook-id", "bad-callback", "tasks-unavailable", "queue-full"])
def test_its_words_are_the_codes(word: str) -> None:
    assert word in PAGE
    sources = " ".join(file.read_text() for file in (ROOT / "proxy").rglob("*.py"))
    assert word.replace("task.succeeded", 'f"task.{outcome}"') in sources
