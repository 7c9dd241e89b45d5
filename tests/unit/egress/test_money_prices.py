"""What calls cost. Each figure names the page it comes from and the day that the page was looked at.

Pages and days are those that genai-prices names; where it names no day of its own, the table's date, 2026-11-09.
"""

import json
import math
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.billing.pricing.pricer import NO_COST, Cost, Pricer
from proxy.egress.dialects import Usage, dialect_for
from proxy.policy.schema import Price

OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()
PRICING = "developers.openai.com/api/docs/pricing"
MODELS = "developers.openai.com/api/docs/models"
CLAUDE = "platform.claude.com/docs/en/about-claude/pricing"
MINE = Price(Decimal("0.50"), Decimal("1.50"), Decimal("0.05"))


def tariffs(kind="openai", base_url=OPENAI, overrides=None, unknown="highest"):
    return Pricer(kind, base_url, overrides or {}, unknown)


def asked(endpoint, answer, kind="openai", base_url=None, at=NOW, model=None, **policy):
    """The cost of an answer as it comes from the vendor."""
    usage = dialect_for(kind).usage(endpoint, json.loads(json.dumps(answer)))
    url = base_url or {"openai": OPENAI, "anthropic": ANTHROPIC}[kind]
    return tariffs(kind, url, **policy).cost(endpoint, usage, model or answer.get("model"), at=at)


def day(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def dollars(text):
    return int(Decimal(text) * 10**9)


def chat(model, before, after, cached=0, **more):
    usage = {"prompt_tokens": before, "completion_tokens": after, "prompt_tokens_details": {"cached_tokens": cached}}
    return {"model": model, "usage": usage, **more}


def claude(model, before, after, **more):
    return {"model": model, "usage": {"input_tokens": before, "output_tokens": after, **more}}


AUDIO = {
    "prompt_tokens": 300,
    "prompt_tokens_details": {"cached_tokens": 0, "text_tokens": 100, "audio_tokens": 200},
    "completion_tokens": 150,
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 120, "text_tokens": 30},
}
REALTIME = {
    "input_tokens": 1000,
    "input_tokens_details": {
        "audio_tokens": 600,
        "text_tokens": 400,
        "cached_tokens": 300,
        "cached_tokens_details": {"text_tokens": 200, "audio_tokens": 100},
    },
    "output_tokens": 100,
    "output_tokens_details": {"audio_tokens": 100},
}
DRAWN = {"input_tokens": 50, "input_tokens_details": {"text_tokens": 20, "image_tokens": 30}}
HEARD = {"type": "tokens", "input_tokens": 140, "input_token_details": {"text_tokens": 14, "audio_tokens": 126}}
SEARCHED = {
    "model": "gpt-5.6-sol",
    "usage": {
        "input_tokens": 2000,
        "input_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 500},
        "output_tokens": 100,
    },
    "output": [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "web_search_call"},
        {"type": "file_search_call"},
        {"type": "message"},
    ],
}
CACHED = {
    "cache_read_input_tokens": 1000,
    "cache_creation_input_tokens": 500,
    "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200},
    "server_tool_use": {"web_search_requests": 3},
}

