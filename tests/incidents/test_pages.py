"""Every command that RUNBOOK.md and INCIDENTS.md tell is run, in order, beside a gateway as they mean it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from pathlib import Path

from postgres_cluster import WHEEL, needs
from scene import ROOT, TOKEN, Scene, scene

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
WRONG = re.compile(r"not found|No such file|unknown (command|action)|usage:|Traceback|syntax error", re.IGNORECASE)


def blocks(page: str) -> list[tuple[str, str]]:
    """The kinds and texts of a page's fenced blocks."""
    text = (ROOT / "deploy" / page).read_text()
    return [(kind, re.sub(f"^{indent}", "", body, flags=re.MULTILINE)) for indent, kind, body in BLOCK.findall(text)]


@needs("curl", "ps")
async def test_every_command_of_the_pages_can_be_run_as_it_stands(tmp_path: Path):
    programs = tmp_path / ".outrigger" / "bin"
    programs.mkdir(parents=True)
    shim = programs / "outrigger"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m proxy "$@"\n')
    shim.chmod(0o755)
    async with scene(tmp_path) as here:
        await here.ask()
        known: set[str] = set()
        for kind, text in (*blocks("RUNBOOK.md"), *blocks("INCIDENTS.md")):
            if kind == "sh" and (new := unknown(text, known)):
                await here.running.ready()
                await run(here, new)


def unknown(text: str, known: set[str]) -> str:
    """Without the commands of ours that an earlier block has run: each takes half a second to start."""
    lines = []
    for line in text.splitlines():
        command = line.partition("  #")[0].rstrip()
        if not (command.startswith("outrigger ") and command in known):
            lines.append(line)
            known.add(command)
    return "\n".join(lines)


async def run(here: Scene, text: str) -> None:
    folder = here.folder
    if "> outrigger.yaml" in text:  # it writes the policy: in a folder where there is none
        folder = here.folder / "new"
        folder.mkdir()
    address = text.replace("http://127.0.0.1:9901", f"http://127.0.0.1:{here.running.admin}")
    address = address.replace("https://my-app.onrender.com", here.url)
    environ = {
        **os.environ,
        "PATH": f"{here.folder}/.outrigger/bin:{os.environ['PATH']}:{WHEEL}/pginstall/bin",
        "PYTHONPATH": str(ROOT),
        "OUTRIGGER_ADMIN_TOKEN": TOKEN,
        "DATABASE_URL": here.database.url,
        "PORT": str(here.running.port),
        "SLACK_WEBHOOK_URL": here.slack.url,
    }
    process = await asyncio.create_subprocess_exec(
        "sh", "-euc", address, cwd=folder, env=environ, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    said = errors.decode()
    assert process.returncode == 0, f"{text}\n→ {process.returncode}\n{out.decode()}\n{said}"
    assert not WRONG.search(said), f"{text}\n→ {said}"
    assert out or text.startswith("export "), f"{text}\n→ nothing"


def test_few_blocks_are_only_to_be_read():
    kinds = [kind for page in ("INCIDENTS.md", "RUNBOOK.md") for kind, _ in blocks(page)]
    assert set(kinds) <= {"sh", "text"}
    assert kinds.count("text") <= 2
    assert kinds.count("sh") >= 20
