"""`check --running` says what saving a file would change, and the gateway then does what was said."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import sys

from free_ports import free_port
from gateway_process import APPS, GatewayProcess, eventually, gateway

from proxy.cli.check import run_check

APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"
POLICY = """
app: {hold: 15s}
routes:
  - {name: ask, match: {path: /ask}, timeout: 30s}
upstreams: {openai: {base_url: "http://127.0.0.1:9/v1", api_key: "${KEY}"}}
"""


async def said(g: GatewayProcess, tmp_path, *words: str, status: int = 0, **environ: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    argv = ["--running", "--policy", f"{tmp_path}/policy-{g.port}.yaml", *words]
    assert await asyncio.to_thread(run_check, argv, {"KEY": "sk-real", **environ}, out, err) == status, err.getvalue()
    return out.getvalue() + err.getvalue()


async def test_it_sorts_what_a_save_would_change_by_when_and_the_gateway_does_the_same(tmp_path):
    async with gateway(tmp_path, APP, policy=POLICY, environ={"KEY": "sk-real"}) as g:
        await g.ready()
        file = tmp_path / f"policy-{g.port}.yaml"
        assert "says the same already: saving this changes nothing" in await said(g, tmp_path, str(file))

        draft = tmp_path / "draft.yaml"
        draft.write_text(
            file.read_text()
            .replace("hold: 15s", "hold: 5s")
            .replace("timeout: 30s", "timeout: 10s, concurrency: 3")
            .replace(
                "upstreams: {",
                "identity: {user: [{header: X-User}]}\nledger: {url: 'sqlite:///other.db'}\nupstreams: {",
            )
            .replace('"http://127.0.0.1:9/v1"', '"http://127.0.0.1:8/v1"')
            + "log: {app_output: wrap}\n"
        )
        text = await said(g, tmp_path, str(draft))
        at_once, later = text.split("Waits for the app's next start")
        app, restart = later.split("Waits for the gateway's restart")
        assert "app.hold: 15s → 5s" in at_once
        assert "routes.ask.timeout: 30s → 10s" in at_once
        assert "routes.ask.concurrency: null → 3" in at_once
        assert "identity.user: [ip] → " in at_once
        assert "upstreams.openai.base_url" in at_once  # its address in the app is ours, whatever is behind
        assert "log.app_output: pass → wrap" in app
        assert "app.attribution" in app
        assert "ledger.url: sqlite:///var/outrigger.db → sqlite:///other.db" in restart
        assert "sk-real" not in text
        assert (
            json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])["policy"]["pending"] == []
        )

        file.write_text(draft.read_text())
        kept = await eventually(lambda: (found := g.events("policy.kept")) and len(found) >= 3 and found)
        assert {one["key"]: one["until"] for one in kept} == {
            "ledger.url": "gateway restart",
            "log.app_output": "app restart",
            "app.attribution": "app restart",
        }
        # What is in force still waits to be changed by the same file; what was taken at once is said no more.
        again = await said(g, tmp_path)
        assert "app.hold" not in again
        assert "log.app_output: pass → wrap" in again
        assert await g.stop() == 0


async def test_a_bad_file_and_a_gateway_that_is_not_there_are_told_as_ever(tmp_path):
    async with gateway(tmp_path, APP, policy=POLICY, environ={"KEY": "sk-real"}) as g:
        await g.ready()
        bad = tmp_path / "bad.yaml"
        bad.write_text("app: {hold: 5}\n")
        assert f"{bad}:1: app.hold: 5: it has no unit" in await said(g, tmp_path, str(bad), status=2)
        assert await g.stop() == 0
        g.port, gone = free_port(), g.port
        (tmp_path / f"policy-{gone}.yaml").rename(tmp_path / f"policy-{g.port}.yaml")
        assert "check --running: no gateway answers on" in await said(g, tmp_path, status=1)


async def test_with_a_token_it_takes_the_token(tmp_path):
    environ = {"KEY": "sk-real", "OUTRIGGER_ADMIN_TOKEN": "secret-of-the-gateway"}
    async with gateway(tmp_path, APP, policy=POLICY, environ=environ) as g:
        await g.ready()
        assert "shows nothing without its admin token" in await said(g, tmp_path, status=1)
        text = await said(g, tmp_path, OUTRIGGER_ADMIN_TOKEN="secret-of-the-gateway")
        assert "saving this changes nothing" in text
