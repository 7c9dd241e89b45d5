"""A stream that was cut is paid by all that the model had written: not its prose alone."""

from __future__ import annotations

import json

import pytest
from egress_gateway import CHAT, QUICK, Vendor, completion, egress_gateway, says, streams

# A token in costs nothing, so that what is billed is output: 1 $ a million, 4 bytes a token at first.
PRICES = "prices: {m: {input: 0, output: 1}}"
ANTHROPIC = "  anthropic:\n    kind: anthropic\n    base_url: http://127.0.0.1:<0>\n    " + PRICES + "\n"
SAID = "word " * 400  # 2,000 bytes: 500 tokens
TOKENS = 500
CJK = "語" * 500  # 1,500 bytes: 375 tokens


def sse(*events: dict, named: bool = False) -> list[bytes]:
    name = (lambda event: f"event: {event['type']}\n") if named else (lambda event: "")
    return [f"{name(event)}data: {json.dumps(event)}\n\n".encode() for event in events]


def chat(**delta: object) -> list[bytes]:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    start = {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    return sse(start, {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def legacy(text: str) -> list[bytes]:
    return sse({"id": "c", "object": "text_completion", "model": "m", "choices": [{"index": 0, "text": text}]})


def response(*events: dict) -> list[bytes]:
    start = {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "model": "m", "output": []}}
    return sse(start, *({**event, "output_index": 0, "item_id": "i"} for event in events), named=True)


def message(*events: dict) -> list[bytes]:
    usage = {"input_tokens": 7, "output_tokens": 1}
    start = {"type": "message_start", "message": {"id": "m", "model": "m", "content": [], "usage": usage}}
    return sse(start, *({**event, "index": 0} for event in events), named=True)


def block(**delta: object) -> dict:
    return {"type": "content_block_delta", "delta": delta}


def item(**fields: object) -> dict:
    return {"type": "response.output_item.done", "item": {"id": "i", "status": "completed", **fields}}


TOOL = {"index": 0, "id": "call", "type": "function", "function": {"name": "look", "arguments": SAID}}
CUSTOM = {"index": 0, "id": "call", "type": "custom", "custom": {"name": "look", "input": SAID}}
CHATS = {
    "content": (chat(content=SAID), TOKENS),
    "content in another script": (chat(content=CJK), 375),
    "refusal": (chat(refusal=SAID), TOKENS),
    "tool arguments": (chat(tool_calls=[TOOL]), TOKENS),
    "a custom tool's input": (chat(tool_calls=[CUSTOM]), TOKENS),
    "function_call": (chat(function_call={"name": "look", "arguments": SAID}), TOKENS),
    "reasoning_content": (chat(reasoning_content=SAID), TOKENS),
    "one thought under three names": (
        chat(reasoning=SAID, reasoning_content=SAID, reasoning_details=[{"type": "reasoning.text", "text": SAID}]),
        TOKENS,
    ),
    "an audio's transcript": (chat(audio={"id": "a", "transcript": SAID}), TOKENS),
    "audio": (chat(audio={"id": "a", "data": "A" * 3_200_000}), 1_000),
    "a delta that nobody knows yet": (chat(monologue={"parts": [{"words": SAID}]}), TOKENS),
    "legacy text": (legacy(SAID), TOKENS),
}
RESPONSES = {
    "text": ([{"type": "response.output_text.delta", "delta": SAID}], TOKENS),
    "refusal": ([{"type": "response.refusal.delta", "delta": SAID}], TOKENS),
    "arguments": ([{"type": "response.function_call_arguments.delta", "delta": SAID}], TOKENS),
    "MCP arguments": ([{"type": "response.mcp_call_arguments.delta", "delta": SAID}], TOKENS),
    "custom input": ([{"type": "response.custom_tool_call_input.delta", "delta": SAID}], TOKENS),
    "code": ([{"type": "response.code_interpreter_call_code.delta", "delta": SAID}], TOKENS),
    "reasoning": ([{"type": "response.reasoning_text.delta", "delta": SAID}], TOKENS),
    "a summary of reasoning": ([{"type": "response.reasoning_summary_text.delta", "delta": SAID}], TOKENS),
    "a shell command": ([{"type": "response.shell_call_command.delta", "delta": SAID}], TOKENS),
    "audio": ([{"type": "response.audio.delta", "delta": "A" * 3_200_000}], 1_000),
    "a transcript": ([{"type": "response.audio.transcript.delta", "delta": SAID}], TOKENS),
    "a delta that nobody knows yet": ([{"type": "response.monologue.delta", "delta": SAID}], TOKENS),
    "an item that comes whole": (
        [item(type="apply_patch_call", operation={"type": "create_file", "diff": SAID})],
        TOKENS,
    ),
    "an item counts once": (
        [
            {"type": "response.function_call_arguments.delta", "delta": SAID},
            {"type": "response.function_call_arguments.done", "arguments": SAID},
            item(type="function_call", name="look", arguments=SAID, call_id="c"),
        ],
        TOKENS,
    ),
    "reasoning that only the vendor can read": (
        [item(type="reasoning", summary=[], encrypted_content="A" * 4_000)],
        750,
    ),
    "what a tool answered is no output": (
        [
            item(type="function_call_output", output=SAID),
            {"type": "response.shell_call_output_content.delta", "delta": {"stdout": SAID}},
            {"type": "response.output_text.delta", "delta": SAID},
        ],
        TOKENS,
    ),
}
MESSAGES = {
    "text": ([block(type="text_delta", text=SAID)], TOKENS),
    "tool input": ([block(type="input_json_delta", partial_json=SAID)], TOKENS),
    "thinking": ([block(type="thinking_delta", thinking=SAID)], TOKENS),
    "thinking kept back": ([block(type="thinking_delta", thinking="", estimated_tokens=TOKENS)], TOKENS),
    "thinking, and its signature": (
        [block(type="thinking_delta", thinking=SAID), block(type="signature_delta", signature="A" * 2_000)],
        TOKENS,
    ),
    "redacted thinking": (
        [{"type": "content_block_start", "content_block": {"type": "redacted_thinking", "data": "A" * 4_000}},
         block(type="text_delta", text="a")],
        750,
    ),
    "compaction": ([block(type="compaction_delta", content=SAID)], TOKENS),
    "a delta that nobody knows yet": ([block(type="monologue_delta", words=SAID)], TOKENS),
    "what a tool answered is no output": (
        [
            {
                "type": "content_block_start",
                "content_block": {"type": "web_search_tool_result", "content": [{"title": SAID}]},
            },
            block(type="text_delta", text=SAID),
        ],
        TOKENS,
    ),
}  # fmt: skip
ALL = [
    *(("/openai/v1/chat/completions", name, events, tokens) for name, (events, tokens) in CHATS.items()),
    *(("/openai/v1/responses", name, response(*events), tokens) for name, (events, tokens) in RESPONSES.items()),
    *(("/anthropic/v1/messages", name, message(*events), tokens) for name, (events, tokens) in MESSAGES.items()),
]


@pytest.mark.parametrize(("path", "name", "events", "tokens"), ALL, ids=[f"{one[0]} {one[1]}" for one in ALL])
async def test_a_stream_that_is_cut_is_paid_by_all_that_was_written(tmp_path, path, name, events, tokens):
    path = "/openai/v1/completions" if name.startswith("legacy") else path
    vendor = Vendor(streams(events, then="cut"))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{PRICES}", more=ANTHROPIC) as out:
        async with out.session.post(out.url + path, json={**CHAT, "model": "m", "stream": True}) as answer:
            await answer.read()
        call = (await out.logged())[0]
        upstream = out.egress.upstreams[path.split("/")[1]]
        assert upstream.billing.limits.reserved == 0
    assert call["basis"] == "estimated"
    assert tokens <= call["cost_usd"] * 1e6 <= tokens + 15, "names and marks beside it are a few tokens"


async def test_a_picture_that_a_tool_had_drawn_is_paid_at_its_own_models_price(tmp_path):
    start, *rest = response(
        {"type": "response.image_generation_call.partial_image", "partial_image_b64": "A", "partial_image_index": 0},
        item(type="image_generation_call", result="A" * 100, size="1024x1024", quality="high"),
    )
    said = json.loads(start.split(b"data: ")[1])
    said["response"]["tools"] = [{"type": "image_generation", "model": "painter"}]
    prices = "prices: {m: {input: 0, output: 1}, painter: {input: 0, output: 40}}"
    vendor = Vendor(streams([*sse(said, named=True), *rest], then="cut"))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{prices}") as out:
        async with out.session.post(f"{out.url}/openai/v1/responses", json={"model": "m", "stream": True}) as answer:
            await answer.read()
        call = (await out.logged())[0]
    assert call["basis"] == "estimated"
    assert call["cost_usd"] == pytest.approx((100 + 7024) * 40e-6, abs=5e-6)


async def test_what_was_reported_on_the_way_is_no_less_than_what_was_written(tmp_path):
    first, second = chat(content=SAID)
    reported = json.loads(second[6:])
    reported["usage"] = {"prompt_tokens": 7, "completion_tokens": 2}  # xAI and vLLM say so with every chunk
    vendor = Vendor(streams([first, *sse(reported)], then="cut"))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{PRICES}") as out:
        await out.chat({**CHAT, "model": "m", "stream": True})
        call = (await out.logged())[0]
    assert (call["cost_usd"], call["basis"]) == (0.0005, "estimated")


async def test_what_claude_had_written_when_it_was_cut_behind_its_usage_is_what_it_reports(tmp_path):
    events = message(
        block(type="text_delta", text="a"),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 900}},
    )
    async with egress_gateway(tmp_path, Vendor(streams(events, then="cut")), more=ANTHROPIC) as out:
        async with out.session.post(f"{out.url}/anthropic/v1/messages", json={"model": "m", "stream": True}) as answer:
            await answer.read()
        call = (await out.logged())[0]
    assert (call["cost_usd"], call["basis"]) == (0.0009, "reported")


