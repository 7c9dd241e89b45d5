"""The name for calls of nobody is not one that a client can choose: whoever is called so is a user with caps."""

import io
import json
import shlex
import sys

import pytest
from egress_gateway import CHAT, QUICK, Vendor, completion, egress_gateway, says
from gateway_process import APPS, eventually, gateway

from proxy.cli.report import run_report
from proxy.ledger.record import CallRecord
from proxy.util.user_names import RESERVED_NAMES, UNATTRIBUTED, VARIOUS_USERS, normalize_user_name

PRICES = "prices: {gpt-4o-mini: {input: 1, output: 2}}"
CAP = f"{QUICK}\n{PRICES}\ncap: {{per_user: $0.00005/d, unattributed: $1/d}}"  # room for two
APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"


async def test_a_body_that_names_nobodys_name_is_under_the_caps_of_a_user(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, openai=CAP) as out:
        answers = [await out.chat({**CHAT, "max_tokens": 5, "user": UNATTRIBUTED}) for _ in range(3)]
        assert [status for status, _, _ in answers] == [200, 200, 429]
        assert "for ~unattributed (cap.per_user)" in json.loads(answers[2][2])["error"]["message"]
        assert [call["user"] for call in await out.logged(3)] == ["~unattributed"] * 3
        for _ in range(3):
            assert (await out.chat({**CHAT, "max_tokens": 5}))[0] == 200, "nobody's have their own"
        assert (await out.logged(6))[-1]["user"] == UNATTRIBUTED
        limits = out.openai.billing.limits
        assert (limits.spent("d", "~unattributed"), limits.spent("d", UNATTRIBUTED)) == (34_000, 51_000)


async def test_a_request_of_such_a_user_has_the_caps_of_one_too_and_report_tells_them_apart(tmp_path):
    answer = {**completion(), "usage": {"prompt_tokens": 1000, "completion_tokens": 4500, "total_tokens": 5500}}
    vendor = Vendor(says(answer))
    await vendor.start()
    policy = f"""
app: {{ready: {{path: /environ}}}}
identity: {{user: [{{path: "/api/user/{{user}}/*"}}]}}
routes: [{{name: ask, match: {{path: "/api/user/*"}}, requires_budget: true}}]
upstreams:
  openai: {{base_url: "http://127.0.0.1:{vendor.port}/v1", {PRICES}, cap: {{per_user: $0.01/d, unattributed: $1/d}}}}
ledger: {{url: "sqlite:///{tmp_path}/ledger.db"}}
"""
    try:
        async with gateway(tmp_path, APP, policy=policy, environ={"OPENAI_API_KEY": "k"}) as g:
            await g.ready()
            first = await g.request(f"/api/user/{UNATTRIBUTED}/x")
            assert first.startswith(b"HTTP/1.1 200"), first
            assert b"X-Cost-Used-Today: 0.010000" in first
            assert (await g.request(f"/api/user/{UNATTRIBUTED}/x")).startswith(b"HTTP/1.1 402")
            body = json.dumps(CHAT).encode()
            target = "/openai/v1/chat/completions"
            nobodys = await g.request(target, method="POST", body=body, port=g.egress)
            assert nobodys.startswith(b"HTTP/1.1 200")
            said = await g.request(f"/ctl/block/{UNATTRIBUTED}", method="POST", port=g.admin)
            assert b"~unattributed is blocked" in said
            assert (await g.request(f"/api/user/{UNATTRIBUTED}/x")).startswith(b"HTTP/1.1 403")
            await eventually(lambda: len(g.events("call")) == 2)
            assert await g.stop() == 0
        out = io.StringIO()
        policies = ["--policy", str(tmp_path / f"policy-{g.port}.yaml")]
        assert run_report([*policies, "--csv"], {"OPENAI_API_KEY": "k"}, out, out) == 0
        rows = out.getvalue().splitlines()
        assert [row.split(",")[:2] for row in sorted(rows[1:])] == [[UNATTRIBUTED, "1"], ["~unattributed", "1"]]
    finally:
        await vendor.stop()


@pytest.mark.parametrize("ours", sorted(RESERVED_NAMES))
def test_no_two_names_become_one(ours):
    chosen = [ours, f"~{ours}", f"~~{ours}", f"x{ours}", ours.title(), f"{ours}~"]
    known = [normalize_user_name(name) for name in chosen]
    assert len(set(known)) == len(chosen)
    assert not RESERVED_NAMES & set(known)
    assert known[3:] == chosen[3:]


def test_nobody_takes_the_name_of_a_schedule():
    chosen = ["schedule:nightly", "~schedule:nightly", "~~schedule:nightly", "schedule", "a-schedule:nightly", "~ada"]
    known = [normalize_user_name(name) for name in chosen]
    assert known == [f"~{name}" for name in chosen[:3]] + chosen[3:]


@pytest.mark.parametrize("chosen", ["a\0b", "\ud800", "ü" * 300, "x" * 300, VARIOUS_USERS, "ada"])
def test_a_name_is_found_again_as_it_was_written(chosen):
    assert CallRecord("1", 0.0, None, normalize_user_name(chosen), "", "", "", "").row()[3] == normalize_user_name(
        chosen
    )
