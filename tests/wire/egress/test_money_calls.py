"""What calls cost, over real sockets: prices, caps, and what is billed when something breaks."""

import asyncio
import json
from contextlib import asynccontextmanager
from decimal import Decimal

import openai
import pytest
from egress_gateway import (
    CHAT,
    QUICK,
    USAGE,
    Vendor,
    chunks,
    completion,
    egress_gateway,
    errs,
    hangs,
    resets,
    says,
    streams,
)
from gateway_process import eventually

from proxy.units import to_nanos

# 7 tokens in and 5 out cost 17 millionths of a dollar at these.
PRICES = "prices: {gpt-4o-mini: {input: 1, output: 2}, dear: {input: 1000, output: 1000}}"
PRICE = "0.000017"
STREAM = {**CHAT, "stream": True}


@asynccontextmanager
async def paying(tmp, *vendors, policy="", **keys):
    async with egress_gateway(tmp, *vendors, openai=f"{QUICK}\n{PRICES}\n{policy}".rstrip(), **keys) as out:
        yield out


async def last_cost(out, count=1):
    call = (await out.logged(count))[-1]
    return call["cost_usd"], call["basis"]


def mine(user="ada", **more):
    return {**CHAT, "user": user, **more}


async def test_an_answer_says_what_it_cost(tmp_path):
    async with paying(tmp_path, Vendor(says())) as out:
        _, headers, _ = await out.chat()
        assert headers["x-outrigger-cost"] == PRICE
        assert await last_cost(out) == (0.000017, "reported")
        text = await out.text()
    assert 'outrigger_cost_usd_total{basis="reported",model="gpt-4o-mini",upstream="openai"} 1.7e-05' in text


async def test_a_stream_is_priced_by_the_usage_it_ends_with(tmp_path):
    async with paying(tmp_path, Vendor(streams(chunks("a", "b", usage=True)))) as out:
        _, headers, text = await out.chat(STREAM)
        assert "x-outrigger-cost" not in headers
        assert '"usage"' not in text
        assert await last_cost(out) == (0.000017, "reported")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (streams(chunks("word " * 50, usage=False)), STREAM),  # no usage
        (streams(chunks("word " * 50)[:2], then="cut"), STREAM),  # cut
        (says({**completion("word " * 50), "usage": None}), CHAT),
    ],
    ids=["a stream without usage", "a stream that was cut", "an answer without usage"],
)
async def test_what_reports_no_usage_is_paid_by_its_bytes(tmp_path, answer, body):
    async with paying(tmp_path, Vendor(answer)) as out:
        await out.chat(body)
        cost, basis = await last_cost(out)
        assert basis == "estimated"
        assert 0.00005 < cost < 0.001  # 250 bytes are about 60 tokens
        assert out.openai.billing.limits.spent("d") == to_nanos(Decimal(str(cost)))
        assert out.openai.billing.limits.reserved == 0


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_a_definite_error_costs_nothing(tmp_path, status):
    async with paying(tmp_path, Vendor(errs(status))) as out:
        _, headers, _ = await out.chat()
        assert headers["x-outrigger-cost"] == "0.000000"
        assert await last_cost(out) == (0.0, None)
        assert out.openai.billing.limits.reserved == 0


async def test_a_call_that_never_left_costs_nothing(tmp_path):
    vendor = Vendor(says())
    async with paying(tmp_path, vendor) as out:
        await vendor.stop()
        status, headers, _ = await out.chat()
        assert (status, headers["x-outrigger-cost"]) == (502, "0.000000")
        assert await last_cost(out) == (0.0, None)


async def test_each_attempt_that_broke_off_is_paid_at_its_estimate(tmp_path):
    async with paying(tmp_path, Vendor(resets(), resets(), says())) as out:
        _, headers, _ = await out.chat({**CHAT, "max_tokens": 100})
        cost, basis = await last_cost(out)
        assert headers["x-outrigger-attempts"] == "3"
        assert float(headers["x-outrigger-cost"]) == cost
        assert basis == "estimated"
        assert 2 * 0.0002 < cost < 2 * 0.0004 + 0.000017  # a hundred tokens, and the question, twice
        text = await out.text()
    assert 'basis="reported"' in text
    assert 'basis="estimated"' in text


async def test_a_call_that_timed_out_is_paid(tmp_path):
    async with paying(tmp_path, Vendor(hangs()), policy="timeout: {connect: 300ms, total: 300ms}") as out:
        status, headers, _ = await out.chat({**CHAT, "max_tokens": 100})
        assert status == 504
        assert float(headers["x-outrigger-cost"]) > 0.0002
        cost, basis = await last_cost(out)
        assert (cost, basis) == (float(headers["x-outrigger-cost"]), "estimated")


