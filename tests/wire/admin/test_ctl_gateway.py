"""An operator's orders to a gateway that runs: what users of the app then meet, over restarts too."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import sys

import aiohttp
import pytest
from egress_gateway import Vendor, completion, says
from gateway_process import APPS, GatewayProcess, eventually, gateway

from proxy.cli.ctl import run_ctl

APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"
ANSWER = {**completion(), "usage": {"prompt_tokens": 700, "completion_tokens": 500, "total_tokens": 1200}}
PRICE = "0.001700"


def policy(vendor: Vendor, tmp) -> str:
    return f"""
app: {{ready: {{path: /environ}}, hold: 20s}}
identity: {{user: [{{path: "/api/user/{{user}}/*"}}, ip]}}
routes: [{{name: ask, match: {{path: "/api/user/*"}}, requires_budget: true}}]
upstreams:
  openai:
    base_url: http://127.0.0.1:{vendor.port}/v1
    prices: {{gpt-4o-mini: {{input: 1, output: 2}}}}
    cap: {{per_user: [$0.004/d, $0.006/month], total: $1/d}}
ledger: {{url: "sqlite:///{tmp}/ledger.db"}}
"""


@pytest.fixture
async def vendor():
    vendor = Vendor(says(ANSWER))
    await vendor.start()
    yield vendor
    await vendor.stop()


class Operator:
    """`ctl` as an operator has it, with the policy's file."""

    def __init__(self, g: GatewayProcess, tmp) -> None:
        self.policy = f"{tmp}/policy-{g.port}.yaml"

    async def __call__(self, *words: str, says: str, status: int = 0) -> None:
        out, err = io.StringIO(), io.StringIO()
        found = await asyncio.to_thread(run_ctl, [*words, "--policy", self.policy], {}, out, err)
        assert says in (err if status else out).getvalue(), (out.getvalue(), err.getvalue())
        assert found == status


async def get(g: GatewayProcess, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    head, _, body = (await g.request(path, headers=headers)).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


async def status(g: GatewayProcess) -> dict:
    return json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])


async def spend_all(g: GatewayProcess, user: str) -> None:
    for _ in range(6):
        if (await get(g, f"/api/user/{user}/x"))[0] != 200:
            break
    assert (await get(g, f"/api/user/{user}/x"))[0] == 402


async def test_a_block_and_a_forgiven_day_hold_at_once_and_after_a_restart(tmp_path, vendor):
    rules, environ = policy(vendor, tmp_path), {"OPENAI_API_KEY": "k"}
    async with gateway(tmp_path, APP, policy=rules, environ=environ) as g:
        await g.ready()
        operator = Operator(g, tmp_path)
        async with aiohttp.ClientSession() as session:
            sockets = [await session.ws_connect(f"http://127.0.0.1:{g.port}/api/user/{x}/live") for x in ("eve", "ada")]
            text = "eve is blocked: every request of theirs is refused with 403, 1 open WebSocket ended."
            await operator("block", "eve", says=text)
            assert (await sockets[0].receive(20)).type == aiohttp.WSMsgType.CLOSED
            await sockets[1].send_str("still here")
            assert await sockets[1].receive_str(timeout=20) == "still here"
        await operator("block", "eve", says="eve is blocked: every request of theirs is refused with 403.")
        code, fields, body = await get(g, "/api/user/eve/x", "Origin: https://page.example")
        assert code == 403
        assert json.loads(body)["type"] == "urn:outrigger:blocked"
        assert fields["Access-Control-Allow-Origin"] == "https://page.example"
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
        assert (await get(g, "/api/user/eve/x", *upgrade))[0] == 403
        preflight = (await g.request(
            "/api/user/eve/x", method="OPTIONS",
            headers=["Origin: https://page.example", "Access-Control-Request-Method: POST"],
        ))  # fmt: skip
        assert b" 403 " not in preflight.splitlines()[0]
        assert vendor.requests == []
        assert (await get(g, "/api/user/ada/x"))[0] == 200

        await spend_all(g, "ada")
        await operator("forgive", "ada", says="that ada spent today counts against none of their caps any more")
        code, fields, _ = await get(g, "/api/user/ada/x")
        assert (code, fields["X-Cost-Used-Today"]) == (200, PRICE)
        found = await status(g)
        assert float(found["upstreams"]["openai"]["cost"]["top_users_today"][0]["usd"]) > 0.004  # the money is gone
        await operator("forgive", "nobody", says="nobody has spent nothing today")
        await eventually(lambda: len(g.events("ctl")) == 4)
        orders = [(one["action"], one["subject"], one["level"]) for one in g.events("ctl")]
        assert orders[1:] == [("block", "eve", "info"), ("forgive", "ada", "info"), ("forgive", "nobody", "info")]
        assert {one["peer"] for one in g.events("ctl")} == {"127.0.0.1"}
        assert await g.stop() == 0

    async with gateway(tmp_path, APP, policy=rules, environ=environ) as g:
        await g.ready()
        operator = Operator(g, tmp_path)
        assert (await get(g, "/api/user/eve/x"))[0] == 403
        code, fields, _ = await get(g, "/api/user/ada/x")
        assert (code, fields["X-Cost-Used-Today"]) == (200, "0.003400")
        await operator("unblock", "eve", says="eve is not blocked any more.")
        assert (await get(g, "/api/user/eve/x"))[0] == 200
        await operator("unblock", "eve", says="eve is not blocked; nobody is.", status=1)
        assert await g.stop() == 0


