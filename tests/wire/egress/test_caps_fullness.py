"""Whether a cap is spent is computed when somebody asks: what was reserved and came back locks nobody out."""

import asyncio
import json
import shlex
import sys

from aiohttp import web
from egress_gateway import Vendor, completion
from gateway_process import APPS, eventually, gateway

APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"
SMALL = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
LARGE = {"prompt_tokens": 700, "completion_tokens": 1900, "total_tokens": 2600}


def policy(vendor: Vendor, tmp, cap: str) -> str:
    return f"""
app: {{ready: {{path: /environ}}}}
identity: {{user: [{{path: "/api/user/{{user}}/*"}}]}}
routes: [{{name: ask, match: {{path: "/api/user/*"}}, requires_budget: true}}]
upstreams:
  openai:
    base_url: http://127.0.0.1:{vendor.port}/v1
    prices: {{gpt-4o-mini: {{input: 1, output: 2}}}}
    cap: {{per_user: {cap}}}
ledger: {{url: "sqlite:///{tmp}/ledger.db"}}
"""


class Held:
    """A vendor that answers only when it is let go; then with this usage."""

    def __init__(self, usage: dict) -> None:
        self.usage = usage
        self.go = asyncio.Event()

    async def __call__(self, _: web.BaseRequest) -> web.StreamResponse:
        await self.go.wait()
        return web.json_response({**completion(), "usage": self.usage})


def status(answer: bytes) -> int:
    return int(answer.split()[1])


async def test_calls_whose_reservations_fill_a_cap_and_settle_far_below_lock_nobody_out(tmp_path):
    answer = Held(SMALL)
    vendor = Vendor(answer)
    await vendor.start()
    text = policy(vendor, tmp_path, "$0.005/d")  # room for two reservations of $0.002
    try:
        async with gateway(tmp_path, APP, policy=text, environ={"OPENAI_API_KEY": "k"}) as g:
            await g.ready()
            asks = [asyncio.ensure_future(g.request("/api/user/ada/x")) for _ in range(4)]
            await eventually(lambda: vendor.open == 2 and sum(ask.done() for ask in asks) == 2)
            refused = [ask.result() for ask in asks if ask.done()]
            assert [status(one) for one in refused] == [429, 429]
            assert b"reserved" in refused[0]
            answer.go.set()
            assert sorted(status(one) for one in await asyncio.gather(*asks)) == [200, 200, 429, 429]
            assert status(await g.request("/api/user/ada/x")) == 200
    finally:
        await vendor.stop()


async def test_a_reload_to_a_higher_cap_opens_at_once(tmp_path):
    answer = Held(LARGE)
    answer.go.set()
    vendor = Vendor(answer)
    await vendor.start()
    text = policy(vendor, tmp_path, "$0.005/d")
    try:
        async with gateway(tmp_path, APP, policy=text, environ={"OPENAI_API_KEY": "k"}) as g:
            await g.ready()
            assert status(await g.request("/api/user/ada/x")) == 200  # $0.0045 of it
            closed = await g.request("/api/user/ada/x")
            assert status(closed) == 402  # what is left has no room for a usual call
            assert "$0.005/d is spent" in json.loads(closed.partition(b"\r\n\r\n")[2])["detail"]
            file = tmp_path / f"policy-{g.port}.yaml"
            file.write_text(file.read_text().replace("$0.005/d", "$0.05/d"))
            await eventually(lambda: g.events("policy.reload"))
            assert status(await g.request("/api/user/ada/x")) == 200
    finally:
        await vendor.stop()
