"""How a call ended is told the same by all who tell it: money, breaker, metrics, log, ledger and the answer."""

import asyncio
import json
import re
import time

import pytest
from aiohttp import web
from egress_gateway import CHAT, QUICK, ReceivedCall, Vendor, chunks, completion, egress_gateway, errs, says, streams
from gateway_process import eventually

from proxy.ledger.ledger import Ledger
from proxy.ledger.sqlite_queries import read_report
from proxy.policy import schema

# 7 tokens in and 5 out cost 17 millionths of a dollar at these.
PRICES = f"{QUICK}\nprices: {{gpt-4o-mini: {{input: 1, output: 2}}, other: {{input: 10, output: 20}}}}"
STREAM = {**CHAT, "stream": True}
EXACT = {**CHAT, "temperature": 0}


def event(**error):
    return f"data: {json.dumps({'error': error})}\n\n".encode()


SERVER, CLIENT = event(message="boom", type="server_error"), event(message="no", type="invalid_request_error")
LIMIT, QUOTA = event(message="slow", type="rate_limit_error"), event(message="none", type="insufficient_quota")


def spent(out, upstream="openai"):
    return out.egress.upstreams[upstream].billing.limits.spent("d")


# ── a 200 that is no answer ──────────────────────────────────────────────────────────────────

NONE = {
    "a page": says(b"<html>busy</html>", content_type="text/html"),
    "half of its JSON": says(b'{"choices": [', content_type="application/json"),
    "JSON without what was asked for": says({"id": "x"}),
}


@pytest.mark.parametrize("answer", NONE.values(), ids=NONE)
async def test_an_answer_that_is_none_is_paid_at_its_estimate_each_time(tmp_path, answer):
    async with egress_gateway(tmp_path, Vendor(answer, answer, says()), openai=PRICES) as out:
        _, headers, _ = await out.chat({**CHAT, "max_tokens": 100})
        [call] = await out.logged()
        assert (headers["x-outrigger-attempts"], call["basis"]) == ("3", "estimated")
        assert 2 * 200_000 < spent(out) < 2 * 400_000 + 17_000  # a hundred tokens, and the question, twice
        assert float(headers["x-outrigger-cost"]) == call["cost_usd"] == spent(out) / 1e9
        assert out.openai.billing.limits.reserved == 0


async def test_an_error_with_status_200_is_a_definite_one_and_costs_nothing(tmp_path):
    wrong = says({"error": {"message": "no", "code": 503}})
    async with egress_gateway(tmp_path, Vendor(wrong, says()), openai=PRICES) as out:
        await out.chat()
        assert spent(out) == 17_000


# ── a stream with an error of the vendor's own ───────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "failures"), [(SERVER, 1), (CLIENT, 0), (LIMIT, 0)], ids=["a server's", "a client's", "a limit"]
)
async def test_a_stream_that_ends_in_an_error_event_is_an_error(tmp_path, error, failures):
    said = [*chunks("a")[:2], error]
    async with egress_gateway(tmp_path, Vendor(streams(said)), openai=PRICES) as out:
        status, _, text = await out.chat(STREAM)
        assert (status, text.encode()) == (200, b"".join(said))
        [call] = await out.logged()
        assert (call["outcome"], call["level"], call["attempts"]) == ("error", "warning", 1)
        assert "error event" in call["reason"]
        assert out.openai.breakers.counts() == (failures, failures)
        assert 'outrigger_upstream_calls_total{model="gpt-4o-mini",outcome="error",upstream="openai"} 1.0' in (
            await out.text()
        )
        assert spent(out) > 0  # what came before it is paid


async def test_an_app_that_leaves_at_the_error_event_leaves_an_error(tmp_path):
    vendor = Vendor(streams([*chunks("a")[:2], SERVER], then="stall"))
    async with egress_gateway(tmp_path, vendor) as out:
        async with out.session.post(f"{out.url}/openai/v1/chat/completions", json=STREAM) as answer:
            said = b""
            while b"boom" not in said:
                said += await answer.content.readany()
            answer.close()
        [call] = await out.logged()
        assert (call["outcome"], out.openai.breakers.counts()) == ("error", (1, 1))