async def test_an_answer_that_nobody_waited_for_is_paid(tmp_path):
    vendor = Vendor(hangs())
    async with paying(tmp_path, vendor) as out:
        call = asyncio.ensure_future(out.chat({**CHAT, "max_tokens": 100}))
        await eventually(lambda: vendor.open)
        call.cancel()
        cost, basis = await last_cost(out)
        assert basis == "estimated"
        assert cost > 0.0002
        assert out.openai.billing.limits.reserved == 0


async def test_who_left_while_waiting_for_a_place_has_spent_nothing(tmp_path):
    vendor = Vendor(hangs())
    async with paying(tmp_path, vendor, policy="pace: {concurrency: 1}") as out:
        first = asyncio.ensure_future(out.chat())
        await eventually(lambda: vendor.open)
        second = asyncio.ensure_future(out.chat())
        await eventually(lambda: out.openai.throttle._is_serving)
        assert out.openai.billing.limits.reserved > 0
        second.cancel()
        assert await last_cost(out) == (0.0, None)
        first.cancel()
        await out.logged(2)
        assert out.openai.billing.limits.reserved == 0


async def test_the_cache_gives_for_nothing_and_a_shared_call_is_paid_once(tmp_path):
    async with paying(tmp_path, Vendor(says()), policy="cache: {ttl: 1h, when: always}\ncoalesce: true") as out:
        answers = await asyncio.gather(*(out.chat() for _ in range(5)), return_exceptions=False)
        again = await out.chat()
        assert again[1]["x-outrigger-cost"] == "0.000000"
        assert again[1]["x-outrigger-cache"] == "hit"
        assert {answer[1]["x-outrigger-cache"] for answer in answers} == {"miss", "coalesced"}
        assert out.openai.billing.limits.spent("d") == 17_000
        assert sum(call["cost_usd"] or 0 for call in await out.logged(6)) == 0.000017


async def test_a_shared_call_is_paid_by_who_began_it_though_they_left(tmp_path):
    async def slow(request):
        await asyncio.sleep(0.3)
        return await says()(request)

    vendor = Vendor(slow)
    async with paying(tmp_path, vendor, policy="cache: {ttl: 1h, when: always, scope: all}\ncoalesce: true") as out:
        first = asyncio.ensure_future(out.chat(headers={}, body=mine("ada")))
        await eventually(lambda: vendor.open)
        second = asyncio.ensure_future(out.chat(body=mine("ada")))
        await eventually(lambda: len(next(iter(out.openai.shared_calls._calls.values()))._readers) == 2)
        first.cancel()
        assert (await second)[0] == 200
        assert out.openai.billing.limits.spent("d", "ada") == 17_000
        assert out.openai.billing.limits.reserved == 0


# ── caps ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_cap_refuses_in_the_vendors_own_words_and_the_sdk_does_not_try_again(tmp_path):
    vendor = Vendor(says())
    async with paying(tmp_path, vendor, policy="cap: {per_user: $0.00005/d}") as out:
        client = openai.AsyncOpenAI(base_url=f"{out.url}/openai/v1", api_key="k", max_retries=2)
        ask = {"model": "gpt-4o-mini", "messages": CHAT["messages"], "max_tokens": 5, "user": "ada"}
        for _ in range(2):
            await client.chat.completions.create(**ask)
        with pytest.raises(openai.RateLimitError) as refused:
            for _ in range(3):
                await client.chat.completions.create(**ask)
        assert refused.value.code == "cost_cap_exceeded"
        assert refused.value.type == "insufficient_quota"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert "$0.00005/d for ada" in refused.value.message
        await client.chat.completions.create(**{**ask, "user": "bob"})
        assert len(vendor.requests) == 3
        last = (await out.logged(4))[2]
        assert (last["outcome"], last["refused"], last["attempts"]) == ("refused", "cost_cap_exceeded", 0)
        await client.close()


async def test_calls_at_once_cannot_pass_a_cap_together(tmp_path):
    """A hundred at the same moment: no more pass than the cap has room for, but for the errors of the estimates."""

    async def slow(request):
        await asyncio.sleep(0.2)
        return await says()(request)

    vendor = Vendor(slow)
    async with paying(tmp_path, vendor, policy="cap: {per_user: $0.0002/d}") as out:
        statuses = [a[0] for a in await asyncio.gather(*(out.chat(mine(max_tokens=5)) for _ in range(100)))]
        for _ in range(20):  # what is left of it, call by call
            answer = await out.chat(mine(max_tokens=5))
            if answer[0] != 200:
                break
        spent = out.openai.billing.limits.spent("d", "ada")
        assert statuses.count(200) >= 5
        assert 150_000 < spent <= 200_000 + 17_000
        assert spent == 17_000 * len(vendor.requests)
        assert out.openai.billing.limits.reserved == 0


