"""The price table is what `make prices` writes, and says what genai-prices says, model by model."""

import json
import subprocess
import sys
import tracemalloc
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from importlib.metadata import version
from pathlib import Path

import pytest
from genai_prices import types
from genai_prices.data import providers

from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.billing.pricing.table import PriceTable, price_table, table_age, table_date, table_version
from proxy.egress.dialects import Usage

ROOT = Path(__file__).parents[3]
FILE = ROOT / "proxy" / "egress" / "billing" / "pricing" / "prices.json"
PROVIDERS = {one.id: one for one in providers}
HOSTS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "openrouter": "https://openrouter.ai/api/v1",
    "azure": "https://mine.openai.azure.com/openai/v1",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "together": "https://api.together.xyz/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "x-ai": "https://api.x.ai/v1",
    "perplexity": "https://api.perplexity.ai",
    "cerebras": "https://api.cerebras.ai/v1",
    "moonshotai": "https://api.moonshot.ai/v1",
    "cohere": "https://api.cohere.ai/compatibility/v1",
    "zai": "https://api.z.ai/api/paas/v4",
}
# Before and after a change of price, in DeepSeek's night and day, and after all that is announced.
TIMES = [datetime(2026, 8, 20, 23, 59, tzinfo=UTC), datetime(2026, 11, 26, 2, 30, tzinfo=UTC)]
TIMES += [datetime(2026, 11, 26, 17, 0, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC)]
# In genai-prices' words, and what else ours says of it.
TOKENS = [
    {"input_tokens": 0, "output_tokens": 0},
    {"input_tokens": 1000, "output_tokens": 333},
    {
        "input_tokens": 1000,
        "cache_read_tokens": 300,
        "cache_write_tokens": 100,
        "cache_write_1h_tokens": 40,
        "output_tokens": 500,
        "output_reasoning_tokens": 100,
    },
    {"input_tokens": 300_001, "cache_read_tokens": 250_000, "output_tokens": 7},
    {"input_tokens": 77_777, "output_tokens": 1, "web_searches": 3},
]
RICH = {
    "input_tokens": 1000,
    "cache_read_tokens": 300,
    "input_audio_tokens": 200,
    "cache_audio_read_tokens": 90,
    "input_image_tokens": 150,
    "cache_image_read_tokens": 60,
    "output_tokens": 400,
    "output_audio_tokens": 130,
    "output_image_tokens": 70,
}
# Supplemented by us: tests/unit/egress/test_money_prices.py has their sources.
OURS = {"gpt-4o-audio-preview", "gpt-4o-mini-audio-preview", "ft:gpt-4o", "ft:gpt-4o-mini"}


def usage_of(usage, model, **more):
    """The same as an answer reports it."""
    get = usage.get
    details = {
        "prompt_tokens_details": {
            "cached_tokens": get("cache_read_tokens", 0),
            "cache_write_tokens": get("cache_write_tokens", 0),
            "audio_tokens": get("input_audio_tokens", 0),
            "image_tokens": get("input_image_tokens", 0),
            "cached_tokens_details": {
                "audio_tokens": get("cache_audio_read_tokens", 0),
                "image_tokens": get("cache_image_read_tokens", 0),
            },
        },
        "completion_tokens_details": {
            "audio_tokens": get("output_audio_tokens", 0),
            "image_tokens": get("output_image_tokens", 0),
        },
        "cache_creation": {"ephemeral_1h_input_tokens": get("cache_write_1h_tokens", 0)},
        "server_tool_use": {"web_search_requests": get("web_searches", 0)},
        **more,
    }
    reasoning = get("output_reasoning_tokens", 0)
    return Usage(
        get("input_tokens", 0), get("cache_read_tokens", 0), get("output_tokens", 0), reasoning, model, details
    )


def nanos(dollars):
    return int((dollars * 10**9).to_integral_value(ROUND_HALF_UP))


def names(clause):
    if isinstance(clause, types.ClauseEquals):
        yield clause.equals
    if isinstance(clause, types.ClauseStartsWith):
        yield clause.starts_with
    for part in getattr(clause, "or_", None) or ():
        yield from names(part)


def reference(provider, model):
    """A name under which both find this very model."""
    tried = (model.id, *names(model.match))
    return next((name for name in tried if provider.find_model(name) is model), None)


def priced(model, at):
    return {key for key, value in model.get_prices(at).__dict__.items() if value is not None}


