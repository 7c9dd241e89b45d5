"""What answers report besides the plain tokens of the model that was asked, over real sockets: each has its price."""

import json

import aiohttp
import pytest
from egress_gateway import QUICK, Vendor, egress_gateway, errs, hangs, resets, says, streams

PRICES = """prices:
  m: {input: 1, output: 10, cached_input: 0.1, search: 0.01, tiers: {flex: {input: 0.5, output: 5}, batch: {output: 5}}}
  easel: {input: 5, output: 10, image_output: 40, cached_input: 1}
  author: {input: 2, output: 20}
  brush: {per_image: 0.04}
  film: {per_second: 0.10, sizes: {1792x1024: {per_second: 0.50}}}
"""
POLICY = f"{QUICK}\n{PRICES}"
CLAUDE = """  claude:
    kind: anthropic
    base_url: http://127.0.0.1:<0>
    prices: {m: {input: 1, output: 10, cached_input: 0.1, cached_write: 2}, sage: {input: 100, output: 1000}}
"""
RESPONSE = {"id": "r1", "object": "response", "model": "m", "status": "completed", "output": []}
ORDINARY = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}  # $0.002
EASEL = {
    "input_tokens": 200,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 200},
    "output_tokens": 4000,
    "output_tokens_details": {"image_tokens": 4000, "text_tokens": 0},
    "total_tokens": 4200,
}  # $0.161
SEARCH = {"type": "web_search_call", "action": {"type": "search"}}
TOOLS = {
    **RESPONSE,
    "usage": ORDINARY,
    "tools": [{"type": "web_search"}, {"type": "image_generation", "model": "easel"}],
    "output": [SEARCH, SEARCH, SEARCH, {"type": "image_generation_call", "result": "AAAA"}],
    "tool_usage": {"image_gen": EASEL, "web_search": {"num_requests": 2}},
}
PICTURE = {"type": "image_generation_call", "result": "AAAA", "size": "1024x1024", "quality": "low"}  # 196 tokens
NO_TOOLS = {"image_gen": {**EASEL, "input_tokens": 0, "output_tokens": 0}, "web_search": {"num_requests": 0}}
SVG = {
    "model": "author",
    "input_tokens": 500,
    "output_tokens": 100,
    "reasoning_tokens": 40,
    "total_tokens": 600,
}  # $0.003


def chat(usage, **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, **more}


def used(before, after, total=None, reasoning=None):
    usage = {"prompt_tokens": before, "completion_tokens": after, "total_tokens": total or before + after}
    return usage | ({"completion_tokens_details": {"reasoning_tokens": reasoning}} if reasoning is not None else {})


