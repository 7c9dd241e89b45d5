"""A reload while calls are under way: each ends by the upstream that it began with, which retires with its last."""

import asyncio
import json
import random

import aiohttp
import pytest
from aiohttp import web
from egress_gateway import CHAT, QUICK, Vendor, chunks, completion, egress_gateway, says, streams

from proxy.policy.loading import PolicySource, load_policy


def reload(out, text):
    out.egress.apply(load_policy(PolicySource("new", None, text), {}))


def policy_of(vendor, key=None, name="mine", more=""):
    own = f", api_key: {key}" if key else ""
    return f'upstreams: {{{name}: {{kind: openai, base_url: "http://127.0.0.1:{vendor.port}/v1"{own}, {QUICK}{more}}}}}'


MINE = "  mine: {kind: openai, base_url: 'http://127.0.0.1:<0>/v1', QUICK%s}\n".replace("QUICK", QUICK)


def mine(out):
    return out.egress.upstreams["mine"]


def held(gate, *events, answer=None):
    """Says its first part, and the rest once `gate` is open."""

    async def said(request):
        if not events:
            await gate.wait()
            return await (answer or says())(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events[0] + events[1])
        await gate.wait()
        await response.write(b"".join(events[2:]))
        await response.write_eof()
        return response

    return said


async def until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


NONE = "upstreams: {}"
GONE = ["removed", "renamed", "moved"]


def after(vendor, how):
    moved = 'upstreams: {mine: {kind: openai, base_url: "http://127.0.0.1:9/v1"}}'
    return {"renamed": policy_of(vendor, name="renamed"), "moved": moved}.get(how, NONE)


@pytest.mark.parametrize("how", GONE)
async def test_a_stream_ends_whole_when_its_upstream_is_gone_from_the_policy(tmp_path, how):
    gate = asyncio.Event()
    vendor = Vendor(held(gate, *chunks("a", "b")))
    async with egress_gateway(tmp_path, vendor, more=MINE % "") as out:
        caller = mine(out).client
        url = f"{out.url}/mine/v1/chat/completions"
        async with out.session.post(url, json={**CHAT, "stream": True}) as answer:
            said = await answer.content.readany()
            reload(out, after(vendor, how))
            await asyncio.sleep(0)
            gate.set()
            async with asyncio.timeout(5):
                said += await answer.content.read()
        assert said == b"".join(chunks("a", "b"))
        [call] = await out.logged()
        assert (call["outcome"], call["attempts"], len(vendor.requests)) == ("ok", 1, 1)
        if how != "moved":
            await until(lambda: caller.closed)


@pytest.mark.parametrize("how", GONE)
async def test_a_call_is_made_once_when_its_upstream_is_gone_from_the_policy(tmp_path, how):
    gate = asyncio.Event()
    vendor = Vendor(held(gate))
    async with egress_gateway(tmp_path, vendor, more=MINE % "") as out:
        caller = mine(out).client
        calling = asyncio.ensure_future(out.chat(upstream="mine"))
        await until(lambda: vendor.open)
        reload(out, after(vendor, how))
        await asyncio.sleep(0)
        gate.set()
        status, headers, text = await calling
        assert (status, json.loads(text), headers["x-outrigger-attempts"]) == (200, completion(), "1")
        assert len(vendor.requests) == 1
        if how != "moved":
            await until(lambda: caller.closed)
            assert (await out.chat(upstream="mine"))[0] == 404


async def test_an_upstream_without_calls_retires_at_once(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says()), more=MINE % "") as out:
        await out.chat(upstream="mine")
        caller = mine(out).client
        assert not caller.closed
        reload(out, NONE)
        await until(lambda: caller.closed)


async def test_a_retry_goes_where_its_call_began_with_the_key_it_began_with(tmp_path):
    async def moves(_):
        reload(out, policy_of(two, "key-b"))
        return web.json_response({"error": {"message": "no"}}, status=500)

    one, two = Vendor(moves, says()), Vendor(says())
    async with egress_gateway(tmp_path, one, two, more=MINE % ", api_key: key-a") as out:
        shown = {"Authorization": f"Bearer {out.egress._keys.key_for('openai')}"}
        assert (await out.chat(headers=shown, upstream="mine"))[0] == 200
        assert [headers["Authorization"] for _, _, headers, _ in one.requests] == ["Bearer key-a"] * 2
        assert not two.requests
        assert (await out.chat(headers=shown, upstream="mine"))[0] == 200
        assert [headers["Authorization"] for _, _, headers, _ in two.requests] == ["Bearer key-b"]
        assert len(one.requests) == 2


