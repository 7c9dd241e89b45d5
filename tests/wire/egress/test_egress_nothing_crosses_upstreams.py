"""What crosses from one upstream to another, and from one caller to the next: the question and the answer, never
whose they were."""

from __future__ import annotations

import asyncio
import json

import pytest
from egress_gateway import CHAT, QUICK, Vendor, egress_gateway, errs, says

from proxy.policy.loading import PolicySource, load_policy

MARK = "hunter2"
EXACT = {**CHAT, "temperature": 0}
OTHERS = (
    '  azure: {kind: openai, base_url: "http://127.0.0.1:<1>/v1", api_key: sk-azure, retry: {attempts: 1}}\n'
    '  weather: {kind: http, base_url: "http://127.0.0.1:<0>", retry: {attempts: 1}, fallback: [{upstream: rain}]}\n'
    '  rain: {kind: http, base_url: "http://127.0.0.1:<1>/rain", api_key: sk-rain}\n'
    '  claude: {kind: anthropic, base_url: "http://127.0.0.1:<0>", retry: {attempts: 1}, fallback: [{upstream: bedrock}]}\n'
    '  bedrock: {kind: anthropic, base_url: "http://127.0.0.1:<1>", api_key: sk-bedrock}\n'
)
FIRST = "retry: {attempts: 1}\nfallback: [{upstream: azure}]"
SECRET_FIELDS = (
    "Authorization", "X-Api-Key", "Api-Key", "Helicone-Auth", "X-Goog-Api-Key", "Cookie", "OpenAI-Organization",
    "OpenAI-Project", "CF-Access-Client-Secret", "X-Portkey-Api-Key", "X-Amz-Security-Token", "Ocp-Apim-Subscription-Key",
    "X-Vendor-Invents-A-Name",
)  # fmt: skip
CARRIED = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "app/1",
    "X-Stainless-Lang": "python",
    "Anthropic-Version": "2023-06-01",
    "Anthropic-Beta": "x",
    "Idempotency-Key": "k1",
}
SECRET_QUERY = f"key={MARK}&access_token={MARK}&sig={MARK}&client_secret={MARK}&x-vendor={MARK}"


@pytest.mark.parametrize(
    ("target", "key", "reached"),
    [
        ("openai/v1/chat/completions", "Bearer sk-azure", "/v1/chat/completions?api-version=1"),
        ("claude/v1/messages", "sk-bedrock", "/v1/messages?api-version=1"),
    ],
)
async def test_a_fallback_to_another_upstream_gets_the_question_and_its_own_key_alone(tmp_path, target, key, reached):
    vendor, other = Vendor(errs(503)), Vendor(says({"content": [], "choices": []}))
    async with egress_gateway(tmp_path, vendor, other, openai=FIRST, more=OTHERS) as out:
        headers = {**CARRIED, **dict.fromkeys(SECRET_FIELDS, f"Bearer {MARK}")}
        url = f"{out.url}/{target}?api-version=1&{SECRET_QUERY}"
        async with out.session.post(url, data=json.dumps(CHAT), headers=headers) as answer:
            assert answer.status == 200, await answer.text()
    [(_, path, got, body)] = other.requests
    assert path == reached
    assert json.loads(body) == CHAT
    assert MARK not in str(other.requests)
    assert key in got.values()
    assert {name: value for name, value in got.items() if name in CARRIED} == CARRIED
    assert MARK in str(vendor.requests)  # and the first one got all of it


async def test_a_question_in_the_query_goes_to_another_api_without_its_secrets(tmp_path):
    vendor, other = Vendor(errs(503)), Vendor(says())
    async with egress_gateway(tmp_path, vendor, other, openai=FIRST, more=OTHERS) as out:
        headers = dict.fromkeys(SECRET_FIELDS, MARK) | {"Accept-Language": "de"}
        query = f"q=London&appid_key={MARK}&units=metric&token={MARK}&auth={MARK}&sig={MARK}&client_secret={MARK}"
        async with out.session.get(f"{out.url}/weather/now?{query}", headers=headers) as answer:
            assert answer.status == 200
    [(_, path, got, _)] = other.requests
    assert path == "/rain/now?q=London&units=metric"
    assert (got["Authorization"], got["Accept-Language"]) == ("Bearer sk-rain", "de")
    assert MARK not in str(other.requests)


async def test_a_path_with_a_secret_in_it_goes_nowhere_else(tmp_path):
    vendor, other = Vendor(errs(503)), Vendor(says())
    async with egress_gateway(tmp_path, vendor, other, openai=FIRST, more=OTHERS) as out:
        async with out.session.get(f"{out.url}/weather/bot123456:AAF0abcdefghijklmnopqrstuvwxyz01234/now") as answer:
            assert answer.status == 503
    assert other.requests == []


async def test_another_model_of_the_same_upstream_gets_everything_as_before(tmp_path):
    vendor = Vendor(errs(503), says())
    async with egress_gateway(tmp_path, vendor, openai="retry: {attempts: 1}\nfallback: [{model: small}]") as out:
        url = f"{out.url}/openai/v1/chat/completions?key=mine"
        async with out.session.post(url, json=CHAT, headers={"OpenAI-Organization": "org"}) as answer:
            assert answer.status == 200
    assert [request[2]["OpenAI-Organization"] for request in vendor.requests] == ["org", "org"]
    assert vendor.requests[1][1].endswith("?key=mine")


# ── answers that several get ─────────────────────────────────────────────────────────────────