# Path below /openai/v1, the answer, dollars, and whether they rest on an estimate.
ANSWERS = {
    "pictures that a Responses tool drew, and the searches that are billed": ("responses", TOOLS, 0.183, False),
    "a list of searches of which none is billed": (
        "responses",
        {**RESPONSE, "usage": ORDINARY, "output": [SEARCH], "tool_usage": NO_TOOLS},
        0.002,
        False,
    ),
    "searches in the list alone": ("responses", {**RESPONSE, "usage": ORDINARY, "output": [SEARCH]}, 0.012, False),
    "a picture whose tokens nobody tells, by its size": (
        "responses",
        {**RESPONSE, "usage": ORDINARY, "tools": TOOLS["tools"], "output": [PICTURE], "tool_usage": NO_TOOLS},
        0.00984,
        True,
    ),
    "pictures that are paid by their number": (
        "responses",
        {**TOOLS, "tools": [{"type": "image_generation", "model": "brush"}], "output": [PICTURE, PICTURE]},
        0.102,
        False,
    ),
    "the author of a Responses picture in SVG": (
        "responses",
        {**RESPONSE, "usage": ORDINARY, "output": [{"type": "image_generation_call", "svg_usage": SVG}]},
        0.005,
        True,  # the drawing besides it is not told
    ),
    "the author of an image in SVG": (
        "images/generations",
        {"created": 1, "data": [{"b64_json": "A"}], "usage": ORDINARY, "svg_usage": SVG},
        0.005,
        False,
    ),
    "reasoning besides the completion, as at xAI": ("chat/completions", chat(used(1000, 10, 1100, 90)), 0.002, False),
    "reasoning within the completion": ("chat/completions", chat(used(1000, 100, 1100, 90)), 0.002, False),
    "more reasoning than completion, and no total": (
        "chat/completions",
        chat({"prompt_tokens": 1000, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 90}}),
        0.002,
        False,
    ),
    "a total above the sum, as Gemini's by this dialect": (
        "chat/completions",
        chat(used(1000, 10, 1100)),
        0.002,
        True,  # what the rest was it does not say
    ),
    "a total alone, as of some hosts' embeddings": (
        "embeddings",
        {"object": "list", "model": "m", "data": [], "usage": {"total_tokens": 2000}},
        0.002,
        False,
    ),
    "a conversation made compact": (
        "responses/compact",
        {"id": "c", "object": "response.compaction", "output": [], "usage": ORDINARY},
        0.002,
        False,
    ),
    "decisions": ("decisions", {"answers": [], "model": "m", "usage": ORDINARY}, 0.002, False),
    "the served tier": ("chat/completions", chat(used(1000, 100), service_tier="flex"), 0.001, False),
    "the served tier, of which a part alone has a price": (
        "chat/completions",
        chat(used(1000, 100), service_tier="batch"),
        0.0015,
        False,
    ),
    "the served tier, and tools that know none": ("responses", {**TOOLS, "service_tier": "flex"}, 0.182, False),
    "a video by its seconds": (
        "videos",
        {"id": "v", "object": "video", "model": "film", "seconds": "8", "size": "720x1280", "status": "queued"},
        0.8,
        False,
    ),
    "a video by its size": (
        "videos/v0/remix",
        {"id": "v", "object": "video", "model": "film", "seconds": "4", "size": "1792x1024", "status": "queued"},
        2.0,
        False,
    ),
    "a video that the table of models has": (
        "videos/edits",
        {"id": "v", "object": "video", "model": "sora-2-pro-2025-10-06", "seconds": "4", "size": "720x1280"},
        1.2,
        False,
    ),
}


async def paid(out, count=1):
    call = (await out.logged(count))[-1]
    return round(call["cost_usd"], 9), call["basis"] == "estimated"


@pytest.mark.parametrize("what", ANSWERS)
async def test_an_answer_is_paid_for(tmp_path, what):
    path, answer, dollars, estimated = ANSWERS[what]
    async with egress_gateway(tmp_path, Vendor(says(answer)), openai=POLICY) as out:
        async with out.session.post(f"{out.url}/openai/v1/{path}", json={"model": "m", "input": "x"}) as got:
            assert got.status == 200
            assert await got.json() == answer
        assert await paid(out) == (dollars, estimated)
        assert out.openai.billing.limits.reserved == 0


async def test_a_stream_of_the_responses_api_ends_with_what_its_tools_took(tmp_path):
    events = [("response.created", {**TOOLS, "usage": None, "tool_usage": None}), ("response.completed", TOOLS)]
    lines = [
        f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': at, 'response': said})}\n\n".encode()
        for at, (kind, said) in enumerate(events)
    ]
    async with egress_gateway(tmp_path, Vendor(streams(lines)), openai=POLICY) as out:
        body = {"model": "m", "input": "x", "stream": True}
        async with out.session.post(f"{out.url}/openai/v1/responses", json=body) as got:
            await got.read()
        assert await paid(out) == (0.183, False)


async def test_an_answer_that_is_too_large_to_be_kept_tells_what_its_tools_took_all_the_same(tmp_path):
    large = {**PICTURE, "result": "A" * (5 * 1024 * 1024)}
    async with egress_gateway(tmp_path, Vendor(says({**TOOLS, "output": [SEARCH, large]})), openai=POLICY) as out:
        async with out.session.post(f"{out.url}/openai/v1/responses", json={"model": "m", "input": "x"}) as got:
            assert len(await got.read()) > 5 * 1024 * 1024
        assert await paid(out) == (0.183, False)


