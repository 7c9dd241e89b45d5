"""What a call is made of, by the table of models: each part at its own model's price, tier and context.

Pages: platform.claude.com/docs/en/about-claude/pricing and developers.openai.com/api/docs/pricing, as
tests/unit/egress/test_money_prices.py has them.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from proxy.egress.billing.pricing.pricer import Cost, Pricer
from proxy.egress.dialects import dialect_for
from proxy.policy.schema import Price

NOW = 1_795_700_000.0  # 2026-11-26
URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}


def cost(kind: str, endpoint: str, answer: dict[str, Any], model: str | None = None) -> Cost:
    usage = dialect_for(kind).usage(endpoint, answer)
    assert usage is not None
    return Pricer(kind, URLS[kind], {}, "highest").cost(endpoint, usage, model or answer.get("model"), at=NOW)


def dollars(text: str) -> int:
    return int(Decimal(text) * 10**9)


def claude(model: str, *iterations: dict[str, Any], **usage: Any) -> dict[str, Any]:
    sums = {"input_tokens": 0, "output_tokens": 0}
    return {"model": model, "usage": {**sums, "iterations": list(iterations), **usage}}


def turn(before: int, after: int, kind: str = "message", **more: Any) -> dict[str, Any]:
    return {"type": kind, "input_tokens": before, "output_tokens": after, **more}


def test_one_iteration_costs_what_the_message_would_without_it() -> None:
    sums = {"input_tokens": 1000, "output_tokens": 100}
    split = {"cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_1h_input_tokens": 200}}
    for more in ({}, split, {"service_tier": "batch"}, {"speed": "fast"}, {"inference_geo": "us"}):
        plain = cost("anthropic", "messages", {"model": "claude-opus-5-5", "usage": {**sums, **more}})
        own = {key: value for key, value in more.items() if key.startswith("cache")}
        whole = cost("anthropic", "messages", claude("claude-opus-5-5", turn(1000, 100, **own), **sums, **more))
        assert whole == plain
        assert plain.nanos > 0


def test_a_long_context_is_each_iterations_own() -> None:
    """claude-haiku-5-5 costs more above 100,000 tokens of input: two turns below it do not, however much together."""
    turns = cost("anthropic", "messages", claude("claude-haiku-5-5", turn(60_000, 10), turn(60_000, 10)))
    once = cost("anthropic", "messages", claude("claude-haiku-5-5", turn(60_000, 10)))
    long = cost("anthropic", "messages", claude("claude-haiku-5-5", turn(120_000, 20)))
    assert turns.nanos == 2 * once.nanos < long.nanos


def test_an_advisor_costs_its_own_models_price_at_the_usual_speed_and_in_the_same_tier() -> None:
    advice = turn(1000, 100, "advisor_message", model="claude-opus-4-6")  # $5 and $25
    alone = cost("anthropic", "messages", claude("claude-haiku-4-5", turn(1000, 100)))
    assert cost("anthropic", "messages", claude("claude-haiku-4-5", turn(1000, 100), advice)) == Cost(
        alone.nanos + dollars("0.0075")
    )
    batch = {"service_tier": "batch"}
    whole = cost("anthropic", "messages", claude("claude-haiku-4-5", turn(1000, 100), advice, **batch))
    assert whole == Cost((alone.nanos + dollars("0.0075")) // 2)
    fast = cost("anthropic", "messages", claude("claude-opus-5-5", turn(1000, 100), advice, speed="fast"))
    assert fast == Cost(dollars("0.012") + dollars("0.0075"))


def test_searches_of_a_message_with_iterations_are_paid_once() -> None:
    plain = claude("claude-haiku-4-5", turn(1000, 100), turn(1000, 100))
    searching = claude("claude-haiku-4-5", turn(1000, 100), turn(1000, 100), server_tool_use={"web_search_requests": 3})
    more = cost("anthropic", "messages", searching).nanos - cost("anthropic", "messages", plain).nanos
    assert more == dollars("0.03")


def test_a_model_that_the_policy_prices_says_nothing_of_an_advisor() -> None:
    advice = turn(1000, 100, "advisor_message", model="claude-opus-4-6")
    mine = {"claude-haiku-4-5": Price(Decimal(0), Decimal(0))}
    usage = dialect_for("anthropic").usage("messages", claude("claude-haiku-4-5", turn(1000, 100), advice))
    assert usage is not None
    found = Pricer("anthropic", URLS["anthropic"], mine, "highest")
    assert found.cost("messages", usage, "claude-haiku-4-5", at=NOW) == Cost(dollars("0.0075"))


def test_pictures_of_a_responses_call_cost_the_image_models_price_whatever_the_tier_of_the_text() -> None:
    image = {"input_tokens": 50, "input_tokens_details": {"text_tokens": 20, "image_tokens": 30}, "output_tokens": 1000}
    answer = {
        "model": "gpt-5.4-mini",
        "usage": {"input_tokens": 1000, "output_tokens": 1000},
        "tools": [{"type": "image_generation", "model": "gpt-image-1"}],
        "tool_usage": {"image_gen": image, "web_search": {"num_requests": 0}},
    }
    assert cost("openai", "responses", answer) == Cost(dollars("0.00525") + dollars("0.0404"))
    assert cost("openai", "responses", {**answer, "service_tier": "flex"}) == Cost(
        dollars("0.002625") + dollars("0.0404")
    )
    unnamed = cost("openai", "responses", {**answer, "tools": []})
    assert 0 < unnamed.estimated < unnamed.nanos, "a model that nobody names costs what the dearest does"


def test_what_was_cached_of_a_pictures_question_costs_less() -> None:
    image = {
        "input_tokens": 1000,
        "input_tokens_details": {"text_tokens": 400, "image_tokens": 600},
        "cached_tokens": 500,
        "cached_tokens_details": {"cached_text_tokens": 200, "cached_image_tokens": 300},
        "output_tokens": 0,
    }
    answer = {
        "model": "gpt-5.4-mini",
        "usage": {},
        "tools": [{"type": "image_generation", "model": "gpt-image-1"}],
        "tool_usage": {"image_gen": image},
    }
    # $5 and $1.25 of text, $10 and $2.50 of images: developers.openai.com/api/docs/models/gpt-image-1
    assert cost("openai", "responses", answer) == Cost(
        dollars("0.001") + dollars("0.00025") + dollars("0.003") + dollars("0.00075")
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ft:gpt-4o-2024-08-06:acme::Ab1", "0.017625"),
        ("ft:gpt-4o-mini-2024-07-18:acme::Ab1", "0.00141"),
        ("ft:gpt-4.1-2025-04-14:acme::Ab1", "0.01365"),
        ("ft:gpt-4.1-mini-2025-04-14:acme::Ab1", "0.00364"),
        ("ft:gpt-4.1-nano-2025-04-14:acme::Ab1", "0.00091"),
        ("ft:o4-mini-2025-04-16:acme::Ab1", "0.0182"),
    ],
)
def test_a_fine_tune_has_its_price_for_what_was_cached_too(model: str, expected: str) -> None:
    """1,000 tokens of input, of which 600 were cached, and 1,000 of output, as the page has them."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 600}}
    found = cost("openai", "chat", {"model": model, "usage": usage})
    assert found.estimated == 0
    assert found.nanos == dollars(expected)