# page, the day it was looked at, what was asked, the answer, dollars
PRICES = [
    (PRICING, "2026-10-12", "chat", chat("gpt-4o-2024-08-06", 1000, 500, 200), "0.00725"),
    (PRICING, "2026-10-12", "chat", chat("gpt-4o-mini-2024-07-18", 1000, 500), "0.00045"),
    (PRICING, "2026-10-12", "chat", chat("gpt-4.1-2025-04-14", 1000, 100, 400), "0.0022"),
    (PRICING, "2026-10-12", "chat", chat("gpt-5.4-mini", 1000, 1000), "0.00525"),
    (PRICING, "2026-10-12", "chat", chat("gpt-5.4-mini", 1000, 1000, service_tier="default"), "0.00525"),
    (PRICING, "2026-10-12", "chat", chat("gpt-5.4-mini", 1000, 1000, service_tier="flex"), "0.002625"),
    (PRICING, "2026-10-12", "chat", chat("gpt-5.4-mini", 1000, 1000, service_tier="priority"), "0.0105"),
    (PRICING, "2026-10-14", "chat", chat("gpt-5.4-mini", 1000, 1000, service_tier="batch"), "0.002625"),
    # more than 272,000 tokens of input: all of the request costs more
    (PRICING, "2026-10-12", "chat", chat("gpt-5.4", 272_000, 1000), "0.695"),
    (PRICING, "2026-10-12", "chat", chat("gpt-5.4", 272_001, 1000), "1.382505"),
    # fresh, cached and written input, two searches of the web and one of files; a page opened costs nothing
    (f"{MODELS}/gpt-5.6-sol", "2026-10-12", "responses", SEARCHED, "0.0294"),
    (PRICING, "2026-10-14", "chat", chat("ft:gpt-4o-mini-2024-07-18:acme::Ab1", 1000, 1000), "0.0015"),
    (
        f"{MODELS}/gpt-4o-mini-audio-preview",
        "2026-11-26",
        "chat",
        {"model": "gpt-4o-mini-audio-preview-2024-12-17", "usage": AUDIO},
        "0.004433",
    ),
    (
        f"{MODELS}/gpt-4o-audio-preview",
        "2026-11-26",
        "chat",
        {"model": "gpt-4o-audio-preview", "usage": AUDIO},
        "0.01815",
    ),
    (f"{MODELS}/gpt-realtime", "2026-11-09", "responses", {"model": "gpt-realtime", "usage": REALTIME}, "0.02332"),
    (f"{MODELS}/gpt-image-1", "2026-10-14", "images", {"usage": {**DRAWN, "output_tokens": 1000}}, "0.0404"),
    (
        f"{MODELS}/gpt-4o-transcribe-diarize",
        "2026-11-09",
        "audio",
        {"usage": {**HEARD, "output_tokens": 80}},
        "0.001591",
    ),
    (f"{MODELS}/whisper-1", "2026-11-09", "audio", {"usage": {"type": "duration", "seconds": 61}}, "0.0061"),
    (
        PRICING,
        "2026-11-09",
        "embeddings",
        {"model": "text-embedding-3-small", "usage": {"prompt_tokens": 8}},
        "0.00000016",
    ),
    (CLAUDE, "2026-11-09", "messages", claude("claude-haiku-4-5-20251001", 100, 50, **CACHED), "0.031225"),
    (CLAUDE, "2026-10-14", "messages", claude("claude-haiku-4-5", 1000, 100, service_tier="batch"), "0.00075"),
    (
        f"{CLAUDE}#fast-mode-pricing",
        "2026-11-09",
        "messages",
        claude("claude-opus-5-5", 1000, 100, speed="fast"),
        "0.012",
    ),
    (f"{CLAUDE}#long-context-pricing", "2026-11-09", "messages", claude("claude-haiku-5-5", 100_001, 10), "0.0500255"),
    # data residency: 1.1 times everything
    (CLAUDE, "2026-04-30", "messages", claude("claude-opus-4-6", 1000, 100, inference_geo="us"), "0.00825"),
    (CLAUDE, "2026-04-30", "messages", claude("claude-opus-4-6", 1000, 100, inference_geo="global"), "0.0075"),
]
ASKED = {"images": "gpt-image-1", "audio": "gpt-4o-transcribe"}


@pytest.mark.parametrize(("page", "seen", "endpoint", "answer", "expected"), PRICES)
def test_a_call_costs_what_the_vendors_page_says(page, seen, endpoint, answer, expected):
    model = answer.get("model") or ("whisper-1" if "seconds" in answer["usage"] else ASKED[endpoint])
    cost = asked(endpoint, answer, "anthropic" if endpoint == "messages" else "openai", model=model)
    assert cost == Cost(dollars(expected), 0), page


