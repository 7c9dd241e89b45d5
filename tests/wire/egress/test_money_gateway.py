"""Caps as users of an app meet them: through a whole gateway, over restarts and crashes."""

import asyncio
import csv
import io
import json
import shlex
import sys

import pytest
from egress_gateway import Vendor, completion, says
from gateway_process import APPS, ROOT, eventually, gateway
from kill_under_load import crash_and_reconcile

APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"
PRICES = "prices: {gpt-4o-mini: {input: 1, output: 2}}"
ANSWER = {**completion(), "usage": {"prompt_tokens": 700, "completion_tokens": 500, "total_tokens": 1200}}
PRICE = "0.001700"


def policy(vendor: Vendor, tmp, more: str = "") -> str:
    return f"""
app: {{ready: {{path: /environ}}}}
identity: {{user: [{{path: "/api/user/{{user}}/*"}}], tiers: [{{name: premium, users: "premium_*"}}, {{name: free}}]}}
routes: [{{name: ask, match: {{path: "/api/user/*"}}, requires_budget: true}}]
upstreams:
  openai:
    base_url: http://127.0.0.1:{vendor.port}/v1
    {PRICES}
    cap: {{per_user: {{free: $0.004/d, premium: $1/d}}}}
ledger: {{url: "sqlite:///{tmp}/ledger.db"}}
{more}"""


@pytest.fixture
async def vendor():
    vendor = Vendor(says(ANSWER))
    await vendor.start()
    yield vendor
    await vendor.stop()


def parted(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), fields, body


async def report(tmp, file, *words: str) -> list[dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "report", "--policy", str(file), "--csv", *words,
        cwd=tmp, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    return list(csv.DictReader(io.StringIO(out.decode())))


async def test_a_user_whose_cap_is_spent_gets_402_before_the_app_works_and_after_a_restart_too(tmp_path, vendor):
    text = policy(vendor, tmp_path, "alerts: {every: 200ms}")
    environ = {"OPENAI_API_KEY": "k"}
    async with gateway(tmp_path, APP, policy=text, environ=environ) as g:
        await g.ready()
        status, fields, _ = parted(await g.request("/api/user/ada/x"))
        assert (status, fields["X-Cost-Used-Today"]) == (200, PRICE)
        for _ in range(5):
            if status != 200:
                break
            status, fields, body = parted(await g.request("/api/user/ada/x", headers=["Origin: https://page.example"]))
        if status == 429:  # the app's own: the call was refused; the next request does not reach it
            status, fields, body = parted(await g.request("/api/user/ada/x", headers=["Origin: https://page.example"]))
        assert status == 402
        problem = json.loads(body)
        assert problem["type"] == "urn:outrigger:cost-cap"
        assert "$0.004/d is spent" in problem["detail"]
        assert problem["retry_after"] == int(fields["Retry-After"]) <= 86400
        assert float(fields["X-Cost-Used-Today"]) >= 0.0034
        assert "X-Cost-Used-Today" in fields["Access-Control-Expose-Headers"]
        (alert,) = await eventually(lambda: g.events("alert"))
        assert alert["message"].startswith(
            "cost_cap: at openai, 1 user has spent more than 80% of a cap of their own; $0.00"
        )
        assert "ada" not in json.dumps(alert)
        asked = len(vendor.requests)
        assert parted(await g.request("/api/user/ada/x"))[0] == 402
        assert len(vendor.requests) == asked
        assert parted(await g.request("/api/user/premium_bob/x"))[0] == 200
        [line] = await eventually(lambda: [one for one in g.events("request") if one["user"] == "premium_bob"])
        assert line["cost_usd"] == 0.0017
        assert [one["refused"] for one in g.events("request")][-2] == "cost-cap"
        status = json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])
        assert status["upstreams"]["openai"]["cost"]["top_users_today"][0]["user"] == "ada"
        assert await g.stop() == 0

    async with gateway(tmp_path, APP, policy=text, environ=environ) as g:
        await g.ready()
        asked = len(vendor.requests)
        assert parted(await g.request("/api/user/ada/x"))[0] == 429  # what a call usually costs is not known yet
        assert parted(await g.request("/api/user/ada/x"))[0] == 402
        assert len(vendor.requests) == asked
        rows = await report(tmp_path, next(tmp_path.glob(f"policy-{g.port}.yaml")), "--by", "user")
        spent = {row["user"]: (row["cost_usd"], row["estimated_usd"]) for row in rows}
        assert spent["ada"][1] == "0.000000"
        assert float(spent["ada"][0]) >= 0.0034
        assert spent["premium_bob"] == (PRICE, "0.000000")


async def test_shadow_mode_refuses_nobody(tmp_path, vendor):
    text = policy(vendor, tmp_path).replace("requires_budget: true", "requires_budget: true, enforce: false")
    async with gateway(tmp_path, APP, policy=text, environ={"OPENAI_API_KEY": "k"}) as g:
        await g.ready()
        for _ in range(4):
            assert parted(await g.request("/api/user/ada/x"))[0] in (200, 429)
        await eventually(lambda: g.events("cap.shadow"))


async def test_an_app_without_caps_has_no_header_and_pays_no_attention(tmp_path, vendor):
    text = policy(vendor, tmp_path).replace("cap: {per_user: {free: $0.004/d, premium: $1/d}}", "coalesce: false")
    async with gateway(tmp_path, APP, policy=text, environ={"OPENAI_API_KEY": "k"}) as g:
        await g.ready()
        for _ in range(4):
            status, fields, _ = parted(await g.request("/api/user/ada/x"))
            assert status == 200
            assert "X-Cost-Used-Today" not in fields


async def test_a_cap_that_a_reload_names_counts_what_was_spent_before_it(tmp_path, vendor):
    text = policy(vendor, tmp_path).replace("cap: {per_user: {free: $0.004/d, premium: $1/d}}", "coalesce: false")
    async with gateway(tmp_path, APP, policy=text, environ={"OPENAI_API_KEY": "k"}) as g:
        await g.ready()
        for _ in range(4):
            await g.request("/api/user/ada/x")
        file = tmp_path / f"policy-{g.port}.yaml"
        file.write_text(file.read_text().replace("coalesce: false", "cap: {per_user: $0.004/d}"))
        await eventually(lambda: g.events("policy.reload"))
        assert parted(await g.request("/api/user/ada/x"))[0] == 402


async def test_a_gateway_that_is_killed_gives_no_money_back(tmp_path):
    """Killed again and again under load: what the ledger has and what the vendor served agree, but for the
    answers of each last second."""
    found = await crash_and_reconcile(tmp_path, kills=4)
    assert found.doubled == 0
    assert found.older_lost == 0, found
    assert found.unrecorded == 0, found
    assert found.open_rows > 0, found
    assert found.cost >= found.least, found