async def test_a_stream_that_is_an_error_from_the_start_costs_nothing(tmp_path):
    async with egress_gateway(tmp_path, Vendor(streams([CLIENT])), openai=PRICES) as out:
        status, _, text = await out.chat(STREAM)
        assert (status, text.encode()) == (200, CLIENT)
        [call] = await out.logged()
        assert (call["outcome"], call["attempts"], call["cost_usd"]) == ("error", 1, 0.0)
        assert out.openai.breakers.counts() == (0, 0)


async def test_a_spent_quota_in_a_stream_is_not_tried_again_but_falls_back(tmp_path):
    vendor = Vendor(streams([QUOTA]))
    policy = f"{QUICK}\nfallback: [{{text: sorry}}]"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        _, headers, text = await out.chat(STREAM)
        assert (headers["x-outrigger-fallback"], "sorry" in text, len(vendor.requests)) == ("text", True, 1)
        assert (await out.logged())[0]["outcome"] == "fallback"


async def test_a_fallback_whose_stream_breaks_is_an_error(tmp_path):
    vendor = Vendor(errs(500), streams(chunks("a", "b")[:2], then="cut"))
    policy = "retry: {attempts: 1}\nfallback: [{model: other}]"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        _, headers, text = await out.chat(STREAM)
        assert (headers["x-outrigger-fallback"], '"error"' in text) == ("model=other", True)
        assert (await out.logged())[0]["outcome"] == "error"


# ── who is paid ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def ledger(tmp_path):
    class Silent:
        def __getattr__(self, name):
            return Silent()

        def __call__(self, *args, **keys):
            return Silent()

    policy = schema.Ledger(url=f"sqlite:///{tmp_path}/ledger.db")
    ledger = Ledger(policy, emit=lambda *args, **keys: None, metrics=Silent(), clock=asyncio.get_running_loop().time)
    await ledger.start()
    yield ledger
    await ledger.stop()


async def rows(ledger, tmp_path, by):
    await ledger.stop()
    return {one.name: one for one in read_report(tmp_path / "ledger.db", by, 0.0)}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["another model", "another upstream"])
async def test_a_fallback_without_usage_is_booked_under_the_model_that_was_asked(tmp_path, ledger, elsewhere):
    bare = says({**completion(), "usage": None, "model": None})
    vendor, second = Vendor(errs(500), bare), Vendor(bare)
    step = "upstream: second, model: other" if elsewhere else "model: other"
    policy = f"{PRICES.replace('retry: {', 'retry: {attempts: 1, ')}\nfallback: [{{{step}}}]"
    more = "  second: {kind: openai, base_url: 'http://127.0.0.1:<1>/v1', api_key: k, prices: {other: {input: 10, output: 20}}}\n"
    async with egress_gateway(tmp_path, vendor, second, openai=policy, more=more) as out:
        out.egress.pipeline._ledger._ledger = ledger
        await out.chat()
        [call] = await out.logged()
        assert (call["model"], call["outcome"], call["basis"]) == ("other", "fallback", "estimated")
        used = "second" if elsewhere else "openai"
        assert spent(out, used) > 0
        assert f'model="other",upstream="{used}"}}' in await out.text()
        paid = spent(out, used)
    found = await rows(ledger, tmp_path, "model")
    assert {name: one.cost for name, one in found.items() if one.cost} == {"other": paid}


@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
async def test_a_shared_call_whose_first_caller_left_costs_what_it_costs_once(tmp_path, ledger, streamed):
    gate = asyncio.Event()

    async def slow(request):
        await gate.wait()
        return await (streams(chunks("a", usage=True)) if streamed else says())(request)

    vendor = Vendor(slow)
    ask = {**EXACT, "stream": True} if streamed else EXACT
    async with egress_gateway(tmp_path, vendor, openai=f"{PRICES}\ncoalesce: true") as out:
        out.egress.pipeline._ledger._ledger = ledger
        request = ReceivedCall(left=None)
        out.requests.begin("token", request)
        token = {"X-Outrigger-Request": "token"}
        first = asyncio.ensure_future(out.chat(ask, token))
        await eventually(lambda: vendor.open)
        others = [asyncio.ensure_future(out.chat(ask, token)) for _ in range(2)]
        await eventually(lambda: sum(len(f._readers) for f in out.openai.shared_calls._calls.values()) == 3)
        first.cancel()
        await eventually(lambda: out.egress.accounting.in_flight == 2)
        gate.set()
        answers = await asyncio.gather(*others)
        calls = await out.logged(3)
        assert sorted(call["cost_usd"] for call in calls) == [0.0, 0.0, 0.000017]
        [paid] = [call for call in calls if call["cost_usd"]]
        assert (paid["cache"], paid["basis"], paid["output_tokens"]) == ("miss", "reported", 5)
        assert (paid["user"], request.cost, request.under_way) == ("ada", 17_000, 0)
        reported = [answer[1].get("x-outrigger-cost") for answer in answers]
        assert sorted(reported) == ["0.000000", "0.000017"] if not streamed else reported == [None, None]
        assert spent(out) == 17_000
        assert len(re.findall(r'outrigger_tokens_total{kind="output",.*} 5.0', await out.text())) == 1
    [row] = (await rows(ledger, tmp_path, "user")).values()
    assert (row.name, row.cost, row.calls, row.output_tokens) == ("ada", 17_000, 3, 5)