@pytest.mark.parametrize(
    ("page", "model", "before", "at", "expected"),
    [
        # developers.openai.com/api/docs/changelog: cheaper from 2026-08-21 on, midnight UTC
        ("developers.openai.com/api/docs/changelog", "gpt-5.6-sol", 1000, "2026-08-20T23:59:59", "0.008"),
        ("developers.openai.com/api/docs/changelog", "gpt-5.6-sol", 1000, "2026-08-21T00:00:00", "0.006"),
        # the long context's price ended on 2026-03-13
        (CLAUDE, "claude-sonnet-4-6", 300_000, "2026-03-12T12:00:00", "1.80225"),
        (CLAUDE, "claude-sonnet-4-6", 300_000, "2026-03-13T00:00:00", "0.9015"),
    ],
)
def test_a_price_holds_from_its_day_on(page, model, before, at, expected):
    kind = "anthropic" if "claude" in model else "openai"
    answer = claude(model, before, 100) if kind == "anthropic" else chat(model, before, 100)
    assert asked("chat", answer, kind, at=day(at)).nanos == dollars(expected)


def test_deepseek_costs_less_at_night():
    """api-docs.deepseek.com/quick_start/pricing, 2026-09-10: UTC 01:00-04:00 and 06:00-10:00 are the dear hours."""
    answer = chat("deepseek-v4-flash", 1_000_000, 0)
    costs = [
        asked("chat", answer, base_url="https://api.deepseek.com", at=day(f"2026-11-26T{hour}:00")).nanos
        for hour in ("00:59", "01:00", "03:59", "04:00", "06:00", "10:00")
    ]
    assert costs == [dollars(one) for one in ("0.15", "0.30", "0.30", "0.15", "0.30", "0.15")]


@pytest.mark.parametrize(
    ("kind", "base_url", "name", "same_as", "sure"),
    [
        ("openai", OPENAI, "gpt-4o-2024-11-20", "gpt-4o", True),
        ("openai", OPENAI, "GPT-4o", "gpt-4o", True),
        ("openai", OPENAI, "gpt-5.4-20260305", "gpt-5.4", True),  # as LiteLLM writes days
        ("openai", OPENAI, "gpt-4o-2027-01-31", "gpt-4o", False),  # a snapshot that the table does not know yet
        ("openai", "http://127.0.0.1:4000/v1", "openai/gpt-4o", "gpt-4o", True),
        ("openai", "https://openrouter.ai/api/v1", "openai/gpt-4o-mini", "gpt-4o-mini", True),
        ("openai", "https://openrouter.ai/api/v1", "openai/gpt-4o-mini:nitro", "gpt-4o-mini", False),
        ("openai", "https://mine.openai.azure.com/openai/v1", "gpt-4o-2024-11-20", "gpt-4o", True),
        ("openai", "http://127.0.0.1:4000/v1", "claude-haiku-4-5", "anthropic/claude-haiku-4-5", False),
        ("openai", "https://api.anthropic.com/v1", "claude-haiku-4-5", "anthropic/claude-haiku-4-5", True),
        ("anthropic", ANTHROPIC, "claude-3-5-haiku-latest", "claude-3-5-haiku-20241022", True),
        ("anthropic", ANTHROPIC, "claude-haiku-4-5-20251001", "claude-haiku-4-5", True),
        ("anthropic", ANTHROPIC, "claude-opus-5@20260701", "claude-opus-5", True),
        ("openai", "https://generativelanguage.googleapis.com/v1beta/openai", "models/gemini-2.5-flash", "gemini-2.5-flash", True),
    ],
)  # fmt: skip
def test_a_model_is_known_by_all_its_names(kind, base_url, name, same_as, sure):
    found = tariffs(kind, base_url, unknown="zero")
    usage = Usage(1000, 0, 1000, 0, None)
    cost = found.cost("chat", usage, name, at=NOW)
    assert found.has_price(name)
    assert cost.nanos == found.cost("chat", usage, same_as, at=NOW).nanos > 0
    assert cost.estimated == (0 if sure else cost.nanos)


def test_a_fine_tune_without_a_price_of_its_own_costs_twice_its_base_and_is_an_estimate():
    tuned = asked("chat", chat("ft:gpt-5-mini-2025-08-07:acme::Ab1", 1000, 1000))
    base = asked("chat", chat("gpt-5-mini", 1000, 1000))
    assert tuned == Cost(2 * base.nanos, 2 * base.nanos)


