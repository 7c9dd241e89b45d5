"""Time: one deadline over all of a call, the caller's patience, and what holds for streams alone."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web
from egress_gateway import CHAT, ReceivedCall, Vendor, chunks, egress_gateway, errs, hangs, says, streams
from ingress_gateway import until

STREAM = {**CHAT, "stream": True}
QUICK = "retry: {attempts: 3, backoff: {first: 1ms, max: 1ms}}"
ONCE = "retry: {attempts: 1}"


def code(text: str) -> str:
    return json.loads(text)["error"]["code"]


def last(text: str) -> str:
    """The code of the error event that a stream ended with."""
    return json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"]


def slow(answer, seconds: float):
    async def later(request):
        await asyncio.sleep(seconds)
        return await answer(request)

    return later


async def test_a_late_first_byte_is_tried_again_where_the_policy_says_so(tmp_path):
    policy = "timeout: {first_byte: 300ms}\nretry: {attempts: 2, on: [first_byte], backoff: {first: 1ms, max: 1ms}}"
    vendor = Vendor(hangs(), streams(chunks("a")))
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        status, headers, text = await out.chat(STREAM)
        assert (status, headers["x-outrigger-attempts"], text.encode()) == (200, "2", b"".join(chunks("a")))
    assert vendor.gone == 1


async def test_start_up_events_are_no_first_byte(tmp_path):
    policy = f"timeout: {{first_byte: 300ms}}\n{ONCE}"
    stalls = streams([b": thinking\n\n", *chunks("a")[:1]], then="stall")
    async with egress_gateway(tmp_path, Vendor(stalls), openai=policy) as out:
        status, headers, text = await out.chat(STREAM)
        assert (status, code(text), headers["x-should-retry"]) == (504, "upstream_timeout", "false")
        assert out.openai.breakers.counts() == (1, 1)


async def test_first_byte_and_idle_are_for_streams_alone(tmp_path):
    async def drips(request):
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"x")
            await asyncio.sleep(0.5)
        return response

    policy = f"timeout: {{first_byte: 200ms, idle: 200ms}}\n{ONCE}"
    async with egress_gateway(tmp_path, Vendor(slow(says(), 0.6), drips), openai=policy) as out:
        assert (await out.chat())[0] == 200
        async with out.session.get(f"{out.url}/openai/v1/files/f/content") as answer:
            assert await answer.read() == b"xxx"


async def test_the_total_bounds_a_stream_that_never_pauses(tmp_path):
    policy = "timeout: {connect: 1s, total: 1s}"
    events = chunks(*"a" * 400)
    async with egress_gateway(tmp_path, Vendor(streams(events, pause=0.02)), openai=policy) as out:
        _, _, text = await asyncio.wait_for(out.chat(STREAM), 7)
        assert last(text) == "upstream_timeout"
        assert "timeout.total" in text
        assert "[DONE]" not in text


async def test_patience_bounds_each_gap_once_the_stream_began_and_not_the_whole(tmp_path):
    patient = {"x-stainless-read-timeout": "1"}
    whole = chunks(*"abcdef")
    async with egress_gateway(tmp_path, Vendor(streams(whole, pause=0.3), streams(whole[:2], then="stall"))) as out:
        _, _, text = await out.chat(STREAM, headers=patient)
        assert text.encode() == b"".join(whole)  # in all longer than the patience
        _, _, text = await asyncio.wait_for(out.chat(STREAM, headers=patient), 10)
        assert last(text) == "upstream_timeout"


async def test_patience_bounds_each_gap_of_a_shared_stream_too(tmp_path):
    patient = {"x-stainless-read-timeout": "1"}
    asked = {**STREAM, "temperature": 0}
    whole = chunks(*"abcdef")
    vendor = Vendor(streams(whole, pause=0.3), streams(whole[:2], then="stall"))
    async with egress_gateway(tmp_path, vendor, openai="coalesce: true") as out:
        answers = await asyncio.gather(*(out.chat(asked, headers=patient) for _ in range(2)))
        assert [text.encode() for _, _, text in answers] == [b"".join(whole)] * 2
        assert len(vendor.requests) == 1
        with pytest.raises(aiohttp.ClientError):  # cut, so that it is not taken for a whole answer
            await asyncio.wait_for(out.chat(asked, headers=patient), 10)


async def test_no_attempt_begins_that_the_deadline_would_not_let_wait(tmp_path):
    vendor = Vendor(errs(503, retry_after="5"), says())
    async with egress_gateway(tmp_path, vendor) as out:
        began = asyncio.get_running_loop().time()
        status, headers, _ = await out.chat(headers={"x-stainless-read-timeout": "4"})
        assert (status, headers["x-outrigger-attempts"]) == (503, "1")  # the vendor's own word, not a time-out
        assert asyncio.get_running_loop().time() - began < 3


async def test_waiting_for_a_place_counts_against_the_deadline(tmp_path):
    policy = "pace: {concurrency: 1, wait: 30s}\ntimeout: {connect: 1s, total: 1s}"
    vendor = Vendor(hangs())
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        first = asyncio.create_task(out.chat())
        await until(lambda: vendor.requests)
        second = out.chat(headers={"X-Stainless-Read-Timeout": "0.4"})  # has 250 ms less
        answers = await asyncio.wait_for(asyncio.gather(first, second), 10)
        assert [(status, code(text)) for status, _, text in answers] == [(504, "upstream_timeout")] * 2
        assert out.openai.breakers.counts() == (1, 1)  # who never got a place says nothing of the upstream
    assert len(vendor.requests) == 1


async def test_a_call_that_mostly_waited_here_says_nothing_of_the_upstream(tmp_path):
    policy = "pace: {concurrency: 1, wait: 30s}\ntimeout: {connect: 1s, total: 1s}\nretry: {attempts: 1}"
    vendor = Vendor(slow(says(), 0.7), hangs())
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        first = asyncio.create_task(out.chat())
        await until(lambda: vendor.requests)
        second = await asyncio.wait_for(out.chat(), 10)
        assert ((await first)[0], second[0]) == (200, 504)
        assert len(vendor.requests) == 2
        assert out.openai.breakers.counts() == (1, 0)


async def test_the_requests_own_time_counts_only_where_it_is_cancelled_with_it(tmp_path):
    request = ReceivedCall(left=None)
    async with egress_gateway(tmp_path, Vendor(slow(says(), 0.6))) as out:
        out.requests.begin("t", request)
        assert (await out.chat(headers={"X-Outrigger-Request": "t"}))[0] == 200
        request.left = 0.2
        assert (await out.chat(headers={"X-Outrigger-Request": "t"}))[0] == 504


async def test_slow_calls_open_the_breaker_where_the_policy_says_what_is_slow(tmp_path):
    policy = f"breaker: {{min_calls: 2, slow_call: 100ms}}\n{ONCE}"
    async with egress_gateway(tmp_path, Vendor(slow(says(), 0.3)), openai=policy) as out:
        assert [(await out.chat())[0] for _ in range(3)] == [200, 200, 503]


async def test_what_the_vendor_says_of_its_limits_delays_the_next_call(tmp_path):
    limits = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "700ms"}
    async with egress_gateway(tmp_path, Vendor(says(None, 200, **limits), says())) as out:
        _, headers, _ = await out.chat()
        assert headers["x-ratelimit-remaining-requests"] == "0"
        began = asyncio.get_running_loop().time()
        assert (await out.chat())[0] == 200
        assert asyncio.get_running_loop().time() - began > 0.5


async def test_a_429_without_retry_after_holds_back_its_own_call_alone(tmp_path):
    policy = "retry: {attempts: 2, backoff: {first: 3s, max: 3s, jitter: none}}"
    async with egress_gateway(tmp_path, Vendor(errs(429, "rate_limit_exceeded"), says()), openai=policy) as out:
        first = asyncio.ensure_future(out.chat())
        while not out.openai.retry_budget._retries.total:
            await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        assert (await out.chat())[0] == 200
        assert asyncio.get_running_loop().time() - began < 2
        assert (await first)[0] == 200


async def test_a_short_retry_after_of_a_429_holds_back_the_next_calls_as_well(tmp_path):
    async with egress_gateway(tmp_path, Vendor(errs(429, "x", retry_after="1"), says()), openai=ONCE) as out:
        assert (await out.chat())[0] == 429
        began = asyncio.get_running_loop().time()
        assert (await out.chat())[0] == 200
        assert asyncio.get_running_loop().time() - began > 0.7


@pytest.mark.parametrize("value", ["", "soon", "nan", "-3", "Thu, 01 Jan 1970 00:00:00 GMT", "1e400"])
async def test_a_retry_after_that_makes_no_sense_is_none(tmp_path, value):
    async with egress_gateway(tmp_path, Vendor(errs(503, retry_after=value), says()), openai=QUICK) as out:
        status, _, _ = await asyncio.wait_for(out.chat(), 10)
        assert status == (503 if value == "1e400" else 200)  # endless: the app is told


# ── what is kept ─────────────────────────────────────────────────────────────────────────────

EXACT = {**CHAT, "temperature": 0}
CACHED = f"cache: {{ttl: 1h}}\n{ONCE}"


async def test_an_answer_is_the_users_alone_unless_the_policy_says_otherwise(tmp_path):
    for scope, wanted in (("user", ["miss", "miss", "hit"]), ("all", ["miss", "hit", "hit"])):
        vendor = Vendor(says())
        async with egress_gateway(tmp_path, vendor, openai=f"cache: {{ttl: 1h, scope: {scope}}}") as out:
            for token, user in (("a", "ada"), ("b", "bob")):
                out.requests.begin(token, ReceivedCall(left=None, user=user))
            seen = [await out.chat(EXACT, headers={"X-Outrigger-Request": token}) for token in ("a", "b", "a")]
            assert [answer[1]["x-outrigger-cache"] for answer in seen] == wanted


@pytest.mark.parametrize(
    "answer", [errs(500), errs(400), streams(chunks("a")[:2], then="cut"), streams(chunks("a")[:2])], ids=range(4)
)
async def test_only_whole_good_answers_are_kept(tmp_path, answer):
    good = streams(chunks("a"))
    async with egress_gateway(tmp_path, Vendor(answer, good, good), openai=CACHED) as out:
        body = {**EXACT, "stream": True}
        seen = [(await out.chat(body))[1]["x-outrigger-cache"] for _ in range(3)]
        assert seen == ["miss", "miss", "hit"]


async def test_an_open_breaker_is_no_reason_to_go_without_an_answer_that_is_kept(tmp_path):
    policy = "cache: {ttl: 50ms, stale_if_error: 1h}"
    async with egress_gateway(tmp_path, Vendor(says()), openai=policy) as out:
        first = await out.chat(EXACT)
        out.openai.breakers.force("open")
        await asyncio.sleep(0.1)
        status, headers, text = await out.chat(EXACT)
        assert (status, text, headers["x-outrigger-cache"]) == (200, first[2], "stale")
        other = await out.chat({**EXACT, "seed": 3})
        assert other[0] == 503
