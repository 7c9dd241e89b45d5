"""Calls that ask for what no vendor has, and errors in an encoding: what is remembered of them stays small and true."""

from __future__ import annotations

import gzip
import io
import json

import pytest
from egress_gateway import CHAT, QUICK, Vendor, egress_gateway, errs, says

pytestmark = pytest.mark.asyncio

ACCOUNT = {"error": {"message": "This would exceed your account's rate limit.", "type": "rate_limit_error"}}


@pytest.mark.parametrize("asked", [{"max_tokens": 10**400}, {"max_tokens": -5}, {"max_completion_tokens": 10**400}])
async def test_a_number_of_tokens_that_no_answer_has_is_no_fault_of_ours(tmp_path, asked):
    async with egress_gateway(
        tmp_path, Vendor(says()), openai=f"{QUICK}\npace: {{tokens: 1000/min, wait: 50ms}}"
    ) as out:
        status, _, text = await out.chat({**CHAT, **asked})
        assert status in (200, 429), text
        status, _, text = await out.chat()
        assert status in (200, 429), text


@pytest.mark.parametrize("answer", [says(), errs(500)])
async def test_a_models_name_that_is_longer_than_any_is_not_kept_whole(tmp_path, answer):
    async with egress_gateway(tmp_path, Vendor(answer), openai="retry: {attempts: 1}") as out:
        body = json.dumps({**CHAT, "model": "gpt-4o" + "x" * 2_000_000}).encode()
        url = f"{out.url}/openai/v1/chat/completions"
        async with out.session.post(url, data=io.BytesIO(body)) as answered:
            await answered.read()
        (line,) = await out.logged()
        assert len(json.dumps(line)) < 5_000
        assert len(line["model"]) < 300
        assert max(len(model) for _, model in out.openai.breakers._breakers) < 300


async def test_a_limit_of_the_whole_account_is_understood_in_gzip_too(tmp_path):
    reported = {"Content-Encoding": "gzip", "Content-Type": "application/json", "Retry-After": "30"}
    vendor = Vendor(says(gzip.compress(json.dumps(ACCOUNT).encode()), 429, **reported), says())
    async with egress_gateway(tmp_path, vendor, openai="retry: {attempts: 1}\npace: {wait: 1ms}") as out:
        assert (await out.chat(headers={"Accept-Encoding": "gzip"}))[0] == 429
        status, headers, _ = await out.chat({**CHAT, "model": "gpt-4o"})
        assert status == 429
        assert headers["Retry-After"] == "30"
        assert len(vendor.requests) == 1
