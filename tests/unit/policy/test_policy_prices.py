"""The policy's own prices say all that the table of models can, and each word of theirs has its effect."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from proxy.egress.billing.pricing.policy_prices import UNITS
from proxy.egress.billing.pricing.pricer import PRICED_TIERS, Pricer
from proxy.egress.dialects import dialect_for
from proxy.errors import PolicyError
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.renderer import render_policy
from proxy.policy.schema import Charges, Price

REFERENCE = (Path(__file__).resolve().parents[3] / "config" / "reference.yaml").read_text(encoding="utf-8")
SHOWN = re.findall(r"^    # - (\{(?:input|per_\w+|characters): .*?\})(?: {2,}.*)?$", REFERENCE, re.M)
NOW = 1_795_000_000.0

CHAT = {
    "prompt_tokens": 1000,
    "prompt_tokens_details": {
        "cached_tokens": 300,
        "audio_tokens": 200,
        "image_tokens": 100,
        "cache_write_tokens": 100,
        "cached_tokens_details": {"audio_tokens": 50, "image_tokens": 50},
    },
    "completion_tokens": 500,
    "completion_tokens_details": {"reasoning_tokens": 100, "audio_tokens": 150, "image_tokens": 50},
}
CLAUDE = {
    "input_tokens": 1000,
    "output_tokens": 500,
    "cache_creation_input_tokens": 100,
    "cache_creation": {"ephemeral_1h_input_tokens": 40},
    "server_tool_use": {"web_search_requests": 3},
}
FILES = {"usage": {"input_tokens": 1000, "output_tokens": 100}, "output": [{"type": "file_search_call"}] * 2}
IMAGES = {"usage": {"input_tokens": 10, "output_tokens": 100}, "data": [{}, {}, {}], "size": "1792x1024"}

# What a price of $7 for one word adds to a call that costs nothing else: by how many there are of it.
EFFECTS = {
    "input": ("chat", CHAT, 1000 - 300 - 150 - 50 - 100, "million"),
    "output": ("chat", CHAT, 500 - 100 - 150 - 50, "million"),
    "cached_input": ("chat", CHAT, 200, "million"),
    "cached_write": ("messages", CLAUDE, 60, "million"),
    "cached_write_1h": ("messages", CLAUDE, 40, "million"),
    "reasoning": ("chat", CHAT, 100, "million"),
    "audio_input": ("chat", CHAT, 150, "million"),
    "audio_output": ("chat", CHAT, 150, "million"),
    "cached_audio_input": ("chat", CHAT, 50, "million"),
    "image_input": ("chat", CHAT, 50, "million"),
    "image_output": ("chat", CHAT, 50, "million"),
    "cached_image_input": ("chat", CHAT, 50, "million"),
    "per_request": ("chat", CHAT, 1, "each"),
    "search": ("messages", CLAUDE, 3, "each"),
    "file_search": ("responses", FILES, 2, "each"),
    "per_minute": ("audio", {"type": "duration", "seconds": 90}, Decimal("1.5"), "each"),
    "per_second": ("videos", {"seconds": "8", "size": "720x1280"}, 8, "each"),
    "per_image": ("images", IMAGES, 3, "each"),
}
TOKENS = [
    name
    for name in UNITS
    if name not in ("characters", "per_minute", "per_second", "per_image", "per_request", "search", "file_search")
]


def tariffs(price: str, kind: str = "openai") -> Pricer:
    text = f"upstreams: {{mine: {{kind: {kind}, base_url: 'https://a.example', prices: {{m: {price}}}}}}}"
    upstream = load_policy(PolicySource("prices", None, text), {}).upstreams["mine"]
    return Pricer(upstream.kind, upstream.base_url, upstream.prices, "refuse")


def costs(price: str, endpoint: str, said: dict[str, Any]) -> Decimal:
    kind = "anthropic" if endpoint == "messages" else "openai"
    whole = said if "usage" in said or endpoint == "videos" else {"usage": said}
    usage = dialect_for(kind).usage(endpoint, json.loads(json.dumps({"model": "m", **whole})))
    assert usage is not None
    cost = tariffs(price, kind).cost(endpoint, usage, "m", at=NOW)
    assert cost.estimated == 0
    return Decimal(cost.nanos) / 10**9


def free(*, but: dict[str, int]) -> str:
    """A price of nothing for all tokens and tools but these."""
    prices = {**dict.fromkeys((*TOKENS, "search", "file_search"), 0), **but}
    return "{" + ", ".join(f"{name}: {value}" for name, value in prices.items()) + "}"


def test_every_word_of_a_price_has_a_test_of_its_effect() -> None:
    assert {item.name for item in fields(Charges)} == set(UNITS) == {*EFFECTS, "characters"}
    assert {item.name for item in fields(Price)} - set(UNITS) == {"above", "tiers", "sizes", "times", "least_seconds"}


@pytest.mark.parametrize("word", EFFECTS)
def test_a_word_prices_what_it_names_and_nothing_else(word: str) -> None:
    endpoint, said, number, per = EFFECTS[word]
    price = free(but={word: 7})
    if word == "per_minute":
        price = "{per_minute: 7}"
    expected = Decimal(7) * number / (10**6 if per == "million" else 1)
    assert costs(price, endpoint, said) == expected


def test_speech_is_priced_by_its_characters_and_images_that_report_nothing_by_their_number() -> None:
    spoken = tariffs("{characters: 15}").cost_of_request("audio", {"model": "m", "input": "x" * 1000}, at=NOW)
    assert spoken is not None
    assert (spoken.nanos, spoken.estimated) == (15_000_000, 0)
    drawn = tariffs("{per_image: 0.04, sizes: {512x512: {per_image: 0.02}}}")
    for size, nanos in (("1024x1024", 120_000_000), ("512x512", 60_000_000)):
        cost = drawn.cost_of_request("images", {"model": "m", "n": 3, "size": size}, at=NOW)
        assert cost is not None
        assert (cost.nanos, cost.estimated) == (nanos, 0)


def test_the_policys_price_of_an_image_goes_before_the_tables() -> None:
    text = "upstreams: {openai: {prices: {dall-e-3: {per_image: 1}}}}"
    mine = load_policy(PolicySource("prices", None, text), {}).upstreams["openai"].prices
    found = Pricer("openai", "https://api.openai.com/v1", mine, "refuse")
    cost = found.cost_of_request("images", {"model": "dall-e-3"}, at=NOW)
    assert cost is not None
    assert cost.nanos == 10**9


def test_what_a_price_does_not_say_costs_what_it_is_a_kind_of() -> None:
    heard = {**CHAT, "completion_tokens_details": {"reasoning_tokens": 100}}
    assert costs("{input: 1, output: 2}", "chat", heard) == Decimal("0.002")
    assert costs("{input: 1, output: 2, audio_input: 3}", "chat", heard) == Decimal("0.0024")  # cached audio too
    assert costs("{input: 1, output: 2, search: 0, cached_write: 3}", "messages", CLAUDE) == Decimal("0.0023")


@pytest.mark.parametrize("tier", sorted(PRICED_TIERS))
def test_a_tier_that_the_answer_names_has_a_price_of_its_own(tier: str) -> None:
    price = f"{{input: 2, output: 8, cached_input: 1, tiers: {{{tier}: {{input: 20, output: 80}}}}}}"
    said = {
        "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 500}}
    }
    assert costs(price, "chat", said) == Decimal("0.0095")
    assert costs(price, "chat", {**said, "service_tier": "default"}) == Decimal("0.0095")
    assert costs(price, "chat", {**said, "service_tier": tier}) == Decimal("0.0905")  # cached costs what it did


def test_a_tier_that_the_price_does_not_name_costs_what_it_always_does() -> None:
    said = {"usage": {"prompt_tokens": 1000}, "service_tier": "priority"}
    assert costs("{input: 2, output: 8, tiers: {flex: {input: 1}}}", "chat", said) == Decimal("0.002")


def test_above_so_many_tokens_of_input_all_of_the_call_costs_more() -> None:
    price = "{input: 2, output: 12, above: {200000: {input: 4, output: 18}, 400000: {input: 8}}}"
    for tokens, expected in ((200_000, "0.412"), (200_001, "0.818004"), (400_001, "3.218008")):
        assert costs(price, "chat", {"prompt_tokens": tokens, "completion_tokens": 1000}) == Decimal(expected)
    cached = {"prompt_tokens": 300_000, "prompt_tokens_details": {"cached_tokens": 100_000}}
    assert costs("{input: 2, output: 12, above: {200000: {cached_input: 3}}}", "chat", cached) == Decimal("0.7")


def test_a_price_holds_from_a_day_on_or_at_times_of_each_day() -> None:
    price = '{input: 1, output: 1, cached_input: 0, times: {"22:00-04:00": {input: 2}, 2027-01-01: {input: 3}}}'
    usage = dialect_for("openai").usage("chat", {"usage": {"prompt_tokens": 1000}})
    assert usage is not None
    for at, micros in (
        ("2026-11-29T21:59", 1000),
        ("2026-11-29T22:00", 2000),
        ("2026-11-30T03:59", 2000),
        ("2026-11-30T04:00", 1000),
        ("2027-01-01T00:00", 3000),
    ):
        when = datetime.fromisoformat(f"{at}+00:00").timestamp()
        assert tariffs(price).cost("chat", usage, "m", at=when).nanos == micros * 1000, at


def test_so_many_seconds_of_audio_are_billed_at_least() -> None:
    for seconds, dollars in ((3, "0.01"), (60, "0.06")):
        said = {"type": "duration", "seconds": seconds}
        assert costs("{per_minute: 0.06, least_seconds: 10}", "audio", said) == Decimal(dollars)


def test_an_image_costs_what_its_size_and_its_quality_do() -> None:
    drawn = tariffs("{per_image: 1, sizes: {a: {per_image: 2}, a hd: {per_image: 3}, b hd: {per_image: 4}}}")
    for body, dollars in (({}, 1), ({"size": "a"}, 2), ({"size": "a", "quality": "hd"}, 3), ({"size": "b"}, 1)):
        cost = drawn.cost_of_request("images", {"model": "m", **body}, at=NOW)
        assert cost is not None
        assert cost.nanos == dollars * 10**9
    unread = tariffs("{per_image: 1}").estimate_cost("images", "m", input_tokens=0, output_tokens=0, at=NOW)
    assert unread.nanos == 10**9


@pytest.mark.parametrize(
    ("price", "problem"),
    [
        ("{input: 1}", "output is missing"),
        ("{output: 1, per_request: 1}", "input is missing"),
        ("{cached_input: 1}", "input is missing"),
        ("{tiers: {flex: {input: 1, output: 1}}}", "input is missing"),
        ("{input: 1, output: 1, tiers: {cheap: {input: 1}}}", "no tier"),
        ("{input: 1, output: 1, above: {many: {input: 1}}}", "number of tokens"),
        ("{input: 1, output: 1, times: {2027-02-30: {input: 1}}}", "day"),
        ("{input: 1, output: 1, times: {noon: {input: 1}}}", "day"),
        ("{input: 1, output: 1, per_request: $1}", "number of dollars"),
        ("{input: 1, output: 1, cache_write: 1}", "cached_write"),
    ],
)
def test_half_a_price_is_a_fault_that_names_its_place(price: str, problem: str) -> None:
    with pytest.raises(PolicyError) as caught:
        tariffs(price)
    assert "upstreams.mine.prices.m" in str(caught.value)
    assert problem in str(caught.value)


def test_the_prices_in_the_references_comments_are_prices_that_come_back_as_they_were_written() -> None:
    assert len(SHOWN) == 11
    models = ", ".join(f"m{number}: {price}" for number, price in enumerate(SHOWN))
    policy = load_policy(PolicySource("shown", None, f"upstreams: {{openai: {{prices: {{{models}}}}}}}"), {})
    assert len(policy.upstreams["openai"].prices) == 11
    shown = render_policy(policy)
    assert load_policy(PolicySource("again", None, shown), {}).upstreams == policy.upstreams
    assert "cached_write: null" not in shown, "what a price does not say is left out"
