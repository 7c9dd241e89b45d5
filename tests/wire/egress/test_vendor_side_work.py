"""What a vendor goes on with by itself (Responses in the background, videos), where other parts of the way out meet it:
reloads, fallbacks, users who were forgotten."""

from __future__ import annotations

import json

import pytest
from background_vendor import ASK, COST, background_vendor, instance, rows
from egress_gateway import Vendor, egress_gateway, errs, says
from gateway_process import eventually

from proxy.policy.loading import PolicySource, load_policy

pytestmark = pytest.mark.asyncio

OTHER = "  other: {kind: openai, base_url: 'http://127.0.0.1:<1>/v1', api_key: sk-other}\n"


async def test_an_upstream_that_left_the_policy_and_came_back_still_holds_what_was_reserved(tmp_path):
    async with background_vendor() as vendor, instance(tmp_path, vendor) as out:
        id = await out.begin()
        reserved, before = out.limits.reserved, out.egress.upstreams["openai"]
        out.egress.apply(load_policy(PolicySource("test", None, "upstreams: {openai: off}"), {}))
        assert "openai" not in out.egress.upstreams
        again = f"upstreams: {{openai: {{base_url: 'http://127.0.0.1:{vendor.port}/v1'}}}}"
        out.egress.apply(load_policy(PolicySource("test", None, again), {}))
        assert out.egress.upstreams["openai"].billing.limits is not before.billing.limits
        await eventually(lambda: out.limits.reserved == reserved)
        vendor.finish(id)
        assert await out.poll(id) == 200
        assert (out.limits.spent("d", "ada"), out.limits.reserved) == (COST, 0)
    assert [row["cost"] for row in rows(tmp_path)] == [COST]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("responses", {**ASK, "model": "gpt-4o-mini"}),
        ("videos", {"model": "sora-2", "prompt": "a sea", "seconds": "4"}),
    ],
)
async def test_an_order_is_placed_nowhere_else_since_it_is_asked_after_where_it_was_placed(tmp_path, path, asked):
    first, second = Vendor(errs(503)), Vendor(says({"id": "x_1", "status": "queued"}))
    policy = "retry: {attempts: 1}\nfallback: [{upstream: other}]"
    async with egress_gateway(tmp_path, first, second, openai=policy, more=OTHER) as out:
        async with out.session.post(f"{out.url}/openai/v1/{path}", json=asked) as answer:
            assert answer.status == 503, await answer.text()
        assert not second.requests
        question = {key: value for key, value in asked.items() if key != "background"}
        second.answers = [says({"id": "x_1", "output": [], "status": "completed"})]
        async with out.session.post(f"{out.url}/openai/v1/responses", json=question) as answer:
            assert json.loads(await answer.text())["id"] == "x_1", "a question is"
