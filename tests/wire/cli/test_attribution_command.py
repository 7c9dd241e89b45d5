"""`attribution` says what is hooked in the app that runs, and what was left alone and why."""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import sys

from free_ports import free_port
from gateway_process import APPS, ROOT, GatewayProcess, gateway

from proxy.cli.attribution import run_attribution

PY = shlex.quote(sys.executable)
COMMAND = f"{PY} -m gunicorn main:app --bind 127.0.0.1:$PORT"


async def said(g: GatewayProcess, tmp_path, status: int = 0) -> str:
    out, err = io.StringIO(), io.StringIO()
    words = ["--policy", f"{tmp_path}/policy-{g.port}.yaml"]
    assert await asyncio.to_thread(run_attribution, words, {}, out, err) == status
    return out.getvalue() + err.getvalue()


async def until(g: GatewayProcess, tmp_path, words: str) -> str:
    for _ in range(200):
        if words in (text := await said(g, tmp_path)):
            return text
        await asyncio.sleep(0.05)
    raise AssertionError(text)


async def test_each_process_says_what_is_hooked_and_what_was_left_alone(tmp_path):
    package = tmp_path / "httpcore" / "_sync"
    package.mkdir(parents=True)
    (tmp_path / "httpcore" / "__init__.py").write_text("__version__ = '0.12.3'\n")  # as no hook knows it
    (package / "__init__.py").write_text("")
    (package / "connection_pool.py").write_text("class SyncConnectionPool: pass\n")
    (tmp_path / "main.py").write_text(
        "import httpcore._sync.connection_pool, tornado, asking_flask\napp = asking_flask.app\n"
    )
    path = os.pathsep.join(map(str, (ROOT, tmp_path, APPS)))
    policy = "identity: {user: [{header: X-User}]}\n"
    async with gateway(tmp_path, COMMAND, policy=policy, environ={"PYTHONPATH": path}) as g:
        await g.ready(60)
        assert "No process has said a thing yet" in await said(g, tmp_path)
        assert await g.request("/nothing")  # whatever it says: a request came
        text = await until(g, tmp_path, "gunicorn")
        assert "Attribution is on. " in text
        assert "Python 3." in text
        rows = {line.split()[1]: line for line in text.splitlines() if line.startswith(("ok", "warning"))}
        assert rows["gunicorn"].split()[::2] == ["ok", "hooked"]
        assert "left alone: it does not look as its hook expects" in rows["httpx"]
        assert "0.12.3" in rows["httpx"]
        assert "left alone: there is no hook for it" in rows["tornado"]
        assert "To switch it off: app.attribution: off" in text


async def test_an_app_without_it_and_a_gateway_that_is_not_there_are_one_sentence(tmp_path):
    (tmp_path / "main.py").write_text("import asking_flask\napp = asking_flask.app\n")
    path = os.pathsep.join(map(str, (ROOT, tmp_path, APPS)))
    async with gateway(tmp_path, COMMAND, environ={"PYTHONPATH": path}) as g:
        await g.ready(60)
        assert "Attribution is off. app.attribution is auto, and no key of the policy" in await said(g, tmp_path)
        assert await g.stop() == 0
        g.port, gone = free_port(), g.port
        (tmp_path / f"policy-{gone}.yaml").rename(tmp_path / f"policy-{g.port}.yaml")
        assert "attribution: no gateway answers on" in await said(g, tmp_path, 1)