async def test_each_image_of_a_stream_is_paid_with_its_author(tmp_path):
    done = {"type": "image_generation.completed", "b64_json": "A", "usage": ORDINARY, "svg_usage": SVG}
    lines = [f"event: {done['type']}\ndata: {json.dumps(done)}\n\n".encode()] * 2
    async with egress_gateway(tmp_path, Vendor(streams(lines)), openai=POLICY) as out:
        body = {"model": "m", "prompt": "x", "n": 2, "stream": True}
        async with out.session.post(f"{out.url}/openai/v1/images/generations", json=body) as got:
            await got.read()
        assert await paid(out) == (0.01, False)


@pytest.mark.parametrize(("reasoning", "estimated"), [(90, False), (None, True)])
async def test_a_stream_of_chat_is_paid_for_reasoning_besides_its_completion(tmp_path, reasoning, estimated):
    head = {"id": "c", "object": "chat.completion.chunk", "model": "m"}
    said = {**head, "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    last = {**head, "choices": [], "usage": used(1000, 10, 1100, reasoning)}
    lines = [f"data: {json.dumps(one)}\n\n".encode() for one in (said, last)] + [b"data: [DONE]\n\n"]
    async with egress_gateway(tmp_path, Vendor(streams(lines)), openai=POLICY) as out:
        await out.chat({"model": "m", "messages": [], "stream": True})
        assert await paid(out) == (0.002, estimated)
        assert 'kind="reasoning",model="m",upstream="openai"} 90.0' in await out.text()


async def test_a_cost_that_xai_reports_in_ticks_is_taken_as_it_is(tmp_path):
    answer = chat({**used(1000, 10, 1100, 90), "cost_in_usd_ticks": 25_000_000_000}, model="grok-4")
    async with egress_gateway(tmp_path, Vendor(says(answer)), openai=QUICK) as out:
        await out.chat({"model": "grok-4", "messages": []})
        assert await paid(out) == (2.5, False)


async def test_what_a_fine_tune_read_from_the_cache_costs_half(tmp_path):
    usage = {"prompt_tokens": 1000, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 1000}}
    model = "ft:gpt-4o-2024-08-06:acme::Ab1"
    async with egress_gateway(tmp_path, Vendor(says(chat(usage, model=model))), openai=QUICK) as out:
        await out.chat({"model": model, "messages": []})
        assert await paid(out) == (0.001875, False)


# ── Anthropic's iterations ───────────────────────────────────────────────────────────────────

ASKED = {"type": "message", "input_tokens": 1000, "output_tokens": 100}
AGAIN = {"type": "message", "input_tokens": 2000, "cache_read_input_tokens": 1000, "output_tokens": 50}
COMPACTION = {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3000}
ADVICE = {"type": "advisor_message", "model": "sage", "input_tokens": 500, "output_tokens": 100}
DECLINED = {"type": "message", "model": "sage", "input_tokens": 100, "output_tokens": 1}
SERVED = {"type": "fallback_message", "model": "m", "input_tokens": 1000, "output_tokens": 100}
TOP = {"input_tokens": 1000, "output_tokens": 150}

# Iterations, the sums above them, dollars.
ITERATIONS = {
    "one, that says what the sums say": ([ASKED], {"input_tokens": 1000, "output_tokens": 100}, 0.002),
    "a loop, whose sums have the input of its first turn alone": ([ASKED, AGAIN], TOP, 0.0046),
    "compaction, which the sums leave out": ([COMPACTION, ASKED], TOP | {"output_tokens": 100}, 0.212),
    "an advisor, at the price of its own model": ([ASKED, ADVICE, AGAIN], TOP, 0.1546),
    "a model that declined, and one that served": ([DECLINED, SERVED], TOP | {"output_tokens": 100}, 0.013),
    "an advisor alone: the sums are the rest": ([ADVICE], {"input_tokens": 1000, "output_tokens": 100}, 0.152),
    "less than the sums": ([ASKED], {"input_tokens": 3000, "output_tokens": 100}, 0.004),
    "nothing that could be read": (["x", None, {}], {"input_tokens": 1000, "output_tokens": 100}, 0.002),
    "no list": ({"a": 1}, {"input_tokens": 1000, "output_tokens": 100}, 0.002),
}


