"""What the official SDKs make of it: the exceptions that an app's code already catches."""

import asyncio
import json

import anthropic
import httpx
import openai
import pydantic
import pytest
from egress_gateway import Vendor, chunks, completion, egress_gateway, errs, hangs, resets, says, streams

SAY = [{"role": "user", "content": "hello"}]
ONCE = "retry: {attempts: 2, backoff: {first: 1ms, max: 1ms}}"


def client(out, *, retries: int = 2, timeout: float = 5.0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="sk-x", base_url=f"{out.url}/openai/v1", max_retries=retries, timeout=timeout)


async def ask(sdk: openai.AsyncOpenAI, stream: bool = False) -> str:
    async with sdk:
        if not stream:
            answer = await sdk.chat.completions.create(model="gpt-4o-mini", messages=SAY)
            return answer.choices[0].message.content or ""
        parts = await sdk.chat.completions.create(model="gpt-4o-mini", messages=SAY, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in parts])


async def test_the_sdk_gets_its_answer(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says(), streams(chunks("a", "b", usage=True)))) as out:
        assert await ask(client(out)) == "well"
        assert await ask(client(out), stream=True) == "ab"


# A fault, how the vendor shows it, and what an app's `except` sees through the gateway.
FAULTS = [
    ("answers 500 throughout", errs(500), openai.InternalServerError),
    ("answers 429 and says insufficient_quota", errs(429, "insufficient_quota"), openai.RateLimitError),
    ("answers 401", errs(401), openai.AuthenticationError),
    ("answers 400", errs(400), openai.BadRequestError),
    ("resets the connection throughout", resets(), openai.InternalServerError),
    ("answers with a page", says(b"<html>", content_type="text/html"), openai.InternalServerError),
]


@pytest.mark.parametrize(("fault", "answer", "raised"), FAULTS, ids=[fault for fault, _, _ in FAULTS])
async def test_the_sdk_raises_what_the_app_catches_and_does_not_try_again(tmp_path, fault, answer, raised):
    vendor = Vendor(answer)
    async with egress_gateway(tmp_path, vendor, openai=ONCE) as out:
        with pytest.raises(raised):
            await ask(client(out))
        assert len(await out.logged()) == 1  # the SDK came once: its own retries ended with our word
    assert len(vendor.requests) <= 2


async def test_a_vendor_that_hangs_is_a_typed_error_within_the_sdks_patience(tmp_path):
    async with egress_gateway(tmp_path, Vendor(hangs())) as out:
        began = asyncio.get_running_loop().time()
        with pytest.raises(openai.InternalServerError) as raised:
            await ask(client(out, timeout=1.0))
        assert raised.value.status_code == 504
        assert raised.value.code == "upstream_timeout"
        assert (
            asyncio.get_running_loop().time() - began < 5.0
        )  # the SDK itself gives up after 1 s, and would have said so


async def test_nobody_there_is_a_typed_error(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, openai=ONCE) as out:
        await vendor.stop()
        with pytest.raises(openai.InternalServerError) as raised:
            await ask(client(out))
        assert raised.value.code == "upstream_unreachable"


async def test_an_open_breaker_is_a_typed_error(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says())) as out:
        out.openai.breakers.force("open")
        with pytest.raises(openai.InternalServerError) as raised:
            await ask(client(out))
        assert (raised.value.status_code, raised.value.code) == (503, "upstream_unavailable")


@pytest.mark.parametrize("then", ["cut", "end", "stall"])
async def test_a_stream_cut_short_raises_in_the_sdk(tmp_path, then):
    policy = "timeout: {idle: 200ms}"
    async with egress_gateway(tmp_path, Vendor(streams(chunks("a")[:2], then=then)), openai=policy) as out:
        with pytest.raises(openai.APIError) as raised:
            await ask(client(out), stream=True)
        assert raised.value.code in ("upstream_unreachable", "upstream_timeout")


RESPONSE_EVENTS = [
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"r","object":"response","created_at":1,"model":"m","status":"in_progress","output":[],"parallel_tool_calls":true,"tool_choice":"auto","tools":[]}}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":1,"item_id":"i","output_index":0,"content_index":0,"delta":"a","logprobs":[]}\n\n',
]