PERSONAL = {
    "Set-Cookie": f"__cf_bm={MARK}",
    "x-request-id": MARK,
    "openai-organization": MARK,
    "x-ratelimit-remaining-requests": "7",
    "cf-ray": MARK,
    "request-id": MARK,
    "anthropic-organization-id": MARK,
    "x-vendor-invents-a-name": MARK,
}
ENTITY = {"ETag": '"1"', "Content-Language": "en", "Cache-Control": "max-age=5"}


def tells_all(gate: asyncio.Event | None = None):
    async def answer(request):
        if gate is not None:
            await gate.wait()
        return await says(**{**PERSONAL, **ENTITY})(request)

    return answer


def held_against(headers) -> None:
    assert MARK not in str(dict(headers))
    assert not {name.lower() for name in headers} & {name.lower() for name in PERSONAL}
    assert {name: headers[name] for name in ENTITY} == ENTITY


@pytest.mark.parametrize("scope", ["user", "all"])
async def test_a_cached_answer_is_the_answer_and_not_its_first_callers_cookies_and_ids(tmp_path, scope):
    vendor = Vendor(tells_all())
    async with egress_gateway(tmp_path, vendor, openai=f"cache: {{ttl: 1h, scope: {scope}}}") as out:
        first, second = await out.chat(EXACT), await out.chat(EXACT)
    assert (first[1]["x-outrigger-cache"], second[1]["x-outrigger-cache"]) == ("miss", "hit")
    assert first[1]["Set-Cookie"] == PERSONAL["Set-Cookie"]  # its own caller has it whole
    assert second[2] == first[2]
    held_against(second[1])


async def test_a_stale_answer_is_no_more(tmp_path):
    vendor = Vendor(tells_all(), errs(500))
    policy = "cache: {ttl: 1ms, stale_if_error: 1h}\nretry: {attempts: 1}"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        await out.chat(EXACT)
        await asyncio.sleep(0.005)
        status, headers, _ = await out.chat(EXACT)
        assert (status, headers["x-outrigger-cache"]) == (200, "stale")
        held_against(headers)


async def test_a_shared_answer_is_whole_for_the_one_who_began_it_alone(tmp_path):
    gate = asyncio.Event()
    vendor = Vendor(tells_all(gate))
    async with egress_gateway(tmp_path, vendor, openai="coalesce: true\ncache: {scope: all}") as out:
        calls = [asyncio.create_task(out.chat(EXACT)) for _ in range(3)]
        while len(vendor.requests) < 1 or out.egress.accounting.in_flight < 3:
            await asyncio.sleep(0.005)
        gate.set()
        answers = await asyncio.gather(*calls)
    assert len(vendor.requests) == 1
    by_word = {}
    for _, headers, text in answers:
        by_word.setdefault(headers["x-outrigger-cache"], []).append((headers, text))
    [(began, text)] = by_word["miss"]
    assert began["x-request-id"] == MARK
    for headers, same in by_word["coalesced"]:
        held_against(headers)
        assert (same, headers["x-outrigger-cost"]) == (text, "0.000000")


@pytest.mark.parametrize("scope", ["user", "all"])
async def test_after_a_reload_an_answer_comes_from_the_address_and_the_account_that_hold_now(tmp_path, scope):
    one, two = Vendor(says({"choices": [], "from": "one"})), Vendor(says({"choices": [], "from": "two"}))
    await two.start()
    try:
        policy = f"{QUICK}\ncache: {{ttl: 1h, scope: {scope}}}\napi_key: sk-1"
        async with egress_gateway(tmp_path, one, openai=policy) as out:
            key = {"Authorization": f"Bearer {out.egress._keys.key_for('openai')}"}
            in_query = f"{out.url}/openai/v1/chat/completions?key={out.egress._keys.key_for('openai')}"

            async def said() -> list[str]:
                found = [json.loads((await out.chat(EXACT, headers=key))[2])["from"]]
                async with out.session.post(in_query, json=EXACT) as answer:
                    return [*found, (await answer.json())["from"], answer.headers["x-outrigger-cache"]]

            assert await said() == ["one", "one", "miss"]
            assert await said() == ["one", "one", "hit"]
            text = f"upstreams: {{openai: {{base_url: 'http://127.0.0.1:PORT/v1', cache: {{ttl: 1h, scope: {scope}}}, api_key: KEY}}}}"
            out.egress.apply(
                load_policy(PolicySource("new", None, text.replace("PORT", str(two.port)).replace("KEY", "sk-1")), {})
            )
            assert await said() == ["two", "two", "miss"]
            out.egress.apply(
                load_policy(PolicySource("new", None, text.replace("PORT", str(two.port)).replace("KEY", "sk-2")), {})
            )
            assert await said() == ["two", "two", "miss"]
            out.egress.apply(
                load_policy(PolicySource("new", None, text.replace("PORT", str(one.port)).replace("KEY", "sk-1")), {})
            )
            assert (await said())[0] == "one"
    finally:
        await two.stop()


async def test_names_of_models_from_outside_make_no_series(tmp_path):
    answer = says({"choices": [], "model": "gpt-4o:answered", "usage": {"prompt_tokens": 1}})
    async with egress_gateway(tmp_path, Vendor(answer)) as out:
        for number in range(30):
            await out.chat({**CHAT, "model": f"gpt-4o:v{number}"})
        reported = await out.text()
        assert {line["model"] for line in await out.logged(30)} == {"gpt-4o:answered"}  # the log names it
    assert "gpt-4o:" not in reported
    assert 'outrigger_upstream_calls_total{model="other",outcome="ok",upstream="openai"} 30.0' in reported
    assert 'outrigger_cost_usd_total{basis="estimated",model="other",upstream="openai"}' in reported