def test_the_answers_model_counts_more_than_the_one_asked_for():
    usage = Usage(1000, 0, 0, 0, "gpt-4o-mini-2024-07-18")
    assert tariffs().cost("chat", usage, "gpt-4o", at=NOW) == Cost(dollars("0.00015"))
    assert tariffs().cost("chat", usage, "my-deployment", at=NOW) == Cost(dollars("0.00015"))
    other = Usage(1000, 0, 0, 0, "a name of the host's own")
    assert tariffs().cost("chat", other, "gpt-4o", at=NOW) == Cost(dollars("0.0025"))


@pytest.mark.parametrize(
    ("model", "answered", "expected"),
    [
        ("my-model", None, "0.00191"),
        ("my-model", "something else", "0.00191"),
        ("my-model-2026-01-31", None, "0.00191"),
        ("my-model-20260131", None, "0.00191"),
        ("gpt-4o", "gpt-4o-2024-08-06", "0.002"),  # before the table's, snapshots included
        ("gpt-4o-2024-11-20", None, "0.007"),  # the exact name comes first
        (None, "my-model", "0.00191"),
    ],
)
def test_the_policys_price_comes_first(model, answered, expected):
    """1,000 tokens of input, of which 200 from the cache, and 1,000 of output: 0.50 · 0.8 + 0.05 · 0.2 + …"""
    plain = Price(Decimal(1), Decimal(1))
    prices = {"my-model": MINE, "gpt-4o": plain, "gpt-4o-2024-11-20": Price(Decimal(2), Decimal(5))}
    found = tariffs(overrides=prices, unknown="refuse")
    usage = Usage(1000, 200, 1000, 0, answered)
    assert found.cost("chat", usage, model, at=NOW) == Cost(dollars(expected))
    assert found.has_price(model or answered)
    assert not found.refuses_model(model or answered)


def test_the_policys_price_has_no_surcharge():
    usage = Usage(1000, 0, 1000, 0, None, {"inference_geo": "us", "service_tier": "priority"})
    for base_url in (OPENAI, "https://eu.api.openai.com/v1"):
        cost = tariffs(base_url=base_url, overrides={"mine": MINE}).cost("chat", usage, "mine", at=NOW)
        assert cost == Cost(dollars("0.002"))


def test_what_a_model_without_a_price_costs_is_the_policys_to_say():
    usage = Usage(1000, 0, 1000, 0, None)
    highest = tariffs(unknown="highest").cost("chat", usage, "mystery", at=NOW)
    # o1-pro, $150 and $600 a million: developers.openai.com/api/docs/pricing, 2026-11-09
    assert highest == Cost(dollars("0.75"), dollars("0.75"))
    assert tariffs(unknown="zero").cost("chat", usage, "mystery", at=NOW) == NO_COST
    assert tariffs(unknown="refuse").cost("chat", usage, None, at=NOW) == highest
    for model, refused in (("mystery", True), (None, True), ("gpt-4o", False), ("x" * 10_000, True)):
        assert tariffs(unknown="refuse").refuses_model(model) is refused
        assert not tariffs(unknown="highest").refuses_model(model)
        assert not tariffs(unknown="zero").refuses_model(model)
    guess = tariffs().estimate_cost("chat", "mystery", input_tokens=1000, output_tokens=1000, at=NOW)
    assert guess == highest
    # Speech: whisper-1, $0.36 an hour, is the dearest by length; gpt-4o-transcribe, $6, by tokens.
    heard = Usage(0, 0, 0, 0, None, {"type": "duration", "seconds": 60})
    assert tariffs().cost("audio", heard, None, at=NOW) == Cost(dollars("0.006"), dollars("0.006"))
    assert tariffs().estimate_cost("audio", None, input_tokens=1000, output_tokens=0, at=NOW).nanos == dollars("0.006")
    # No embedding costs what the dearest chat does: text-embedding-3-large, $0.13.
    embedding = tariffs().cost("embeddings", Usage(1000, 0, 0, 0, None), "mystery", at=NOW)
    assert embedding == Cost(dollars("0.00013"), dollars("0.00013"))