async def test_a_stream_of_responses_cut_short_raises_in_the_sdk(tmp_path):
    async with egress_gateway(tmp_path, Vendor(streams(RESPONSE_EVENTS, then="cut"))) as out:
        seen = []
        async with client(out) as sdk:
            with pytest.raises(openai.APIError):
                async for event in await sdk.responses.create(model="m", input="x", stream=True):
                    seen.append(event)
        assert [event.type for event in seen] == [
            "response.created",
            "response.output_text.delta",
            "response.failed",
        ]
        assert (seen[-1].sequence_number, seen[-1].response.status) == (2, "failed")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_of_ours_is_an_answer_like_any(tmp_path, stream):
    policy = 'retry: {attempts: 1}\nfallback: [{text: "The assistant rests."}]'
    async with egress_gateway(tmp_path, Vendor(errs(500)), openai=policy) as out:
        assert await ask(client(out), stream=stream) == "The assistant rests."
        async with client(out) as sdk:
            if stream:
                texts = [
                    event.delta
                    async for event in await sdk.responses.create(model="m", input="x", stream=True)
                    if event.type == "response.output_text.delta"
                ]
                assert texts == ["The assistant rests."]
            else:
                assert (await sdk.responses.create(model="m", input="x")).output_text == "The assistant rests."
                wanted = {"type": "json_object"}
                answer = await sdk.chat.completions.create(model="m", messages=SAY, response_format=wanted)
                assert (answer.choices[0].message.content, answer.choices[0].message.refusal) == (
                    None,
                    "The assistant rests.",
                )


async def test_a_text_of_ours_is_a_refusal_where_a_schema_was_asked_for(tmp_path):
    class Boat(pydantic.BaseModel):
        name: str

    policy = 'retry: {attempts: 1}\nfallback: [{text: "The assistant rests."}]'
    async with egress_gateway(tmp_path, Vendor(errs(500)), openai=policy) as out:
        async with client(out) as sdk:
            said = (await sdk.chat.completions.parse(model="m", messages=SAY, response_format=Boat)).choices[0].message
            assert (said.parsed, said.refusal) == (None, "The assistant rests.")
            answer = await sdk.responses.parse(model="m", input="x", text_format=Boat)
            assert answer.output_parsed is None
            assert answer.output[0].content[0].refusal == "The assistant rests."
            async with sdk.chat.completions.stream(model="m", messages=SAY, response_format=Boat) as stream:
                assert (await stream.get_final_completion()).choices[0].message.refusal == "The assistant rests."
            async with sdk.responses.stream(model="m", input="x", text_format=Boat) as stream:
                assert (await stream.get_final_response()).output[0].content[0].refusal == "The assistant rests."
            with pytest.raises(openai.InternalServerError):  # there is no such thing as a canned embedding
                await sdk.embeddings.create(model="m", input="x")


LEGACY = b'data: {"id":"c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"%s","finish_reason":%s,"logprobs":null}]}\n\n'


async def test_a_stream_of_legacy_completions_cut_short_raises_in_the_sdk(tmp_path):
    begun, whole = (
        [LEGACY % (b"a", b"null")],
        [LEGACY % (b"a", b"null"), LEGACY % (b"b", b'"stop"'), b"data: [DONE]\n\n"],
    )
    async with egress_gateway(tmp_path, Vendor(streams(whole), streams(begun, then="cut"), streams(begun))) as out:
        async with client(out) as sdk:
            stream = await sdk.completions.create(model="m", prompt="x", stream=True)
            assert [part.choices[0].text async for part in stream] == ["a", "b"]
            for _ in range(2):
                with pytest.raises(openai.APIError) as raised:
                    async for _ in await sdk.completions.create(model="m", prompt="x", stream=True):
                        pass
                assert raised.value.code == "upstream_unreachable"


