"""Callers leave, at every stage of a call: nothing leaks, the breaker counts nothing, the upstream sees it at once."""

import asyncio
import io

import aiohttp
import pytest
from egress_gateway import CHAT, ReceivedCall, Vendor, chunks, egress_gateway, errs, hangs, says, streams
from gateway_process import eventually

from proxy.policy.schema import Pace

STREAM = {**CHAT, "stream": True}
EXACT = {**CHAT, "temperature": 0}
CALLERS = 10


class Caller:
    """One call of the app's for the request of that token; `begun` once some of its answer came."""

    def __init__(self, out, body, token: str = "none") -> None:
        self.begun = False
        self._out, self._body = out, body
        self._token = token
        self.task = asyncio.ensure_future(self._call())

    async def _call(self) -> None:
        url = f"{self._out.url}/openai/v1/chat/completions"
        headers = {"X-Outrigger-Request": self._token}
        async with self._out.session.post(url, json=self._body, headers=headers) as answer:
            async for _ in answer.content.iter_any():
                self.begun = True

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def working():
    """The tasks that are not a server's idle connection, which is kept warm."""
    warm = ("RequestHandler.start", "ClientConnection._serve_requests")
    return [task for task in asyncio.all_tasks() if not any(name in repr(task.get_coro()) for name in warm)]


def left_behind(out, vendor, tasks):
    """What is still there of the calls, here and at the vendor."""
    found = {
        "calls": out.egress.accounting.in_flight,
        "at the vendor": vendor.open,
        "shared calls": len(out.openai.shared_calls),
        "connections": out.openai.client.in_use,
        "places": out.openai.throttle._in_flight,
        "waiting": len(out.openai.throttle._queue),
        "tasks": max(0, len(working()) - tasks),
        "work of requests": len(out.requests._work),
    }
    return {what: count for what, count in found.items() if count}


async def nothing_is_left(out, vendor, tasks, counts=(0, 0)):
    """At once, that is within a second; a machine that is busy with other things gets five."""
    try:
        await eventually(lambda: not left_behind(out, vendor, tasks), timeout=5.0)
    except AssertionError:
        raise AssertionError(f"left behind: {left_behind(out, vendor, tasks)}, {working()}") from None
    assert out.openai.breakers.counts() == counts


def at_the_vendor(out, vendor, callers):
    return vendor.open == len(callers)


def all_failed_once(out, vendor, callers):
    return len(vendor.requests) >= len(callers) and not vendor.open


def all_begun(out, vendor, callers):
    return all(caller.begun for caller in callers)


def all_but_one_wait(out, vendor, callers):
    return len(out.openai.throttle._queue) >= len(callers) - 2  # one has the place, one is next


def all_wait(out, vendor, callers):
    return len(vendor.requests) == 1 and out.egress.accounting.in_flight == len(callers)


def one_for_all(out, vendor, callers):
    return vendor.open == 1 and out.egress.accounting.in_flight == len(callers)


def falling_back(out, vendor, callers):
    return vendor.open == len(callers) and len(vendor.requests) == 2 * len(callers)


SLOWLY = "retry: {attempts: 3, budget: 100%, backoff: {first: 20s, max: 20s, jitter: none}}\nbreaker: off"
HELD = "retry: {attempts: 1}\npace: {wait: 30s}"
SHARED = "coalesce: true\nretry: {attempts: 1}"
FALLS = "retry: {attempts: 1}\nfallback: [{model: small}]\nbreaker: {min_calls: 1000}"
# The stage; what the vendor answers in turn, what is asked, the policy; whether all are there; what may count.
STAGES = {
    "waiting for a place": ([hangs()], CHAT, "pace: {concurrency: 1, wait: 30s}", all_but_one_wait, (0, 0)),
    "waiting for a rate": ([hangs()], CHAT, "pace: {requests: 1/min, wait: 30s}", all_wait, (0, 0)),
    "the first attempt": ([hangs()], CHAT, "retry: {attempts: 2}", at_the_vendor, (0, 0)),
    "the first attempt at a stream": ([hangs()], STREAM, "retry: {attempts: 2}", at_the_vendor, (0, 0)),
    "between attempts": ([errs(500)], CHAT, SLOWLY, all_failed_once, (0, 0)),
    "a second attempt": ([errs(500)] * CALLERS + [hangs()], CHAT, "retry: {budget: 100%}", falling_back, (0, 0)),
    "held-back events": ([streams(chunks("a")[:1], then="stall")], STREAM, "", at_the_vendor, (0, 0)),
    "mid-stream": ([streams(chunks("a")[:2], then="stall")], STREAM, "", all_begun, (0, 0)),
    "a shared call": ([hangs()], EXACT, SHARED, one_for_all, (0, 0)),
    "a shared stream": ([streams(chunks("a")[:2], then="stall")], {**EXACT, "stream": True}, SHARED, all_begun, (0, 0)),
    "a fallback": ([errs(500)] * CALLERS + [hangs()], CHAT, FALLS, falling_back, (CALLERS, CALLERS)),
}


