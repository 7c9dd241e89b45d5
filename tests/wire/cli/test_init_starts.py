"""The start command that `init` prints, run as printed: the app answers behind the gateway, under the policy made."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from free_ports import free_port
from gateway_process import ROOT, GatewayProcess

from proxy.cli.init import run_init

LAYOUTS = ROOT / "tests" / "layouts"
# A path to ask for, and what the answer has in it.
ASKED = {
    "fastapi_procfile": ("/api/user/ada/notes/7", b'{"note":7}'),
    "flask_factory": ("/items/3", b'{"item":3}'),
    "django_below": ("/", b"hello"),
    "gunicorn_conf": ("/", b"hello"),
    "node_procfile": ("/", b"hello"),
    "dockerfile": ("/", b"hello"),
    "hard_port": ("/", b"hello"),
    "poetry": ("/up", b"up"),
}


@pytest.mark.parametrize("name", ASKED)
async def test_the_start_command_starts_the_app_behind_the_gateway(name, tmp_path):
    if name.startswith("node") and shutil.which("node") is None:
        pytest.skip("node is not installed")
    folder = tmp_path / name
    shutil.copytree(LAYOUTS / name, folder)
    if name == "hard_port":
        file = folder / "server.py"
        file.write_text(file.read_text().replace("8123", str(free_port())))
    out = io.StringIO()
    assert run_init([str(folder)], out, io.StringIO()) == 0
    made = next(folder.rglob("outrigger.yaml"))
    port, admin, egress = free_port(), free_port(), free_port()
    text = made.read_text()
    made.write_text(text.replace("listen:\n", f"listen:\n  admin: 127.0.0.1:{admin}\n  egress: 127.0.0.1:{egress}\n"))

    own, bin = shlex.quote(sys.executable), tmp_path / "bin"
    bin.mkdir()
    outrigger = program(bin / "outrigger", f'PYTHONPATH={shlex.quote(str(ROOT))} exec {own} -m proxy "$@"')
    program(bin / "python", f'exec {own} "$@"')  # the app's: the gateway's environment leaves its PATH
    program(bin / "poetry", f'shift; exec {own} -m "$@"')
    line = re.sub(r"\S*/bin/outrigger", str(outrigger), start_of(out.getvalue()))
    log = tmp_path / "log"
    path = f"{bin}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(log, "wb") as file:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"exec {line}", cwd=made.parent, env={"PATH": path, "PORT": str(port)},
            stdout=file, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    g = GatewayProcess(process, port, admin, log)
    try:
        await g.ready(40)
        target, answer = ASKED[name]
        found = await g.request(target)
        assert found.startswith(b"HTTP/1.1 200 ")
        assert answer in found.replace(b'": ', b'":')
        assert b"via: 1.1 outrigger" in found.lower()
        assert not [one for one in g.events() if one.get("level") == "error"]
        assert await g.stop() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def program(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def start_of(said: str) -> str:
    """As a shell has it; of a Dockerfile the words of its CMD."""
    if found := re.search(r"CMD \[(.*)\]", said):
        return shlex.join(re.findall(r'"((?:[^"\\]|\\.)*)"', found[1]))
    return said.partition("Start command:\n\n    ")[2].partition("\n")[0]
