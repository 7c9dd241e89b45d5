"""`suggest` asks a gateway that runs, and proposes figures by what it saw."""

from __future__ import annotations

import asyncio
import io
import re
import shlex
import sys

from free_ports import free_port
from gateway_process import APPS, GatewayProcess, gateway

from proxy.cli.suggest import run_suggest

APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"
POLICY = """

routes:
  - {name: environ, match: {path: /environ}, enforce: false, concurrency: 1, rate_limit: 50/min}
"""


async def said(g: GatewayProcess, tmp_path, status: int = 0, **environ: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    words = ["--policy", f"{tmp_path}/policy-{g.port}.yaml"]
    assert await asyncio.to_thread(run_suggest, words, environ, out, err) == status
    return out.getvalue() + err.getvalue()


async def test_it_says_that_it_saw_too_little_and_then_what_would_have_refused_nobody(tmp_path):
    async with gateway(tmp_path, APP, policy=POLICY) as g:
        await g.ready()
        text = await said(g, tmp_path)
        assert "That is too little to go by: let it see a whole day" in text
        assert "so far: too few for a figure" in text
        assert "No figure can be proposed yet." in text
        for _ in range(30):
            answers = await asyncio.gather(*(g.request("/environ") for _ in range(4)))
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        text = await said(g, tmp_path)
        assert "120 requests." in text
        assert "would have refused nobody." in text
        assert "Its rate limit (50/min) would have refused 70 of 120" in text
        assert re.search(r"\nroutes:\n  - name: environ\n    concurrency: [46]\n", text)
        assert "    rate_limit: 100/min\n" in text
        assert await g.stop() == 0


async def test_a_gateway_that_is_not_there_or_wants_a_token_is_one_sentence(tmp_path):
    async with gateway(tmp_path, APP, policy=POLICY, environ={"OUTRIGGER_ADMIN_TOKEN": "secret-of-the-gateway"}) as g:
        await g.ready()
        assert "shows nothing without its admin token; set OUTRIGGER_ADMIN_TOKEN" in await said(g, tmp_path, 1)
        assert "has run for" in await said(g, tmp_path, OUTRIGGER_ADMIN_TOKEN="secret-of-the-gateway")
        assert await g.stop() == 0
        g.port, gone = free_port(), g.port
        (tmp_path / f"policy-{gone}.yaml").rename(tmp_path / f"policy-{g.port}.yaml")
        assert "suggest: no gateway answers on" in await said(g, tmp_path, 1)