async def test_every_refusal_says_how_the_call_went_and_whether_to_come_again(tmp_path):
    vendor = Vendor(says())
    policy = "api_key: sk-real\npace: {concurrency: 1, wait: 50ms}"
    more = '  gone: {kind: openai, base_url: "http://127.0.0.1:9/v1", retry: {attempts: 1}}\n'
    more += '  late: {kind: openai, base_url: "http://127.0.0.1:<0>/v1", timeout: {connect: 100ms, total: 100ms}}\n'
    more += '  open: {kind: openai, base_url: "http://127.0.0.1:<0>/v1"}\n'
    async with egress_gateway(tmp_path, vendor, openai=policy, more=more) as out:
        out.egress.upstreams["open"].breakers.force("open")
        made = {"Authorization": f"Bearer {out.egress._keys.key_for('openai')}"}
        place = out.openai.throttle.try_acquire("ada", 0, None)
        seen = {
            "rate_limit_exceeded": await out.chat(headers=made),
            "invalid_api_key": await out.chat(),
            "unknown_upstream": await out.chat(upstream="none"),
            "upstream_unavailable": await out.chat(upstream="open"),
            "upstream_unreachable": await out.chat(upstream="gone"),
        }
        place.release(None)
        vendor.answers = [hangs()]
        seen["upstream_timeout"] = await out.chat(upstream="late")
        for code, (status, headers, text) in seen.items():
            error = json.loads(text)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["code"], error["param"]) == (code, None)
            assert headers["x-outrigger-attempts"] == (
                "1" if code in ("upstream_unreachable", "upstream_timeout") else "0"
            )
            assert headers["x-outrigger-cache"] == "off"
            assert headers.get("x-should-retry") == (None if code == "rate_limit_exceeded" else "false")
            assert ("Retry-After" in headers) == (status in (429, 503))


# ── Anthropic ────────────────────────────────────────────────────────────────────────────────

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "well"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2},
}
START = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant","model":"claude","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n'
BLOCK = b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
OVERLOADED = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
CLAUDE = '  anthropic: {base_url: "http://127.0.0.1:<0>", retry: {attempts: 2, backoff: {first: 1ms, max: 1ms}}}\n'


def claude(out) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key="sk-x", base_url=f"{out.url}/anthropic", timeout=5)


async def test_anthropics_sdk_gets_answers_and_retries(tmp_path):
    overloaded = says({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 529)
    async with egress_gateway(tmp_path, Vendor(overloaded, says(MESSAGE)), more=CLAUDE) as out:
        async with claude(out) as sdk:
            answer = await sdk.messages.create(model="claude", max_tokens=9, messages=SAY)
        assert answer.content[0].text == "well"
        [call] = await out.logged()
        assert (call["attempts"], call["input_tokens"], call["output_tokens"]) == (2, 7, 2)


async def test_an_overload_inside_a_stream_is_tried_again_before_it_began_and_raised_after(tmp_path):
    whole = [START, BLOCK, DELTA, b'event: message_stop\ndata: {"type":"message_stop"}\n\n']
    vendor = Vendor(streams([START, OVERLOADED]), streams(whole), streams([START, BLOCK, DELTA], then="cut"))
    async with egress_gateway(tmp_path, vendor, more=CLAUDE) as out, claude(out) as sdk:
        async with sdk.messages.stream(model="claude", max_tokens=9, messages=SAY) as stream:
            assert [text async for text in stream.text_stream] == ["a"]
        with pytest.raises(anthropic.APIStatusError):
            async with sdk.messages.stream(model="claude", max_tokens=9, messages=SAY) as stream:
                async for _ in stream.text_stream:
                    pass


async def test_anthropics_sdk_raises_typed_errors_of_ours(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says(MESSAGE)), more=CLAUDE) as out:
        out.egress.upstreams["anthropic"].breakers.force("open")
        async with claude(out) as sdk:
            with pytest.raises(anthropic.APIStatusError) as raised:
                await sdk.messages.create(model="claude", max_tokens=9, messages=SAY)
        assert raised.value.status_code == 503
        assert raised.value.body["error"]["type"] == "overloaded_error"


async def test_any_http_client_may_call_any_upstream(tmp_path):
    more = '  weather: {base_url: "http://127.0.0.1:<0>/api"}\n'
    vendor = Vendor(says({"sun": True}, 200))
    async with egress_gateway(tmp_path, vendor, more=more) as out:
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"{out.url}/weather/today?city=Ulm")
        assert answer.json() == {"sun": True}
    assert vendor.requests[0][1] == "/api/today?city=Ulm"


async def test_completion_is_what_the_vendor_says(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says(completion("x")))) as out:
        assert await ask(client(out)) == "x"
