"""The app leaves, at every stage of a call: nothing leaks, and the breaker counts nothing."""

import asyncio

import pytest
from outward import CHAT, Vendor, chunks, errs, hangs, outward, says, streams

from proxy.policy.outgoing import Pace

STREAM = {**CHAT, "stream": True}
EXACT = {**CHAT, "temperature": 0}


def working():
    """The tasks that are not a vendor's idle connection, which is kept warm."""
    return [task for task in asyncio.all_tasks() if "RequestHandler.start" not in repr(task.get_coro())]


async def settled(out, vendor, tasks):
    """Wait until nothing of the calls is left, here and at the vendor; AssertionError when it never is."""
    for _ in range(200):
        busy = out.egress.account.in_flight or vendor.open or len(out.openai.flights)
        if not busy and len(working()) <= tasks:
            break
        await asyncio.sleep(0.01)
    connector = out.openai.caller._session.connector if out.openai.caller._session else None
    assert out.egress.account.in_flight == 0
    assert vendor.open == 0
    assert len(out.openai.flights) == 0
    assert not connector or not connector._acquired
    assert out.openai.breaker.counts() == (0, 0)
    assert out.openai.pace._in_flight == 0
    assert len(working()) <= tasks, working()


async def leave(out, body, after=0.1):
    """Ask, and close the connection before the answer is whole."""
    call = asyncio.ensure_future(out.chat(body))
    await asyncio.sleep(after)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


STAGES = {
    "the first attempt": (hangs(), STREAM, "retry: {attempts: 2}"),
    "between attempts": (
        errs(500),
        CHAT,
        "retry: {attempts: 3, budget: 100%, backoff: {first: 5s, max: 5s, jitter: none}}",
    ),
    "held-back events": (streams(chunks("a")[:1], then="stall"), STREAM, "retry: {attempts: 2}"),
    "mid-stream": (streams(chunks("a")[:2], then="stall"), STREAM, "retry: {attempts: 2}"),
    "a shared call": (hangs(), EXACT, "coalesce: true"),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_an_app_that_leaves_leaves_nothing_behind(tmp_path, stage):
    answer, body, policy = STAGES[stage]
    vendor = Vendor(answer)
    async with outward(tmp_path, vendor, openai=policy) as out:
        tasks = len(working())
        await asyncio.gather(*(leave(out, body) for _ in range(10)))
        await settled(out, vendor, tasks)


async def test_leaving_while_waiting_for_pace(tmp_path):
    vendor = Vendor(hangs())
    async with outward(tmp_path, vendor, openai="pace: {concurrency: 1, wait: 30s}") as out:
        tasks = len(working())
        await asyncio.gather(*(leave(out, CHAT) for _ in range(10)))
        await settled(out, vendor, tasks)
        assert len(vendor.requests) == 1


async def test_leaving_during_a_fallback(tmp_path):
    vendor = Vendor(errs(500), hangs())
    async with outward(
        tmp_path, vendor, openai="retry: {attempts: 1}\nfallback: [{model: small}]\nbreaker: off"
    ) as out:
        tasks = len(working())
        await leave(out, CHAT)
        await settled(out, vendor, tasks)


async def test_one_of_several_leaves_and_the_shared_call_goes_on(tmp_path):
    async def slow(request):
        await asyncio.sleep(0.3)
        return await says()(request)

    vendor = Vendor(slow)
    async with outward(tmp_path, vendor, openai="coalesce: true") as out:
        first = asyncio.ensure_future(leave(out, EXACT, after=0.1))
        others = await asyncio.gather(*(out.chat(EXACT) for _ in range(3)), first)
        assert [answer[0] for answer in others[:3]] == [200, 200, 200]
    assert len(vendor.requests) == 1
    assert vendor.gone == 0


async def test_an_abandoned_request_takes_its_calls_with_it(tmp_path):
    class Request:
        user, tier, request_id, trace_id = "ada", "", "r", None

        def time_left(self, now):
            return 60.0

        def call_began(self):
            pass

        def call_ended(self):
            pass

    vendor = Vendor(hangs())
    async with outward(tmp_path, vendor) as out:
        out.requests.begin("token", Request())
        call = asyncio.ensure_future(out.chat(headers={"X-Outrigger-Request": "token"}))
        await asyncio.sleep(0.1)
        out.requests.end("token", abandoned=True)
        await asyncio.gather(call, return_exceptions=True)
        for _ in range(100):
            if not vendor.open:
                break
            await asyncio.sleep(0.01)
        assert (vendor.open, vendor.gone) == (0, 1)


async def test_one_users_burst_does_not_starve_another(tmp_path):
    async def brief(request):
        await asyncio.sleep(0.02)
        return await says()(request)

    async with outward(tmp_path, Vendor(brief), openai="pace: {concurrency: 1, wait: 20s}") as out:
        burst = [asyncio.ensure_future(out.chat({**CHAT, "user": "many"})) for _ in range(40)]
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert (await out.chat({**CHAT, "user": "one"}))[0] == 200
        assert asyncio.get_running_loop().time() - began < 0.3
        assert [answer[0] for answer in await asyncio.gather(*burst)] == [200] * 40


async def test_a_rate_is_kept_in_every_window(tmp_path):
    at = []

    async def note(request):
        at.append(asyncio.get_running_loop().time())
        return await says()(request)

    async with outward(tmp_path, Vendor(note), openai="pace: {requests: 10/s, wait: 10s}") as out:
        await asyncio.gather(*(out.chat() for _ in range(25)))
    assert all(later - earlier > 0.98 for earlier, later in zip(at, at[10:]))
    assert at[-1] - at[0] < 3.5
    assert Pace().requests is None