def test_a_plain_http_upstream_costs_nothing():
    found = tariffs("http", "https://api.weather.example")
    assert found.estimate_cost(None, None, input_tokens=100, output_tokens=100, at=NOW) == NO_COST
    assert not found.has_price("gpt-4o")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # openrouter.ai/docs/use-cases/usage-accounting, 2026-11: dollars, in every answer
        ({"cost": 0.00014}, "0.00014"),
        ({"cost": 0}, "0"),
        ({"cost": 1e-9}, "0.000000001"),
        ({"cost": 0.1}, "0.1"),
        # one's own key at the vendor: its bill comes on top of OpenRouter's fee
        ({"cost": 0.05, "is_byok": True, "cost_details": {"upstream_inference_cost": 1}}, "1.05"),
        ({"cost": 0.95, "is_byok": False, "cost_details": {"upstream_inference_cost": 19}}, "0.95"),
        # docs.perplexity.ai, 2026-11
        ({"cost": {"input_tokens_cost": 0.001, "total_cost": 0.006}}, "0.006"),
    ],
)
def test_a_cost_that_the_answer_reports_is_taken_as_it_is(usage, expected):
    answer = {"model": "openai/gpt-4o", "usage": {"prompt_tokens": 10, "completion_tokens": 10, **usage}}
    cost = asked("chat", answer, base_url="https://openrouter.ai/api/v1")
    assert cost == Cost(dollars(expected))
    mine = asked("chat", answer, overrides={"openai/gpt-4o": MINE})
    assert mine == Cost(dollars("0.00002")), "the policy's price comes first"


@pytest.mark.parametrize("cost", [-1, True, "0.1", None, [], {}, float("nan"), float("inf"), {"total_cost": "x"}])
def test_a_reported_cost_that_is_none_is_not_believed(cost):
    usage = Usage(1000, 0, 0, 0, "gpt-4o", {"cost": cost})
    assert tariffs().cost("chat", usage, None, at=NOW) == Cost(dollars("0.0025"))


def test_moderation_is_free():
    """developers.openai.com/api/docs/models/omni-moderation-latest, 2026-11."""
    found = tariffs(unknown="highest")
    assert found.cost("moderations", Usage(10, 0, 0, 0, "omni-moderation-latest"), None, at=NOW) == NO_COST
    assert found.estimate_cost("moderations", None, input_tokens=9, output_tokens=9, at=NOW) == NO_COST
    assert found.cost_of_request("moderations", {"input": "x"}, at=NOW) == NO_COST


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        # openai.com/pricing, 2023-12-25
        ("images", {"model": "dall-e-3"}, "0.04"),
        ("images", {"model": "dall-e-3", "size": "1792x1024", "quality": "hd"}, "0.12"),
        ("images", {"model": "dall-e-2", "size": "256x256", "n": 3}, "0.048"),
        ("images", {"prompt": "a boat"}, "0.02"),
        # developers.openai.com/api/docs/pricing, text to speech, 2026-11-09: $15 and $30 a million characters
        ("audio", {"model": "tts-1", "input": "é" * 1000}, "0.015"),
        ("audio", {"model": "tts-1-hd", "input": "x" * 1000}, "0.03"),
    ],
)
def test_what_no_answer_reports_is_priced_by_the_request(endpoint, body, expected):
    assert tariffs().cost_of_request(endpoint, body, at=NOW) == Cost(dollars(expected))


def test_what_a_request_does_not_tell_has_no_price_by_it():
    found = tariffs()
    for endpoint, body in (
        ("images", {"model": "gpt-image-1"}),
        ("images", {"model": "dall-e-3", "size": "10x10"}),
        ("audio", {"model": "tts-1"}),
        ("audio", {"model": "mystery", "input": "x"}),
        ("chat", {"model": "gpt-4o", "input": "x"}),
        (None, {}),
    ):
        assert found.cost_of_request(endpoint, body, at=NOW) is None
    spoken = found.cost_of_request("audio", {"model": "gpt-4o-mini-tts", "input": "x" * 900}, at=NOW)
    # $0.015 a minute: developers.openai.com/api/docs/pricing, 2025; 900 characters are about a minute
    assert spoken.estimated == spoken.nanos
    assert dollars("0.010") < spoken.nanos < dollars("0.020")


