"""nodemon as npm carries it, which lives on where its app died and starts it anew at each change of a file."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from gateway_process import GatewayProcess, eventually, gateway, processes_of

pytestmark = pytest.mark.skipif(
    shutil.which("nodemon") is None, reason="nodemon is not on PATH (npm install --global nodemon)"
)
APP = """
const http = require("http");
http.createServer((request, response) => {
  if (request.url === "/crash") setImmediate(() => { throw new Error("nobody catches this"); });
  else response.end(String(process.pid));
}).listen(process.env.PORT, "127.0.0.1");
process.on("SIGTERM", () => setTimeout(() => { console.log("ended in order"); process.exit(0); }, 500));
process.on("SIGINT", () => {});
"""
LINES = {"quoted": ["nodemon app.js"], "words": ["nodemon", "app.js"], "npx": ["true && npx nodemon --quiet app.js"]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    """npx looks for it here before it asks a registry."""
    (tmp_path / "app.js").write_text(APP)
    (tmp_path / "node_modules" / ".bin").mkdir(parents=True)
    (tmp_path / "node_modules" / ".bin" / "nodemon").symlink_to(shutil.which("nodemon") or "")
    return tmp_path


async def pid(g: GatewayProcess) -> int:
    answer = await g.request("/")
    assert answer.startswith(b"HTTP/1.1 200")
    return int(answer.partition(b"\r\n\r\n")[2].strip().split()[-1])


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("how", ["killed", "crashed"])
async def test_its_app_is_back_and_no_request_fails_meanwhile(folder: Path, line: str, how: str) -> None:
    async with gateway(folder, *LINES[line]) as g:
        await g.ready()
        first = await pid(g)
        if how == "killed":
            os.kill(first, signal.SIGKILL)
        else:
            assert (await g.request("/crash", method="POST")).startswith(b"HTTP/1.1 502")
        await eventually(lambda: not Path(f"/proc/{first}").exists())  # what it had taken by then is lost
        assert first not in await asyncio.gather(*(pid(g) for _ in range(5)))
        (hung,) = await eventually(lambda: g.events("app.hung"))
        assert "Nothing listens on port" in hung["message"]
        group = g.app_pid()
        assert await g.stop() == 0
        assert not processes_of(group)


async def test_a_changed_file_is_its_own_business(folder: Path) -> None:
    async with gateway(folder, "nodemon --delay 100ms app.js") as g:
        await g.ready()
        first = await pid(g)
        (folder / "app.js").write_text(f"{APP}\n// changed\n")
        await eventually(lambda: not Path(f"/proc/{first}").exists())
        assert first not in await asyncio.gather(*(pid(g) for _ in range(5)))
        assert not g.events("app.hung")
        assert len(g.events("app.start")) == 1


@pytest.mark.parametrize(("line", "off"), [*((line, "") for line in LINES), ("quoted", "off"), ("words", "off")])
async def test_its_app_ends_in_order(folder: Path, line: str, off: str) -> None:
    """npx tells nobody of the signal and is gone: alone it leaves its app behind."""
    async with gateway(folder, *LINES[line], environ={"OUTRIGGER": off} if off else {}) as g:
        await g.until_answer("/")
        app = await pid(g)
        assert await g.stop() == (128 + signal.SIGTERM if off else 0)
        await eventually(lambda: not Path(f"/proc/{app}").exists())
        assert g.output().count("ended in order") == 1
