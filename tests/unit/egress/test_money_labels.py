"""Model names come from outside, and a metric's label is a series for ever: only names that the table or the policy
has are labels, however many are asked for."""

from __future__ import annotations

from decimal import Decimal

import pytest

from proxy.egress.billing.pricing.pricer import Pricer
from proxy.policy.schema import Price

MINE = {"my-model": Price(Decimal(1), Decimal(1))}


def tariffs(kind: str = "openai", base_url: str = "https://api.openai.com/v1") -> Pricer:
    return Pricer(kind, base_url, MINE, "highest")


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),  # the table has this very one
        ("gpt-4o-2099-01-01", "gpt-4o"),  # a snapshot goes by its model
        ("GPT-4o", "gpt-4o"),
        ("my-model", "my-model"),
        ("my-model-2026-01-31", "my-model"),
        ("gpt-4o:v1", None),
        ("gpt-4o:nitro", None),
        ("gpt-4o-2099-01-01:v1", None),
        ("gpt-4o-experimental", None),
        ("nobody/gpt-4o", None),
        ("my-model:v1", None),
        ("ft:gpt-4o-2024-08-06:acme::abc", "ft:gpt-4o"),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_a_label_is_a_name_of_the_table_or_of_the_policy(model: str, label: str | None) -> None:
    assert tariffs().model_label(model) == label


def test_a_hosts_own_names_are_labels_there() -> None:
    anthropic = tariffs("anthropic", "https://api.anthropic.com")
    assert anthropic.model_label("claude-sonnet-4-5-20250929") == "claude-sonnet-4-5"
    router = tariffs(base_url="https://openrouter.ai/api/v1")
    assert router.model_label("openai/gpt-4o") == "openai/gpt-4o"
    assert router.model_label("openai/gpt-4o:free") in (None, "openai/gpt-4o:free")


@pytest.mark.parametrize(
    "base_url", ["https://api.openai.com/v1", "https://openrouter.ai/api/v1", "http://localhost:1"]
)
def test_ten_thousand_names_from_outside_are_few_labels(base_url: str) -> None:
    found = tariffs(base_url=base_url)
    stems = ("gpt-4o", "claude-sonnet-4-5", "openai/gpt-4o", "gemini-2.5-flash", "o1", "computer-use", "llama-3")
    made = (
        f"{stem}{sign}{number}"
        for stem in stems
        for sign in ("-", ":", "@", "/", "-2025-01-", " ")
        for number in range(240)
    )
    assert len({found.model_label(name) for name in made}) < 60


def test_every_name_of_the_table_is_priced_as_before() -> None:
    assert tariffs().has_price("gpt-4o:v1")  # it costs what it is a variant of, and is counted as other