def test_what_cannot_be_priced_exactly_is_marked():
    both = {**AUDIO, "prompt_tokens_details": {"cached_tokens": 150, "audio_tokens": 200}}
    unclear = asked("chat", {"model": "gpt-realtime", "usage": both})
    assert 0 < unclear.estimated < unclear.nanos, "which of the tokens were cached it does not say"
    contrary = asked("chat", chat("gpt-4o", 100, 10, cached=1000))
    assert contrary == Cost(dollars("0.00135"), dollars("0.00125")), "more cached than there were"
    elsewhere = asked("chat", chat("gpt-4o", 1000, 0), base_url="https://eu.api.openai.com/v1")
    assert elsewhere == Cost(dollars("0.00275"), dollars("0.00025")), "a tenth more, on newer models"
    searching = asked("chat", chat("gpt-4o-search-preview", 1000, 0))
    assert searching == Cost(dollars("0.0125"), dollars("0.01")), "each answer searches, and none says so"
    drawing = {"model": "gpt-5.4", "usage": {"input_tokens": 1000}, "output": [{"type": "image_generation_call"}]}
    assert asked("responses", drawing) == Cost(dollars("0.0025"), dollars("0.0025"))
    tier = asked("chat", chat("gpt-4o", 1000, 0, service_tier="ultrafast"))
    assert tier == Cost(dollars("0.0025"), dollars("0.0025")), "a tier that the table has no price for"


def test_an_estimate_is_marked_whole():
    found = tariffs()
    cost = found.estimate_cost("chat", "gpt-4o", input_tokens=1000, output_tokens=100, at=NOW)
    assert cost == Cost(dollars("0.0035"), dollars("0.0035"))
    long = found.estimate_cost("chat", "gpt-5.4", input_tokens=272_001, output_tokens=0, at=NOW)
    assert long.nanos == dollars("1.360005")
    assert found.estimate_cost("audio", "whisper-1", input_tokens=17 * 60, output_tokens=0, at=NOW).nanos == dollars(
        "0.006"
    )
    assert found.estimate_cost("audio", "tts-1", input_tokens=250, output_tokens=0, at=NOW).nanos == dollars("0.015")
    image = found.estimate_cost("images", "gpt-image-1.5", input_tokens=0, output_tokens=1000, at=NOW)
    assert image.nanos == dollars("0.032")
    assert tariffs(unknown="zero").estimate_cost("chat", "?", input_tokens=9, output_tokens=9, at=NOW) == NO_COST


def test_groqs_shortest_transcription_is_ten_seconds():
    """console.groq.com/docs/speech-to-text, 2026-11: $0.111 an hour, billed for 10 s at least."""
    usage = Usage(0, 0, 0, 0, None, {"type": "duration", "seconds": 3})
    found = tariffs(base_url="https://api.groq.com/openai/v1")
    assert found.cost("audio", usage, "whisper-large-v3", at=NOW).nanos == 308_333


def test_a_streams_service_tier_may_come_in_another_chunk_than_its_usage():
    state = dialect_for("openai").stream_state("chat", strip_usage=True)
    first = {"model": "gpt-5.4-mini", "service_tier": "flex", "choices": [{"index": 0, "delta": {"content": "x"}}]}
    last = {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 1000}}
    for chunk in (first, last):
        state.classify(f"data: {json.dumps(chunk)}\n\n".encode())
    assert tariffs().cost("chat", state.usage, "gpt-5.4-mini", at=NOW) == Cost(dollars("0.002625"))