def message(usage):
    return {"id": "m1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("what", ITERATIONS)
async def test_iterations_are_paid_for(tmp_path, what, streamed):
    iterations, sums, dollars = ITERATIONS[what]
    events = [
        {"type": "message_start", "message": message({**sums, "output_tokens": 1})},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {**sums, "iterations": iterations}},
        {"type": "message_stop"},
    ]
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events]
    answer = streams(lines) if streamed else says(message({**sums, "iterations": iterations}))
    async with egress_gateway(tmp_path, Vendor(answer), openai=QUICK, more=CLAUDE) as out:
        body = {"model": "m", "max_tokens": 10, "messages": [], "stream": streamed}
        async with out.session.post(f"{out.url}/claude/v1/messages", json=body) as got:
            assert got.status == 200
            await got.read()
        assert await paid(out) == (dollars, False)


async def test_thinking_is_told_as_reasoning(tmp_path):
    usage = {"input_tokens": 1000, "output_tokens": 100, "output_tokens_details": {"thinking_tokens": 70}}
    async with egress_gateway(tmp_path, Vendor(says(message(usage))), openai=QUICK, more=CLAUDE) as out:
        async with out.session.post(f"{out.url}/claude/v1/messages", json={"model": "m", "messages": []}) as got:
            await got.read()
        assert await paid(out) == (0.002, False)
        assert 'kind="reasoning",model="m",upstream="claude"} 70.0' in await out.text()


# ── videos are orders ────────────────────────────────────────────────────────────────────────

ORDER = {"model": "film", "prompt": "a boat", "seconds": "8", "size": "720x1280"}
VIDEO = {"id": "v", "object": "video", "status": "queued", **ORDER}


async def order(out, body=None):
    form = aiohttp.FormData()
    for key, value in ORDER.items():
        form.add_field(key, value)
    form.add_field("input_reference", b"picture", filename="a.png")
    more = {"data": form} if body is None else {"json": body}
    async with out.session.post(f"{out.url}/openai/v1/videos", **more) as got:
        return got.status, await got.read()


async def test_a_video_that_a_form_orders_is_paid_as_the_answer_says(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says(VIDEO)), openai=POLICY) as out:
        assert (await order(out))[0] == 200
        assert await paid(out) == (0.8, False)


async def test_no_video_is_ordered_twice(tmp_path):
    vendor = Vendor(resets())
    async with egress_gateway(tmp_path, vendor, openai=POLICY) as out:
        assert (await order(out, ORDER))[0] == 502
        assert len(vendor.requests) == 1
        assert await paid(out) == (0.8, True)  # nobody knows what became of it


async def test_two_equal_orders_are_two_videos(tmp_path):
    vendor = Vendor(says(VIDEO))
    shared = "cache: {ttl: 1h, when: always}\ncoalesce: true"
    async with egress_gateway(tmp_path, vendor, openai=f"{POLICY.rstrip()}\n{shared}") as out:
        for _ in range(2):
            await order(out, ORDER)
        assert len(vendor.requests) == 2
        assert await paid(out, 2) == (0.8, False)


async def test_a_video_is_reserved_before_it_is_ordered(tmp_path):
    vendor = Vendor(hangs())
    async with egress_gateway(tmp_path, vendor, openai=f"{POLICY.rstrip()}\ncap: {{per_call: $0.50}}") as out:
        status, body = await order(out, ORDER)
        assert (status, json.loads(body)["error"]["code"]) == (429, "cost_cap_exceeded")
        assert vendor.requests == []


async def test_a_video_that_was_refused_costs_nothing(tmp_path):
    async with egress_gateway(tmp_path, Vendor(errs(400)), openai=POLICY) as out:
        assert (await order(out, ORDER))[0] == 400
        assert await paid(out) == (0.0, False)
