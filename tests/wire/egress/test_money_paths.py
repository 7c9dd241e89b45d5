"""Whatever way a metered endpoint's path is spelled, it is metered, and goes out as the app spelled it."""

from __future__ import annotations

import asyncio
import json

import pytest
from egress_gateway import CHAT, QUICK, USAGE, Vendor, completion, egress_gateway, says

PRICES = "prices: {gpt-4o-mini: {input: 1, output: 2}, claude-9: {input: 1, output: 2}}"
COST = 0.000017  # 7 tokens in, 5 out
CLAUDE = {"model": "claude-9", "max_tokens": 9, "messages": []}
MESSAGE = {"type": "message", "model": "claude-9", "content": [], "usage": {"input_tokens": 7, "output_tokens": 5}}
ANTHROPIC = "  anthropic:\n    kind: anthropic\n    base_url: http://127.0.0.1:<0>\n    " + PRICES + "\n"
DEPLOYED = "/openai/openai/deployments/prod-chat"
AZURE = f"{DEPLOYED}/chat/completions?api-version=2026-01-01"

SPELLED = [
    "/openai/v1/chat/completions",
    "/openai/chat/completions",
    "/openai/v1//chat/completions",
    "/openai//v1/chat//completions",
    "/openai/v1/chat/completions/",
    "/openai/v1/%63hat/completions",
    "/openai/v1/chat%2Fcompletions",
    "/openai/v1/%2563hat/completions",
    "/openai/v1/chat/completions#x",
    "/openai/v1/chat/completions;x=1",
    "/openai/v1/chat;x/completions",
    "/openai/v1/./chat/completions",
    "/openai/v1/x/../chat/completions",
    "/openai/v1/%2e%2e/v1/chat/completions",
    "/openai/../v1/chat/completions",
    "/openai/v1/Chat/COMPLETIONS",
    "/openai/V1/chat/completions",
    "/openai/v1\\chat\\completions",
    "/openai/v1/chat/completions?model=x",
    AZURE,
    f"{DEPLOYED}//chat/completions",
    f"{DEPLOYED}/%63hat/completions/",
    f"{DEPLOYED}/x/../chat/completions",
    f"{DEPLOYED.upper().replace('/OPENAI', '/openai', 1)}/chat/completions",
    "/anthropic/v1/messages",
    "/anthropic/v1/messages/",
    "/anthropic/v1//messages",
    "/anthropic//v1/messages",
    "/anthropic/v1/%6Dessages",
    "/anthropic/v1/messages;x",
    "/anthropic/v1/messages#x",
    "/anthropic/v1/x/../messages",
    "/anthropic/V1/Messages",
    "/anthropic/v1/messages?beta=true",
]


async def post(out, path: str, body: object) -> tuple[int, str]:
    """As the path is spelled, which no client library would do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
    payload = json.dumps(body).encode()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode())
    writer.write(f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload)
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split()[1]), answer


@pytest.mark.parametrize("path", SPELLED)
async def test_a_metered_endpoint_is_metered_however_its_path_is_spelled(tmp_path, path):
    claude = path.startswith("/anthropic")
    vendor = Vendor(says(MESSAGE if claude else {**completion(), "usage": USAGE}))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{PRICES}", more=ANTHROPIC) as out:
        status, _ = await post(out, path, CLAUDE if claude else CHAT)
        assert status == 200
        assert (await out.logged())[0]["cost_usd"] == COST
    _, rest = path[1:].split("/", 1)
    sent = "/" + rest.partition("#")[0]  # a fragment is no part of a request (RFC 9112 section 3.2)
    shared = sent if claude or sent.startswith("/v1/") else "/v1" + sent
    assert vendor.requests[0][1] == shared, "what goes out is the app's own"


@pytest.mark.parametrize("path", ["/openai/v1/files", "/openai/v1/chat/completions/x", "/openai/v1/xchat/completions"])
async def test_what_is_no_metered_endpoint_passes_as_it_did(tmp_path, path):
    async with egress_gateway(tmp_path, Vendor(says()), openai=f"{QUICK}\n{PRICES}") as out:
        assert (await post(out, path, CHAT))[0] == 200
        assert (await out.logged())[0]["cost_usd"] is None


async def test_a_cap_holds_for_every_spelling(tmp_path):
    policy = f"{QUICK}\n{PRICES}\ncap: {{total: $0.00001/d}}"
    async with egress_gateway(tmp_path, Vendor(says()), openai=policy) as out:
        for path in SPELLED[:19]:
            assert (await post(out, path, CHAT))[0] == 429, path


# ── Azure: the path names the model ──────────────────────────────────────────────────────────────

UNNAMED = {"messages": CHAT["messages"], "max_tokens": 100}
NO_USAGE = {**completion("word " * 20), "usage": None, "model": None}


async def test_a_deployments_path_names_the_model_that_its_body_does_not(tmp_path):
    prices = "prices: {prod-chat: {input: 1, output: 2}}"
    async with egress_gateway(
        tmp_path, Vendor(says({**completion(), "model": None})), openai=f"{QUICK}\n{prices}"
    ) as out:
        assert (await post(out, AZURE, UNNAMED))[0] == 200
        call = (await out.logged())[0]
    assert (call["model"], call["cost_usd"], call["basis"]) == ("prod-chat", COST, "reported")


async def test_the_model_that_a_body_names_is_not_what_a_deployment_costs(tmp_path):
    prices = "prices: {prod-chat: {input: 1, output: 2}, cheap: {input: 0, output: 0}}"
    async with egress_gateway(
        tmp_path, Vendor(says({**completion(), "model": None})), openai=f"{QUICK}\n{prices}"
    ) as out:
        await post(out, AZURE, {**UNNAMED, "model": "cheap"})
        assert (await out.logged())[0]["cost_usd"] == COST


async def test_a_deployment_without_a_price_costs_what_the_model_costs_that_answered(tmp_path):
    prices = "prices: {gpt-4o-mini: {input: 1, output: 2}}\nunknown_price: zero"
    vendor = Vendor(says(completion()), says(NO_USAGE))
    async with egress_gateway(tmp_path, vendor, openai=f"{QUICK}\n{prices}") as out:
        await post(out, AZURE, UNNAMED)
        await post(out, AZURE, UNNAMED)  # no usage and no model: by what the first one said
        first, second = await out.logged(2)
    assert first["cost_usd"] == COST
    assert second["cost_usd"] > 0
    assert second["basis"] == "estimated"


async def test_a_base_url_that_ends_with_a_deployment_names_its_model_too(tmp_path):
    vendor = Vendor(says({**completion(), "model": None}))
    more = "  azure:\n    kind: openai\n    base_url: http://127.0.0.1:<0>/openai/deployments/prod-chat\n"
    more += "    prices: {prod-chat: {input: 1, output: 2}}\n"
    async with egress_gateway(tmp_path, vendor, more=more) as out:
        await post(out, "/azure/chat/completions?api-version=1", UNNAMED)
        assert (await out.logged())[0]["cost_usd"] == COST
