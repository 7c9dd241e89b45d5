"""Tokens by bytes: learnt from what vendors report, bounded, and never fooled by an image's base64."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.billing.pricing.pricer import DEFAULT_MAX_OUTPUT, Pricer
from proxy.egress.billing.token_estimator import MAX_ANSWERS, MAX_MODELS, TokenEstimator, count_text_bytes
from proxy.egress.dialects import Usage


def used(before, after, reasoning=0):
    return Usage(before, 0, after, reasoning, None)


def test_four_bytes_are_a_token_until_usage_tells():
    estimator = TokenEstimator()
    assert estimator.input_tokens("gpt-4o", 4000) == 1000
    assert estimator.input_tokens(None, 4001) == 1001
    assert estimator.output_tokens("gpt-4o", 0) == 0
    assert estimator.input_tokens("gpt-4o", -5) == 0


def test_the_factor_is_learnt_by_model():
    estimator = TokenEstimator()
    for _ in range(40):
        estimator.learn("chinese", body_bytes=3000, usage=used(2000, 100), text_bytes=150)
    assert estimator.input_tokens("chinese", 3000) == pytest.approx(2000, rel=0.01)
    assert estimator.output_tokens("chinese", 150) == pytest.approx(100, rel=0.02)
    assert estimator.input_tokens("other", 3000) == 750


def test_what_was_thought_says_nothing_about_the_text():
    estimator = TokenEstimator()
    for _ in range(40):
        estimator.learn("o3", body_bytes=400, usage=used(100, 1100, reasoning=1000), text_bytes=400)
    assert estimator.output_tokens("o3", 400) == pytest.approx(100, rel=0.01)
    assert estimator.typical_output_tokens("o3") == 1100, "but it is paid for"


def test_an_absurd_report_moves_the_factor_by_little():
    estimator = TokenEstimator()
    estimator.learn("m", body_bytes=4_000_000, usage=used(1, 1), text_bytes=4_000_000)
    assert estimator.input_tokens("m", 4000) >= 4000 / 16
    estimator.learn("m", body_bytes=1, usage=used(10**30, 10**30), text_bytes=None)
    assert estimator.input_tokens("m", 4000) <= 4000
    estimator.learn("m", body_bytes=0, usage=used(0, 0), text_bytes=0)
    estimator.learn("m", body_bytes=-1, usage=used(-1, -1), text_bytes=-1)
    assert estimator.input_tokens("m", 4000) <= 4000


def test_typical_is_the_95th_percentile_of_the_last_answers():
    estimator = TokenEstimator()
    assert estimator.typical_output_tokens("gpt-4o") is None
    for length in range(1, 101):
        estimator.learn("gpt-4o", body_bytes=10, usage=used(1, length), text_bytes=None)
    last = range(101 - MAX_ANSWERS, 101)
    assert estimator.typical_output_tokens("gpt-4o") == last[int(MAX_ANSWERS * 0.95)]


def test_most_is_what_the_model_can_write():
    """developers.openai.com/api/docs/models and platform.claude.com/docs/en/about-claude/models/overview, 2026-11."""
    tariffs = Pricer("openai", "https://api.openai.com/v1", {}, "highest")
    for model, most in {
        "gpt-4o-2024-08-06": 16_384,
        "gpt-4.1-mini": 32_768,
        "o3": 100_000,
        "gpt-5.4": 128_000,
        "gpt-4": 8_192,
        "gpt-4-turbo": 4_096,
        "gpt-5-pro": 272_000,
        "mystery": DEFAULT_MAX_OUTPUT,
        None: DEFAULT_MAX_OUTPUT,
    }.items():
        assert tariffs.max_output_tokens(model) == most, model
    claude = Pricer("anthropic", "https://api.anthropic.com", {}, "highest")
    for model, most in {
        "claude-3-haiku-20240307": 4_096,
        "claude-3-5-haiku-latest": 8_192,
        "claude-haiku-4-5": 64_000,
        "claude-sonnet-4-6": 128_000,
        "claude-sonnet-5-5": 128_000,
    }.items():
        assert claude.max_output_tokens(model) == most, model


def test_only_so_many_models_are_remembered():
    estimator = TokenEstimator()
    for number in range(MAX_MODELS + 10):
        estimator.learn(f"model-{number}", body_bytes=1000, usage=used(1000, 5), text_bytes=None)
        estimator.learn("kept", body_bytes=1000, usage=used(1000, 5), text_bytes=None)
    assert repr(estimator) == f"<TokenEstimator {MAX_MODELS} models>"
    assert estimator.typical_output_tokens("model-0") is None
    assert estimator.typical_output_tokens("kept") == 5


def test_an_upload_of_audio_counts_by_its_length():
    # An hour of speech at 32 kbit/s is 14.4 MB and about 60,000 tokens (1,000 a minute: $6 a million, $0.006 a minute).
    assert TokenEstimator().input_tokens(None, 14_400_000, endpoint="audio") == pytest.approx(61_000, rel=0.05)


PICTURE = "data:image/png;base64," + "A" * 3_000_000


@pytest.mark.parametrize(
    ("body", "least", "most"),
    [
        ({}, 0, 0),
        ({"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 4000}]}, 4000, 4060),
        ({"messages": [{"content": "ж" * 1000}]}, 2000, 2050),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]}, 4000, 4050),
        ({"input": [{"content": [{"type": "input_image", "image_url": PICTURE}]}]}, 4000, 4050),
        ({"messages": [{"content": [{"type": "image", "source": {"data": "A" * 10**6}}]}]}, 4000, 4050),
        ({"messages": [{"content": [{"type": "text", "text": PICTURE}]}]}, 4000, 4050),
        ({"a": [{"type": "input_audio", "input_audio": {"data": "A" * 80_000, "format": "wav"}}]}, 10_000, 10_060),
        ({"a": [{"type": "input_file", "file_data": "data:application/pdf;base64," + "A" * 80_000}]}, 10_000, 10_060),
        ({"input": {"data": "x" * 1000}}, 1000, 1020),  # a tool's own word, and text
        ({"input": [[1, 2, 3] * 1000]}, 12_000, 12_010),  # tokens already
        ({"input": ["x" * 10] * 100}, 1000, 1010),
        ({"input": "\ud800" * 10}, 10, 20),
    ],
)  # fmt: skip
def test_text_counts_by_its_bytes_and_data_by_what_they_hold(body, least, most):
    assert least <= count_text_bytes(body) <= most


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["data", "format", "file_data", "type", "input", "media_type"]), JSON))
@settings(deadline=None)
def test_no_body_is_too_odd_to_be_measured(body):
    assert count_text_bytes(body) >= 0


def test_a_body_nested_without_end_is_measured():
    body = {"a": []}
    for _ in range(100_000):
        body = {"a": body}
    assert count_text_bytes(body) > 0
