"""Every command of ours that README and docs show is run as it stands, beside a gateway; every `make` has its target."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from gateway_process import APPS, ROOT, gateway

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^( *)```console\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
WRONG = re.compile(r"is not known|Traceback|syntax error|makes no sense", re.IGNORECASE)
APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"


def commands() -> list[str]:
    found: dict[str, None] = {}
    for page in PAGES:
        for _, body in BLOCK.findall(page.read_text()):
            for line in body.splitlines():
                text = re.split(r"\s{2,}#", line.strip())[0]
                if text.startswith("$ outrigger "):
                    found[text.removeprefix("$ ")] = None
    return list(found)


def test_there_are_commands_of_every_page_that_shows_some():
    assert len(commands()) > 12


async def test_every_command_can_be_run_as_it_stands(tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "outrigger").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m proxy "$@"\n')
    (programs / "outrigger").chmod(0o755)
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "main.py").write_text("from fastapi import FastAPI\napp = FastAPI()\n")
    (folder / "requirements.txt").write_text("fastapi\nuvicorn\n")
    rules = f"ledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\n"
    rules += "routes: [{name: later, match: {path: /environ}, background: {mode: prefer}}]\n"
    async with gateway(tmp_path, APP, policy=rules) as g:
        await g.ready()
        accepted = await g.request("/environ", headers=["Prefer: respond-async"])
        task = re.search(rb"/_outrigger/tasks/(\w+)", accepted)
        assert task is not None, accepted
        policy = (tmp_path / f"policy-{g.port}.yaml").read_text()
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PORT": str(g.port), "ID": task[1].decode()}
        environ["PATH"] = f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for command in commands():
            where = folder
            if command == "outrigger init":  # in a folder that has no policy yet
                where = tmp_path / "fresh"
                where.mkdir()
                (where / "main.py").write_text((folder / "main.py").read_text())
            for name in ("outrigger.yaml", "draft.yaml"):
                (folder / name).write_text(policy)
            process = await asyncio.create_subprocess_exec(
                "sh", "-euc", command, cwd=where, env=environ, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, errors = await asyncio.wait_for(process.communicate(), 60)
            said = f"{command}\n→ {process.returncode}\n{out.decode()}\n{errors.decode()}"
            # 1 is an answer as well: doctor finds the running gateway's ports taken, a task that went well is not tried
            # again.
            may_refuse = " doctor" in command or command.endswith("$ID retry")
            assert process.returncode in ((0, 1) if may_refuse else (0,)), said
            assert not WRONG.search(errors.decode()), said
        assert await g.stop() == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_is_there(page):
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = set(re.findall(r"`make ([a-z][\w-]*)", text)) | set(
        re.findall(r"^\$ make ([a-z][\w-]*)", text, re.MULTILINE)
    )
    assert named <= targets