async def test_a_call_that_waits_for_its_place_goes_where_it_began(tmp_path):
    gate = asyncio.Event()
    one, two = Vendor(held(gate), says()), Vendor(says())
    more = MINE % ", api_key: key-a, pace: {concurrency: 1, wait: 20s}"
    async with egress_gateway(tmp_path, one, two, more=more) as out:
        shown = {"Authorization": f"Bearer {out.egress._keys.key_for('openai')}"}
        first = asyncio.ensure_future(out.chat(headers=shown, upstream="mine"))
        await until(lambda: one.open)
        second = asyncio.ensure_future(out.chat(headers=shown, upstream="mine"))
        await until(lambda: mine(out).throttle._is_serving)
        reload(out, policy_of(two, "key-b", more=", pace: {concurrency: 1, wait: 20s}"))
        gate.set()
        assert [(await first)[0], (await second)[0]] == [200, 200]
        assert [headers["Authorization"] for _, _, headers, _ in one.requests] == ["Bearer key-a"] * 2
        assert not two.requests


@pytest.mark.parametrize("how", ["removed", "moved"])
async def test_a_fallback_is_the_one_that_the_call_began_with(tmp_path, how):
    async def moves(_):
        text = NONE
        if how == "moved":
            other = f'other: {{kind: openai, base_url: "http://127.0.0.1:{three.port}/v1", api_key: key-b}}'
            text = policy_of(one)[:-1] + f", {other}}}"
        reload(out, text)
        return web.json_response({"error": {"message": "no"}}, status=500)

    one, two, three = Vendor(moves), Vendor(says()), Vendor(says())
    more = MINE % ", fallback: [{upstream: other}]"
    more += "  other: {kind: openai, base_url: 'http://127.0.0.1:<1>/v1', api_key: key-a}\n"
    async with egress_gateway(tmp_path, one, two, three, more=more) as out:
        caller = out.egress.upstreams["other"].client
        status, headers, _ = await out.chat(upstream="mine")
        assert (status, headers["x-outrigger-fallback"]) == (200, "upstream=other")
        assert [headers["Authorization"] for _, _, headers, _ in two.requests] == ["Bearer key-a"]
        assert not three.requests
        if how != "moved":
            await until(lambda: caller.closed)


async def test_a_shared_call_ends_for_who_is_left_when_its_upstream_is_gone(tmp_path):
    gate, ask = asyncio.Event(), {**CHAT, "temperature": 0}
    vendor = Vendor(held(gate))
    async with egress_gateway(tmp_path, vendor, more=MINE % ", coalesce: true") as out:
        caller = mine(out).client
        first = asyncio.ensure_future(out.chat(ask, upstream="mine"))
        await until(lambda: vendor.open)
        second = asyncio.ensure_future(out.chat(ask, upstream="mine"))
        await until(lambda: sum(len(flight._readers) for flight in mine(out).shared_calls._calls.values()) == 2)
        reload(out, NONE)
        first.cancel()
        await until(lambda: out.egress.accounting.in_flight == 1)
        gate.set()
        assert (await second)[0] == 200
        assert len(vendor.requests) == 1
        await until(lambda: caller.closed)


async def test_an_upstream_that_comes_back_before_its_last_call_is_over_keeps_its_money(tmp_path):
    gate = asyncio.Event()
    vendor = Vendor(held(gate), says())
    async with egress_gateway(tmp_path, vendor, more=MINE % "") as out:
        limits = mine(out).billing.limits
        calling = asyncio.ensure_future(out.chat(upstream="mine"))
        await until(lambda: vendor.open)
        reload(out, NONE)
        reload(out, policy_of(vendor))
        assert mine(out).billing.limits is limits
        assert limits.reserved > 0
        gate.set()
        assert (await calling)[0] == 200
        await until(lambda: not limits.reserved)
        assert limits.spent("d") > 0
        assert (await out.chat(upstream="mine"))[0] == 200