async def test_breaker_reload_and_restart_by_hand(tmp_path, vendor):
    text, environ = policy(vendor, tmp_path), {"OPENAI_API_KEY": "k", "OUTRIGGER_ADMIN_TOKEN": "t0kén-of-this-test"}
    async with gateway(tmp_path, APP, policy=text, environ=environ) as g:
        await g.ready()
        file = tmp_path / f"policy-{g.port}.yaml"
        operator = Operator(g, tmp_path)
        await operator("reload", says="takes no orders without its admin token; set OUTRIGGER_ADMIN_TOKEN", status=1)
        file.write_text(file.read_text() + "admin: {token: t0kén-of-this-test}\n")
        await eventually(lambda: g.events("policy.reload"))

        await operator("breaker", "openai", "open", says="The breaker of openai is open until `auto`")
        asked = len(vendor.requests)
        assert (await get(g, "/api/user/ada/x"))[0] != 200
        assert len(vendor.requests) == asked
        health = json.loads((await g.request("/healthz", port=g.admin)).partition(b"\r\n\r\n")[2])
        assert health["status"] == "degraded"
        assert "an operator opened it" in health["upstreams"]["reason"]
        metrics = await g.request("/metrics", port=g.admin)
        assert b'outrigger_breaker_state{upstream="openai"} 2' in metrics
        await operator("reload", says="is in force.")
        assert (await get(g, "/api/user/ada/x"))[0] != 200  # a reload is not an operator's word
        await operator("breaker", "openai", "auto", says="given back to its window")
        assert (await get(g, "/api/user/ada/x"))[0] == 200
        await operator("breaker", "openai", "auto", says="The breaker of openai is not held; it is closed")
        await operator("breaker", "mistral", "open", says="mistral is no upstream; there are openai", status=1)

        good = file.read_text()
        file.write_text(good + "rotes: []\n")
        path = "/_outrigger/ctl/reload"
        answer = await g.request(path, method="POST", headers=["Authorization: Bearer t0kén-of-this-test"])
        assert answer.startswith(b"HTTP/1.1 422 ")
        assert b"rotes" in answer
        file.write_text(good)

        before = g.app_pid()
        await operator("restart-app", says="The app was replaced.")
        assert (await get(g, "/api/user/bob/x"))[0] == 200  # it waited
        await eventually(lambda: g.app_pid() != before)
        metrics = await g.request("/metrics", port=g.admin)
        assert b'outrigger_app_restarts_total{reason="reload"} 1' in metrics
        assert await g.stop() == 0