def test_cached_tokens_are_found_where_deepseek_and_moonshot_put_them():
    for more in (
        {"prompt_cache_hit_tokens": 300},
        {"cached_tokens": 300},
        {"prompt_tokens_details": {"cached_tokens": 300}},
    ):
        usage = dialect_for("openai").usage("chat", {"usage": {"prompt_tokens": 1000, "completion_tokens": 1, **more}})
        assert usage.cached_input == 300


# ── properties ───────────────────────────────────────────────────────────────────────────────

TOKENS = st.integers(0, 10**7)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["audio_tokens", "cached_tokens", "text_tokens"]), st.integers(), max_size=3),
)
WORDS = (
    "prompt_tokens completion_tokens input_tokens output_tokens prompt_tokens_details completion_tokens_details"
    " cached_tokens cache_creation cache_creation_input_tokens cache_read_input_tokens server_tool_use type seconds"
    " cost cost_details is_byok service_tier speed inference_geo tools output input_tokens_details"
)
ANSWERS = st.fixed_dictionaries(
    {"usage": st.dictionaries(st.sampled_from(WORDS.split()), ODD)},
    optional={"model": ODD, "service_tier": ODD, "output": st.lists(st.dictionaries(st.just("type"), ODD), max_size=3)},
)
ENDPOINTS = st.sampled_from(["chat", "responses", "completions", "embeddings", "audio", "images", "messages", None])
MODELS_ = st.sampled_from(["gpt-4o", "gpt-realtime", "whisper-1", "gpt-image-1.5", "mystery", "claude-haiku-4-5", None])
FOUND = {kind: tariffs(kind, url) for kind, url in (("openai", OPENAI), ("anthropic", ANTHROPIC))}


@given(ANSWERS, ENDPOINTS, MODELS_, st.sampled_from(["openai", "anthropic"]))
@settings(deadline=None)
def test_no_usage_is_so_odd_that_it_has_no_price(answer, endpoint, model, kind):
    usage = dialect_for(kind).usage(endpoint or "", answer)
    if usage is not None:
        cost = FOUND[kind].cost(endpoint, usage, model, at=NOW)
        assert isinstance(cost.nanos, int)
        assert 0 <= cost.estimated <= cost.nanos < 2**63


@given(*[st.integers(-(10**40), 10**40)] * 4, MODELS_, ENDPOINTS)
@settings(deadline=None)
def test_no_count_is_so_absurd_that_it_costs_less_than_nothing(before, cached, after, thought, model, endpoint):
    cost = FOUND["openai"].cost(endpoint, Usage(before, cached, after, thought, model), model, at=NOW)
    assert 0 <= cost.estimated <= cost.nanos < 2**63
    guess = FOUND["openai"].estimate_cost(endpoint, model, input_tokens=before, output_tokens=after, at=NOW)
    assert 0 <= guess.estimated == guess.nanos < 2**63


@given(TOKENS, TOKENS, TOKENS, TOKENS, st.integers(0, 10**6), MODELS_, ENDPOINTS)
@settings(deadline=None)
def test_more_tokens_never_cost_less(before, cached, after, audio, more, model, endpoint):
    details = {"prompt_tokens_details": {"audio_tokens": audio}}
    found = FOUND["openai"]

    def cost(extra_before, extra_after):
        usage = Usage(before + extra_before, cached, after + extra_after, 0, model, details)
        return found.cost(endpoint, usage, model, at=NOW).nanos

    assert cost(0, 0) <= cost(more, 0)
    assert cost(0, 0) <= cost(0, more)


@given(
    TOKENS,
    st.floats(0, 1),
    TOKENS,
    st.decimals(0, 1000, places=6),
    st.decimals(0, 1000, places=6),
    st.decimals(0, 1000, places=6),
)
@settings(deadline=None)
def test_money_is_exact(before, share, after, fresh, old, out):
    cached = math.floor(before * share)
    found = tariffs(overrides={"mine": Price(fresh, out, old)})
    exact = (before - cached) * fresh + cached * old + after * out  # of a millionth of a dollar
    expected = int((exact * 1000).to_integral_value(ROUND_HALF_UP))
    assert found.cost("chat", Usage(before, cached, after, 0, "mine"), "mine", at=NOW) == Cost(expected)