async def test_a_stop_closes_what_waits_for_its_last_call(tmp_path):
    gate = asyncio.Event()
    vendor = Vendor(held(gate))
    async with egress_gateway(tmp_path, vendor, more=MINE % "") as out:
        caller, limits = mine(out).client, mine(out).billing.limits
        calling = asyncio.ensure_future(out.chat(upstream="mine"))
        await until(lambda: vendor.open)
        reload(out, NONE)
        await out.egress.stop()
        assert (caller.closed, limits.reserved) == (True, 0)
        with pytest.raises(aiohttp.ClientError):
            await calling


async def test_a_call_has_the_price_that_it_began_with(tmp_path):
    gate = asyncio.Event()
    vendor = Vendor(held(gate))
    price = ", prices: {gpt-4o-mini-2024-07-18: {input: 1, output: 1}}"
    async with egress_gateway(tmp_path, vendor, more=MINE % price) as out:
        calling = asyncio.ensure_future(out.chat(upstream="mine"))
        await until(lambda: vendor.open)
        reload(out, policy_of(vendor, more=", prices: {gpt-4o-mini-2024-07-18: {input: 1000, output: 1000}}"))
        gate.set()
        assert (await calling)[1]["x-outrigger-cost"] == "0.000012"
        assert (await out.chat(upstream="mine"))[1]["x-outrigger-cost"] == "0.012000"


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_a_reload_falls_into_nothing_is_left_and_each_call_meets_one_vendor(tmp_path, seed):
    """Calls of every shape, some abandoned, while upstreams come, go and move between two vendors with keys of their
    own: a key never arrives at the other's."""
    chance = random.Random(seed)

    def vendor(key):
        async def answer(request):
            arrived.add((key, request.headers["Authorization"]))
            await asyncio.sleep(chance.random() * 0.03)
            if chance.random() < 0.3:
                return web.json_response({"error": {"message": "busy"}}, status=503)
            ask = json.loads(made[key].requests[-1][3])
            return await (streams(chunks("a", "b", usage=True), pause=0.002) if ask.get("stream") else says())(request)

        made[key] = Vendor(answer)
        return made[key]

    made, arrived = {}, set()
    one, two = vendor("key-a"), vendor("key-b")
    more = ", coalesce: true, breaker: off, pace: {concurrency: 4}"
    async with egress_gateway(tmp_path, one, two) as out:
        token = {"Authorization": f"Bearer {out.egress._keys.key_for('openai')}"}
        seen = set()

        def turn():
            spare = policy_of(two, "key-b", "spare").removeprefix("upstreams: {").removesuffix("}")
            where = chance.choice([(one, "key-a"), (two, "key-b")])
            falling = policy_of(*where, more=f"{more}, fallback: [{{upstream: spare}}]")
            reload(out, chance.choice([NONE, policy_of(*where, more=more), f"{falling[:-1]}, {spare}}}"]))
            seen.update(out.egress.upstreams.values())

        async def call():
            ask = {**CHAT, "temperature": 0, "stream": chance.random() < 0.5, "n": chance.choice([1, 1, 2])}
            calling = asyncio.ensure_future(out.chat(ask, token, "mine"))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.05)
                calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

        for _ in range(40):
            turn()
            calls = [asyncio.ensure_future(call()) for _ in range(chance.randrange(1, 8))]
            await asyncio.sleep(chance.random() * 0.02)
            turn()
            if chance.random() < 0.3:
                await asyncio.gather(*calls)
        reload(out, NONE)
        await until(lambda: not out.egress.accounting.in_flight and not out.egress.upstreams._older)
        gone = [upstream for upstream in seen if upstream.name != "openai"]
        await until(lambda: all(upstream.client.closed for upstream in gone))
        assert {upstream.billing.limits.reserved for upstream in seen} == {0}
        assert {upstream.in_flight for upstream in seen} == {0}
        assert not any(upstream.throttle._in_flight or upstream.shared_calls._calls for upstream in seen)
        assert arrived == {("key-a", "Bearer key-a"), ("key-b", "Bearer key-b")}
        assert {call["status"] for call in out.calls()} <= {None, 200, 404, 503}
        assert '"event":"fault"' not in out.log.read_text().replace(" ", "")