@pytest.mark.parametrize(
    ("model", "size", "expected", "sure"),
    [
        ("sora-2", "720x1280", "0.8", True),
        ("sora-2-2025-12-08", "1280x720", "0.8", True),
        ("sora-2-pro", "1792x1024", "4", True),
        ("sora-2-pro", "1920x1080", "5.6", True),
        ("sora-2", "8x8", "0.8", False),  # of that model the dearest
        ("veo", "720x1280", "5.6", False),  # of all models the dearest
        (None, "720x1280", "0.8", True),
    ],
)
def test_a_video_costs_by_its_model_its_size_and_its_seconds(
    model: str | None, size: str, expected: str, sure: bool
) -> None:
    """8 seconds: developers.openai.com/api/docs/pricing, Sora, 2026-03."""
    found = cost("openai", "videos", {"model": model, "seconds": "8", "size": size})
    assert found == Cost(dollars(expected), 0 if sure else dollars(expected))


def test_a_video_model_is_known_and_one_without_a_price_is_the_policys_to_say() -> None:
    strict = Pricer("openai", URLS["openai"], {}, "refuse")
    assert not strict.refuses_model("sora-2")
    assert strict.refuses_model("veo")
    usage = dialect_for("openai").usage("videos", {"model": "veo", "seconds": "8"})
    assert usage is not None
    assert Pricer("openai", URLS["openai"], {}, "zero").cost("videos", usage, "veo", at=NOW) == Cost(0)