async def test_a_shared_call_that_everybody_left_is_paid_and_told(tmp_path):
    async def never(_):
        await asyncio.sleep(60)
        return web.Response()

    vendor = Vendor(never)
    async with egress_gateway(tmp_path, vendor, openai=f"{PRICES}\ncoalesce: true") as out:
        first = asyncio.ensure_future(out.chat({**EXACT, "max_tokens": 100}))
        await eventually(lambda: vendor.open)
        first.cancel()
        [call] = await out.logged()
        assert call["outcome"] == "gone"
        assert call["cost_usd"] == spent(out) / 1e9 > 0.0002


async def test_one_of_those_who_share_a_call_is_told_what_it_cost(tmp_path):
    async def slow(request):
        await asyncio.sleep(0.1)
        return await says()(request)

    async with egress_gateway(tmp_path, Vendor(slow), openai=f"{PRICES}\ncoalesce: true") as out:
        answers = await asyncio.gather(*(out.chat(EXACT) for _ in range(3)))
        reported = {answer[1]["x-outrigger-cache"]: answer[1]["x-outrigger-cost"] for answer in answers}
        assert reported == {"miss": "0.000017", "coalesced": "0.000000"}


# ── a redirect ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", [b"<a href='/there'>moved</a>", b'{"error": {"code": 503}}', b""])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
async def test_a_redirect_passes_as_it_came(tmp_path, status, body):
    if status == 304:
        body = b""
    vendor = Vendor(says(body, status, Location="https://there.example/v1", content_type="text/html"), errs(500))
    async with egress_gateway(tmp_path, vendor, openai=PRICES) as out:
        url = f"{out.url}/openai/v1/chat/completions"
        async with out.session.post(url, json={**CHAT, "max_tokens": 100}, allow_redirects=False) as answer:
            assert (answer.status, await answer.read()) == (status, body)
            assert answer.headers["Location"] == "https://there.example/v1"
            assert answer.headers["x-outrigger-attempts"] == "1"
        [call] = await out.logged()
        assert (call["outcome"], call["status"], call["attempts"], call["cost_usd"]) == ("ok", status, 1, 0.0)
        assert (spent(out), out.openai.billing.limits.reserved) == (0, 0)
        assert out.openai.breakers.counts() == (0, 0)
        assert len(vendor.requests) == 1


# ── stream_options ───────────────────────────────────────────────────────────────────────────


async def test_a_refusal_that_quotes_its_input_says_nothing_of_the_usage_option(tmp_path):
    quotes = {"detail": [{"msg": "messages: too many", "input": {**STREAM, "stream_options": {}}}]}  # as FastAPI does
    vendor = Vendor(says(quotes, 422), says(quotes, 422), streams(chunks("a", usage=True)))
    async with egress_gateway(tmp_path, vendor) as out:
        status, _, text = await out.chat(STREAM)
        assert (status, "too many" in text) == (422, True)
        await out.chat(STREAM)
        assert ["stream_options" in body for body in vendor.bodies] == [True, False, True]
        assert (await out.logged(2))[1]["output_tokens"] == 5