@pytest.mark.parametrize(
    ("policy", "body", "said"),
    [
        ("cap: {per_call: $0.001}", {**CHAT, "model": "dear", "max_tokens": 5}, "cap.per_call"),
        ("cap: {total: $0.00001/d}", mine(max_tokens=50), "cap.total"),
        ("cap: {unattributed: $0.00001/d}", {**CHAT, "max_tokens": 50}, "cap.unattributed"),
    ],
)
async def test_every_cap_bites(tmp_path, policy, body, said):
    vendor = Vendor(says())
    async with paying(tmp_path, vendor, policy=policy) as out:
        status, headers, text = await out.chat(body)
        assert status == 429
        assert said in json.loads(text)["error"]["message"]
        assert headers["x-should-retry"] == "false"
        assert headers["x-outrigger-attempts"] == "0"
        assert not vendor.requests


async def test_a_second_attempt_is_made_only_within_the_caps(tmp_path):
    vendor = Vendor(resets())
    async with paying(tmp_path, vendor, policy="cap: {per_user: $0.0003/d}") as out:
        await out.chat(mine(max_tokens=100))
        assert len(vendor.requests) == 1  # one estimate is $0.0002 and a bit; two would pass the cap
        assert 200_000 < out.openai.billing.limits.spent("d", "ada") < 300_000


async def test_a_model_without_a_price(tmp_path):
    vendor = Vendor(says(completion(model="mystery")))
    ask = {**CHAT, "model": "mystery"}
    async with paying(tmp_path, vendor, policy="unknown_price: refuse") as out:
        status, _, text = await out.chat(ask)
        assert (status, json.loads(text)["error"]["code"]) == (400, "unknown_price")
        assert "upstreams.openai.prices" in text
    async with paying(tmp_path, Vendor(says(completion(model="mystery"))), policy="unknown_price: zero") as out:
        assert (await out.chat(ask))[1]["x-outrigger-cost"] == "0.000000"
    async with paying(tmp_path, Vendor(says(completion(model="mystery")))) as out:
        _, headers, _ = await out.chat(ask)
        assert float(headers["x-outrigger-cost"]) > 0.001  # as the dearest that there is
        assert (await last_cost(out, 3))[1] == "estimated"
        assert 'model="other"' in await out.text()


async def test_a_fallback_is_paid_where_it_was_asked(tmp_path):
    first, second = Vendor(errs(500)), Vendor(says())
    more = f"  azure: {{kind: openai, base_url: 'http://127.0.0.1:<1>/v1', api_key: k, {PRICES}}}\n"
    async with paying(tmp_path, first, second, policy="fallback: [{upstream: azure}]", more=more) as out:
        _, headers, _ = await out.chat(mine())
        assert headers["x-outrigger-fallback"] == "upstream=azure"
        assert headers["x-outrigger-cost"] == PRICE
        assert out.openai.billing.limits.spent("d") == 0
        assert out.egress.upstreams["azure"].billing.limits.spent("d", "ada") == 17_000


async def test_a_fallback_past_its_own_cap_is_passed_over(tmp_path):
    first, second = Vendor(errs(500)), Vendor(says())
    more = (
        f"  azure: {{kind: openai, base_url: 'http://127.0.0.1:<1>/v1', api_key: k, {PRICES}, "
        "cap: {total: $0.000001/d}}\n"
    )
    policy = "fallback: [{upstream: azure}, {text: resting}]"
    async with paying(tmp_path, first, second, policy=policy, more=more) as out:
        status, headers, text = await out.chat(mine())
        assert (status, headers["x-outrigger-fallback"]) == (200, "text")
        assert "resting" in text
        assert not second.requests


async def test_what_has_no_price_is_neither_reserved_nor_billed(tmp_path):
    vendor = Vendor(says({"object": "list", "data": []}))
    async with paying(tmp_path, vendor, policy="cap: {total: $0/d}") as out:
        async with out.session.get(f"{out.url}/openai/v1/models") as answer:
            assert answer.status == 200
            assert "x-outrigger-cost" not in answer.headers
        assert (await out.logged())[0]["cost_usd"] is None


async def test_a_websocket_is_refused_when_no_money_is_left(tmp_path):
    async with paying(tmp_path, Vendor(says()), policy="cap: {unattributed: $0/d}") as out:
        url = f"{out.url}/openai/v1/realtime?model=gpt-realtime"
        headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
        async with out.session.get(url, headers=headers) as answer:
            assert answer.status == 429
            assert (await answer.json())["error"]["code"] == "cost_cap_exceeded"


async def test_marks_of_a_cap_are_logged_once(tmp_path):
    async with paying(tmp_path, Vendor(says()), policy="cap: {total: $0.0001/d}") as out:
        for _ in range(6):
            await out.chat({**CHAT, "max_tokens": 5})
        await out.logged(6)
        lines = [json.loads(line) for line in out.log.read_text().splitlines()]
        marks = [line["share"] for line in lines if line["event"] == "cap"]
        assert marks[:2] == [0.5, 0.8]
        assert len(set(marks)) == len(marks)
        text = await out.text()
        assert "outrigger_cost_cap_ratio" in text


async def test_usage_of_one_answer_is_that_of_its_price():
    assert USAGE["prompt_tokens"] * 1000 + USAGE["completion_tokens"] * 2000 == 17_000
