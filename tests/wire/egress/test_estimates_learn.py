"""What calls are reserved at is learnt from what was reported: under the name that was asked, and from no more than
the request shows."""

import asyncio
import json

import pytest
from aiohttp import web
from egress_gateway import QUICK, Vendor, completion, egress_gateway
from gateway_process import eventually

PRICES = "prices: {gpt-5: {input: 1, output: 2}, claude-5: {input: 1, output: 2}}"
PICTURE = "data:image/png;base64," + "A" * 900_000  # a quarter of that many tokens by its length


def uses(before: int, after: int, model: str = "gpt-5-2025-08-07"):
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path.endswith("/responses"):
            usage = {"input_tokens": before, "output_tokens": after, "total_tokens": before + after}
            return web.json_response(
                {"id": "resp_1", "object": "response", "output": [], "model": model, "usage": usage}
            )
        if request.raw_path.endswith("/messages"):
            usage = {"input_tokens": before, "output_tokens": after}
            return web.json_response(
                {"type": "message", "role": "assistant", "content": [], "model": model, "usage": usage}
            )
        usage = {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after}
        return web.json_response({**completion(model=model), "usage": usage})

    return answer


def chat(content: object = "hello", **more: object) -> dict:
    return {"model": "gpt-5", "messages": [{"role": "user", "content": content}], **more}


async def test_twenty_calls_at_once_by_an_alias_do_not_pass_a_cap_with_room_for_two(tmp_path):
    go = asyncio.Event()
    go.set()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return await uses(7, 5_000)(request)

    vendor = Vendor(answer)
    policy = f"{QUICK}\n{PRICES}\ncap: {{per_user: $0.032/d}}"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        assert (await out.chat(chat(user="ada")))[0] == 200  # a cent, and how long such answers are
        go.clear()
        asks = [asyncio.ensure_future(out.chat(chat(user="ada"))) for _ in range(20)]
        await eventually(lambda: sum(ask.done() for ask in asks) + vendor.open == 20)
        go.set()
        statuses = sorted(one[0] for one in await asyncio.gather(*asks))
        assert statuses == [200] * 2 + [429] * 18
        limits = out.openai.billing.limits
        assert limits.spent("d", "ada") <= 32_000_000
        assert limits.reserved == 0


async def reserved(out, vendor, path: str, body: dict, upstream: str = "openai") -> int:
    """Tokens of the question that the reservation of such a call rests on."""
    go = asyncio.Event()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.json_response({"error": {"message": "no"}}, status=400)

    before = vendor.answers
    vendor.answers = [answer]
    body = {**body, "max_tokens": 0, "max_output_tokens": 0}

    async def ask() -> None:
        async with out.session.post(f"{out.url}/{upstream}/v1/{path}", json=body) as answered:
            assert answered.status == 400

    task = asyncio.ensure_future(ask())
    await eventually(lambda: vendor.open)
    amount = out.egress.upstreams[upstream].billing.limits.reserved
    go.set()
    await task
    vendor.answers = before
    return amount // 1000  # at a dollar for a million


HELD = {
    "a response that it follows": ("responses", {"input": "and then?", "previous_response_id": "resp_0"}),
    "a conversation": ("responses", {"input": "and then?", "conversation": {"id": "conv_1"}}),
    "a stored prompt": ("responses", {"input": "and then?", "prompt": {"id": "pmpt_1"}}),
    "an item by its id": ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
    "a file by its id": (
        "responses",
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
    ),
    "a search of files": ("responses", {"input": "find", "tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}),
    "a search of the web": ("responses", {"input": "find", "tools": [{"type": "web_search_preview"}]}),
    "a server of tools": ("responses", {"input": "find", "tools": [{"type": "mcp", "server_url": "https://a.example"}]}),
    "a file in a chat": ("chat/completions", chat([{"type": "file", "file": {"file_id": "file-1"}}])),
    "a search in a chat": ("chat/completions", chat(web_search_options={})),
    "a thread of Anthropic's": (
        "messages",
        {"messages": [{"role": "user", "content": "go on"}], "thread": {"type": "continue", "previous_message_id": "m"}},
    ),
    "a document of Anthropic's": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body"), HELD.values(), ids=HELD)
async def test_a_context_that_the_vendor_holds_teaches_nothing_about_the_bodys_length(tmp_path, path, body):
    vendor = Vendor(uses(90_000, 10, "claude-5" if path == "messages" else "gpt-5-2025-08-07"))
    name, model = ("anthropic", "claude-5") if path == "messages" else ("openai", "gpt-5")
    more = f"  anthropic: {{base_url: 'http://127.0.0.1:<0>', {PRICES}}}\n"
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{PRICES}", more=more) as out:
        plain = {"input": "x" * 4000} if path == "responses" else chat("x" * 4000)
        plain, body = {**plain, "model": model}, {**body, "model": model}
        assert 1000 <= await reserved(out, vendor, path, plain, name) < 1100
        for _ in range(10):
            async with out.session.post(f"{out.url}/{name}/v1/{path}", json=body) as answer:
                assert answer.status == 200
        assert 1000 <= await reserved(out, vendor, path, plain, name) < 1100
        # The next of that kind is reserved at what such calls were.
        assert await reserved(out, vendor, path, body, name) == 90_000


async def test_a_picture_counts_against_the_pace_as_in_its_reservation(tmp_path):
    """By its base64 it would be 225,000 tokens, and wait for minutes."""
    picture = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    policy = f"{QUICK}\n{PRICES}\npace: {{tokens: 60000/min, wait: 1s}}"
    async with egress_gateway(tmp_path, Vendor(uses(1_100, 5)), openai=policy) as out:
        for _ in range(3):
            status, _, text = await out.chat(chat(picture))
            assert status == 200, json.loads(text)