async def test_a_host_without_the_usage_option_is_learnt_by_model_and_for_a_while(tmp_path):
    async def answer(request):
        body = json.loads(vendor.requests[-1][3])
        if "stream_options" in body and body["model"] == "plain":
            return web.json_response({"error": {"message": "unknown field: stream_options"}}, status=400)
        return await streams(chunks("a", usage="stream_options" in body))(request)

    vendor = Vendor(answer)
    async with egress_gateway(tmp_path, vendor) as out:
        now = asyncio.get_running_loop().time()
        out.openai.usage_option._clock = lambda: now
        for model in ("plain", "plain", "gpt-4o-mini"):
            assert (await out.chat({**STREAM, "model": model}))[0] == 200
        asked = [(body["model"], "stream_options" in body) for body in vendor.bodies]
        assert asked == [("plain", True), ("plain", False), ("plain", False), ("gpt-4o-mini", True)]
        now += 601
        await out.chat({**STREAM, "model": "plain"})
        assert ["stream_options" in body for body in vendor.bodies[4:]] == [True, False]


# ── a whole answer whose connection ends badly ───────────────────────────────────────────────


def responses_events():
    whole = {"id": "r1", "object": "response", "created_at": 1, "model": "gpt-4o-mini", "status": "completed"}
    part = {"type": "output_text", "text": "well", "annotations": []}
    whole["output"] = [{"type": "message", "id": "m", "role": "assistant", "content": [part]}]
    usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    said = [
        {"type": "response.created", "sequence_number": 0, "response": {**whole, "status": "in_progress"}},
        {"type": "response.output_text.delta", "sequence_number": 1, "item_id": "m", "delta": "well"},
        {"type": "response.completed", "sequence_number": 2, "response": {**whole, "usage": usage}},
    ]
    return [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in said]


def claude_events():
    head = {"id": "m1", "type": "message", "role": "assistant", "model": "gpt-4o-mini", "content": []}
    said = [
        {"type": "message_start", "message": {**head, "usage": {"input_tokens": 7, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "well"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in said]


WHOLE = {
    "chat": ("openai", "chat/completions", lambda: chunks("well", usage=True)),
    "responses": ("openai", "responses", responses_events),
    "messages": ("anthropic", "messages", claude_events),
}


@pytest.mark.parametrize("then", ["stall", "cut"])
@pytest.mark.parametrize("kind", WHOLE)
async def test_what_follows_the_last_event_of_a_stream_spoils_nothing(tmp_path, kind, then):
    """A vendor that leaves its connection open behind the end, or breaks it, has answered all the same."""
    upstream, path, said = WHOLE[kind]
    events = said()
    more = f"""  anthropic:
    base_url: http://127.0.0.1:<0>
    timeout: {{idle: 300ms}}
    {PRICES.splitlines()[1]}
"""
    openai = PRICES + "\ntimeout: {idle: 300ms}"
    async with egress_gateway(tmp_path, Vendor(streams(events, then=then)), openai=openai, more=more) as out:
        body = {**STREAM, "max_tokens": 9, "stream_options": {"include_usage": True}}
        async with out.session.post(f"{out.url}/{upstream}/v1/{path}", json=body) as answer:
            assert await answer.read() == b"".join(events)
        [call] = await out.logged()
        assert (call["outcome"], call["level"], call["basis"]) == ("ok", "info", "reported")
        assert spent(out, upstream) == 17_000
        assert out.egress.upstreams[upstream].breakers.counts()[1] == 0


# ── a gateway that gets no CPU ───────────────────────────────────────────────────────────────


async def test_a_stall_of_our_own_is_not_the_silence_of_the_vendor(tmp_path):
    """A process that its cgroup holds up finds a timer due and the vendor's bytes in the socket: it reads these first."""
    events = chunks("a", "b", usage=True)
    transports = []

    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"".join(events[:2]))
        transports.append(request.transport)
        await asyncio.sleep(60)

    openai = f"{PRICES}\ntimeout: {{idle: 400ms}}"
    async with egress_gateway(tmp_path, Vendor(answer), openai=openai) as out:
        body = {**STREAM, "stream_options": {"include_usage": True}}
        async with out.session.post(f"{out.url}/openai/v1/chat/completions", json=body) as answer:
            said = b""
            while len(said) < len(b"".join(events[:2])):
                said += await answer.content.readany()
            # What the vendor sends next lies in the socket while this process, all of it, stands still.
            rest = b"".join(events[2:])
            transports[0].write(f"{len(rest):x}\r\n".encode() + rest + b"\r\n0\r\n\r\n")
            time.sleep(0.6)
            said += await answer.read()
        assert said == b"".join(events)
        [call] = await out.logged()
        assert (call["outcome"], call["basis"]) == ("ok", "reported")
        assert spent(out) == 17_000