async def test_a_whole_answers_json_is_no_lesson_for_its_text(tmp_path):
    """Two bytes of text a token, in an envelope of four hundred: the next stream that is cut costs by its text."""
    usage = {"prompt_tokens": 7, "completion_tokens": 10}
    whole = {**completion("ab" * 10, "m"), "usage": usage}
    vendor = Vendor(*[says(whole)] * 20, streams(chat(content="ab" * 500), then="cut"))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{PRICES}") as out:
        for _ in range(20):
            await out.chat({**CHAT, "model": "m"})
        await out.chat({**CHAT, "model": "m", "stream": True})
        call = (await out.logged(21))[-1]
    assert call["basis"] == "estimated"
    assert 480 <= call["cost_usd"] * 1e6 <= 510


async def test_what_a_model_usually_thinks_before_it_speaks_is_paid_where_its_words_are_cut(tmp_path):
    usage = {"prompt_tokens": 7, "completion_tokens": 1000, "completion_tokens_details": {"reasoning_tokens": 900}}
    whole = {**completion("word " * 80, "m"), "usage": usage}
    vendor = Vendor(*[says(whole)] * 3, streams(chat(content="word " * 80), then="cut"))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{PRICES}") as out:
        for _ in range(3):
            await out.chat({**CHAT, "model": "m"})
        await out.chat({**CHAT, "model": "m", "stream": True})
        call = (await out.logged(4))[-1]
    assert (call["basis"], call["cost_usd"]) == ("estimated", pytest.approx(0.001, abs=5e-6))


async def test_an_answer_without_usage_is_paid_by_its_text_not_by_its_envelope(tmp_path):
    vendor = Vendor(says({**completion(SAID, "m"), "usage": None}))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{PRICES}") as out:
        await out.chat({**CHAT, "model": "m"})
        call = (await out.logged())[0]
    assert (call["cost_usd"], call["basis"]) == (0.0005, "estimated")
