"""Half an emoji: `"\\ud83d"` is valid JSON, which JavaScript's slice makes of a text that it cuts. Wherever a body
is written again it stays what it was."""

from __future__ import annotations

import json

import pytest
from egress_gateway import QUICK, Vendor, chunks, completion, egress_gateway, errs, says, streams

HALF = "\ud83d"  # the first half of U+1F600
KEY = "api_key: sk-real"
MESSAGES = [{"role": "user", "content": f"cut {HALF}"}]
CHAT = {"model": "gpt-4o-mini", "messages": MESSAGES}
DONE = chunks("hi", usage=True)

# what is sent, and the policy of the upstream that makes the gateway write it, hash it, or speak of it
REWRITTEN = {
    "usage asked for": (
        "chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_obfuscation": False}},
        QUICK,
        [streams(DONE)],
    ),
    "a fallback's model": (
        "chat/completions",
        CHAT,
        "retry: {attempts: 1}\nfallback: [{model: gpt-4.1-nano}]",
        [errs(503), says()],
    ),
    "a text of our own": (
        "chat/completions",
        {**CHAT, "model": f"gpt{HALF}"},
        "retry: {attempts: 1}\nfallback: [{text: sorry}]",
        [errs(503)],
    ),
    "a text of our own, streamed": (
        "responses",
        {"model": f"gpt{HALF}", "input": "x", "stream": True},
        "retry: {attempts: 1}\nfallback: [{text: sorry}]",
        [errs(503)],
    ),
    "the cache, by user": (
        "chat/completions",
        {**CHAT, "user": f"ada{HALF}", "temperature": 0},
        "cache: {ttl: 1m}",
        [says()],
    ),
    "a shared call, by user": (
        "chat/completions",
        {**CHAT, "user": f"ada{HALF}", "temperature": 0},
        "coalesce: true",
        [says()],
    ),
    "caps and pace, by user": (
        "chat/completions",
        {**CHAT, "user": f"ada{HALF}", "model": f"gpt{HALF}"},
        "cap: {per_user: $5/d, per_call: $4}\npace: {concurrency: 1}",
        [says()],
    ),
    "the answer's own model": (
        "chat/completions",
        CHAT,
        "cap: {per_user: $5/d}",
        [says(completion(HALF, model=f"gpt{HALF}"))],
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
async def test_half_an_emoji_in_a_call_is_no_fault_of_ours(tmp_path, name):
    path, body, policy, answers = REWRITTEN[name]
    vendor = Vendor(*answers)
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        async with out.session.post(f"{out.url}/openai/v1/{path}", data=json.dumps(body).encode()) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        [line] = await out.logged()
        assert line["outcome"] in ("ok", "fallback"), line
    for sent in vendor.bodies:
        asked = {key: value for key, value in sent.items() if key in body}
        assert asked | {"model": "", "stream_options": ""} == body | {"model": "", **({"stream_options": ""})}


async def test_it_reaches_the_vendor_as_an_escape_and_other_letters_as_they_are(tmp_path):
    vendor = Vendor(errs(503), says())
    async with egress_gateway(
        tmp_path, vendor, openai="retry: {attempts: 1}\nfallback: [{model: gpt-4.1-nano}]"
    ) as out:
        said = {**CHAT, "messages": [{"role": "user", "content": f"schön 😀 {HALF}"}]}
        async with out.session.post(f"{out.url}/openai/v1/chat/completions", data=json.dumps(said).encode()) as answer:
            assert answer.status == 200
    assert "schön 😀 \\ud83d".encode() in vendor.requests[1][3]


@pytest.mark.parametrize("then", ["cut", "stall"])
async def test_a_broken_stream_that_said_half_an_emoji_ends_with_its_error_event(tmp_path, then):
    head = {"id": "resp_1", "object": "response", "model": f"gpt{HALF}", "output": [], "instructions": f"cut {HALF}"}
    events = [
        {"type": "response.created", "sequence_number": 0, "response": head},
        {"type": "response.output_text.delta", "sequence_number": 1, "delta": HALF},
    ]
    sent = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    async with egress_gateway(tmp_path, Vendor(streams(sent, then=then)), openai="timeout: {idle: 200ms}") as out:
        body = {"model": "gpt-4o-mini", "input": "x", "stream": True}
        async with out.session.post(f"{out.url}/openai/v1/responses", json=body) as answer:
            text = (await answer.read()).decode()
    failed = next(line for line in text.splitlines() if '"response.failed"' in line)
    assert json.loads(failed.removeprefix("data: "))["response"]["instructions"] == f"cut {HALF}"