def theirs(provider, model, usage, at, context=None):
    known = types.Usage(**usage)
    return model.calc_price(known, provider, genai_request_timestamp=at, price_context=context).total_price


def sure(cost):
    assert cost.estimated == 0
    return cost.nanos


@pytest.mark.parametrize("section", HOSTS)
def test_every_model_costs_what_genai_prices_says(section):
    provider = PROVIDERS[section]
    tariffs = Pricer("anthropic" if section == "anthropic" else "openai", HOSTS[section], {}, "zero")
    seen = 0
    for model in provider.models:
        name = reference(provider, model)
        if name is None or model.id in OURS:
            continue
        seen += 1
        # Former prices are kept of the two dialects' vendors alone.
        for at in TIMES if section in ("openai", "anthropic") else TIMES[1:]:
            units = priced(model, at)
            if not units or "audio_hours" in units or "input_mchars" in units:
                continue
            usages = (
                [*TOKENS, RICH] if units & {"input_audio_mtok", "input_image_mtok", "output_audio_mtok"} else TOKENS
            )
            for usage in usages:
                if "web_searches" in usage and "web_searches_kcount" not in units:
                    continue
                cost = tariffs.cost("responses", usage_of(usage, name), name, at=at.timestamp())
                assert cost.nanos == nanos(theirs(provider, model, usage, at)), (name, at, usage)
    assert seen > 0.9 * len(provider.models)


@pytest.mark.parametrize("section", ["openai", "anthropic", "google", "groq", "mistral", "x-ai"])
def test_every_tier_costs_what_genai_prices_says(section):
    provider, at, seen = PROVIDERS[section], TIMES[1], 0
    tariffs = Pricer("anthropic" if section == "anthropic" else "openai", HOSTS[section], {}, "zero")
    for model in provider.models:
        name = reference(provider, model)
        if "input_mtok" not in priced(model, at):
            continue
        for variant in model.price_variants or ():
            (key, value), *_ = variant.when.items()
            reported = {"speed": value} if key == "speed" else {"service_tier": value}
            for usage in TOKENS[1:4]:
                cost = tariffs.cost("responses", usage_of(usage, name, **reported), name, at=at.timestamp())
                assert sure(cost) == nanos(theirs(provider, model, usage, at, variant.when)), (name, variant.when)
                seen += 1
    assert seen


@pytest.mark.parametrize("section", ["openai", "groq", "mistral"])
def test_audio_by_the_hour_costs_what_genai_prices_says(section):
    provider, at, seen = PROVIDERS[section], TIMES[1], 0
    tariffs = Pricer("openai", HOSTS[section], {}, "zero")
    for model in provider.models:
        if "audio_hours" not in priced(model, at) or "output_mtok" in priced(model, at):
            continue
        for seconds in (0.5, 9, 61, 3600, 4000.125):
            usage = Usage(0, 0, 0, 0, None, {"type": "duration", "seconds": seconds})
            expected = theirs(provider, model, {"audio_seconds": seconds, "input_audio_seconds": seconds}, at)
            assert sure(tariffs.cost("audio", usage, model.id, at=at.timestamp())) == nanos(expected), model.id
            seen += 1
    assert seen


def test_the_table_is_what_make_prices_writes():
    assert table_version() == version("genai-prices")
    done = subprocess.run([sys.executable, ROOT / "deploy" / "prices.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tables_date_is_a_day_of_its_source_that_has_come():
    head = json.loads(FILE.read_text())
    assert date(2026, 10, 1) <= table_date() <= date.fromisoformat(head["taken"])
    midnight = datetime.combine(table_date(), datetime.min.time(), UTC).timestamp()
    assert table_age(midnight + 3600) == 3600
    assert table_age(midnight - 3600) == 0


def test_the_table_is_small():
    assert FILE.stat().st_size < 150_000
    text = FILE.read_text()
    tracemalloc.start()
    try:
        kept = PriceTable(text)
        kept.section("openai").find("gpt-4o")
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 3 * 1024 * 1024


def test_prices_have_no_more_decimals_than_are_counted_exactly():
    for row in json.loads(FILE.read_text(), parse_float=Decimal)["prices"]:
        for price in row.values():
            for one in price if isinstance(price, list) else [price]:
                value = one[1] if isinstance(one, list) else one
                assert value >= 0
                assert Decimal(value) * 10**12 % 1 == 0


def test_no_matcher_of_the_table_is_unknown():
    for name in price_table().vendors.values():
        assert price_table().section(name).find("no such model") is None