@pytest.mark.parametrize("way", ["the app closes its connection", "the request is abandoned"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_caller_that_leaves_leaves_nothing_behind(tmp_path, stage, way):
    answers, body, policy, there, counts = STAGES[stage]
    vendor, request = Vendor(*answers), ReceivedCall()
    async with egress_gateway(tmp_path, vendor, openai=policy or "retry: {attempts: 2}") as out:
        tasks = len(working())
        out.requests.begin("token", request)
        callers = [Caller(out, body, "token") for _ in range(CALLERS)]
        await eventually(lambda: there(out, vendor, callers))
        if way == "the app closes its connection":
            await asyncio.gather(*(caller.leave() for caller in callers))
        else:
            out.requests.end("token", abandoned=True)
            await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)
        await nothing_is_left(out, vendor, tasks, counts)
        assert request.under_way == 0
        lines = await out.logged(CALLERS)
        assert {line["outcome"] for line in lines} == {"gone"}
        assert len(lines) == CALLERS


async def test_where_the_policy_does_not_say_so_calls_outlive_their_request(tmp_path):
    async def slow(request):
        await asyncio.sleep(0.3)
        return await says()(request)

    vendor = Vendor(slow)
    async with egress_gateway(tmp_path, vendor) as out:
        out.requests.begin("token", ReceivedCall(left=None))
        call = asyncio.ensure_future(out.chat(headers={"X-Outrigger-Request": "token"}))
        await eventually(lambda: vendor.open)
        out.requests.end("token", abandoned=True)
        assert (await call)[0] == 200
        assert (await out.logged())[0]["user"] == "ada"
    assert vendor.gone == 0


@pytest.mark.parametrize(
    "stage", ["the first attempt", "between attempts", "held-back events", "mid-stream", "a fallback"]
)
async def test_a_deadline_that_passes_leaves_nothing_behind(tmp_path, stage):
    answers, body, policy, _, _ = STAGES[stage]
    vendor = Vendor(*answers)
    policy = f"{policy or 'retry: {attempts: 2}'}\ntimeout: {{connect: 700ms, total: 700ms}}"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        tasks = len(working())
        callers = [Caller(out, body) for _ in range(CALLERS)]
        await asyncio.wait_for(asyncio.gather(*(caller.task for caller in callers)), 10)
        await eventually(lambda: not left_behind(out, vendor, tasks), timeout=5.0)
        lines = await out.logged(CALLERS)
        assert {line["outcome"] for line in lines} == {"error"}


async def test_the_time_of_the_request_ends_its_calls_and_counts_for_nothing(tmp_path):
    vendor = Vendor(hangs())
    async with egress_gateway(tmp_path, vendor) as out:
        out.requests.begin("token", ReceivedCall(left=0.3))
        status, headers, text = await out.chat(headers={"X-Outrigger-Request": "token"})
        assert (status, headers["x-should-retry"]) == (504, "false")
        assert "the request that it came from" in text
        assert out.openai.breakers.counts() == (0, 0)


async def test_an_upload_that_is_broken_off_breaks_off_beyond(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        tasks = len(working())
        reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
        writer.write(
            b"POST /openai/v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 1000000\r\n\r\n" + b"x" * 100_000
        )
        await eventually(lambda: out.openai.client.in_use)
        writer.close()
        await nothing_is_left(out, vendor, tasks)
        assert (await out.logged())[0]["outcome"] in ("gone", "error")
    assert not vendor.requests  # it never got the whole of it


async def test_a_download_that_is_broken_off_breaks_off_beyond(tmp_path):
    async def endless(request):
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)

    vendor = Vendor(endless)
    async with egress_gateway(tmp_path, vendor) as out:
        tasks = len(working())
        async with out.session.get(f"{out.url}/openai/v1/files/f/content") as answer:
            await answer.content.readexactly(1_000_000)
        await nothing_is_left(out, vendor, tasks)


async def test_a_body_that_is_read_late_is_not_lost(tmp_path):
    """The call waits for its place while its upload is still with the app."""
    vendor = Vendor(says())
    body = b"x" * 6_000_000
    async with egress_gateway(tmp_path, vendor, openai="pace: {requests: 2/s, wait: 10s}") as out:

        async def upload():
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            async with out.session.post(f"{out.url}/openai/v1/files", data=io.BytesIO(body), headers=headers) as answer:
                return answer.status

        assert await asyncio.gather(*(upload() for _ in range(3))) == [200] * 3
    assert {len(request[3]) for request in vendor.requests} == {len(body)}


async def test_one_of_several_leaves_and_the_shared_call_goes_on(tmp_path):
    left = asyncio.Event()

    async def slow(request):
        await left.wait()
        return await says()(request)

    vendor = Vendor(slow)
    async with egress_gateway(tmp_path, vendor, openai="coalesce: true") as out:
        first = Caller(out, EXACT)
        await eventually(lambda: vendor.open)
        others = [asyncio.ensure_future(out.chat(EXACT)) for _ in range(3)]
        await eventually(lambda: out.egress.accounting.in_flight == 4)
        await first.leave()
        left.set()
        assert [answer[0] for answer in await asyncio.gather(*others)] == [200, 200, 200]
    assert len(vendor.requests) == 1
    assert vendor.gone == 0


async def test_one_users_burst_does_not_starve_another(tmp_path):
    async def brief(request):
        await asyncio.sleep(0.02)
        return await says()(request)

    async with egress_gateway(tmp_path, Vendor(brief), openai="pace: {concurrency: 1, wait: 20s}") as out:
        burst = [asyncio.ensure_future(out.chat({**CHAT, "user": "many"})) for _ in range(40)]
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert (await out.chat({**CHAT, "user": "one"}))[0] == 200
        assert asyncio.get_running_loop().time() - began < 0.6  # the burst alone takes 0.8 s
        assert [answer[0] for answer in await asyncio.gather(*burst)] == [200] * 40


async def test_who_leaves_the_line_takes_nobodys_turn(tmp_path):
    """At one call in 2 s: those who left would have been served first, for 20 s."""
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, openai="pace: {requests: 1/2s, wait: 15s}") as out:
        assert (await out.chat())[0] == 200
        callers = [Caller(out, CHAT) for _ in range(CALLERS)]
        await eventually(lambda: out.egress.accounting.in_flight == CALLERS)
        await asyncio.gather(*(caller.leave() for caller in callers))
        began = asyncio.get_running_loop().time()
        assert (await out.chat())[0] == 200
        assert asyncio.get_running_loop().time() - began < 10
    assert len(vendor.requests) == 2


async def test_a_rate_is_kept_in_every_window(tmp_path):
    at = []

    async def note(request):
        at.append(asyncio.get_running_loop().time())
        return await says()(request)

    async with egress_gateway(tmp_path, Vendor(note), openai="pace: {requests: 10/s, wait: 10s}") as out:
        await asyncio.gather(*(out.chat() for _ in range(25)))
    assert all(later - earlier > 0.98 for earlier, later in zip(at, at[10:]))
    assert at[-1] - at[0] < 3.5
    assert Pace().requests is None
