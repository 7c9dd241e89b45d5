"""Whatever an answer has where usage should be: reading it raises nothing, and it never costs less than nothing."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.dialects import dialect_for
from proxy.policy.schema import Charges, Price

WORDS = (
    "usage tool_usage svg_usage image_gen web_search num_requests output tools type model iterations data seconds size"
    " input_tokens output_tokens prompt_tokens completion_tokens total_tokens reasoning_tokens cached_tokens text"
    " input_tokens_details output_tokens_details prompt_tokens_details completion_tokens_details image_tokens result"
    " cached_tokens_details cached_image_tokens audio_tokens cache_write_tokens_details ttl_12h_tokens thinking_tokens"
    " cache_creation cache_creation_input_tokens cache_read_input_tokens ephemeral_1h_input_tokens server_tool_use"
    " web_search_requests cost_in_usd_ticks service_tier speed inference_geo quality video_seconds"
)
NAMES = ["m", "gpt-5.4", "claude-haiku-4-5", "gpt-image-1.5", "sora-2", "image_generation", "image_generation_call"]
NAMES += ["message", "compaction", "advisor_message", "flex", "fast", "us", "1024x1024", "8"]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NAMES),
    st.integers(-(10**400), 10**400),
    st.integers(0, 10**6),
    st.floats(),
)
NODES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(WORDS.split()), inner, max_size=6)
    ),
    max_leaves=25,
)
BLOCKS = st.dictionaries(st.sampled_from(WORDS.split()), NODES, max_size=8)
MANY = st.one_of(st.lists(st.one_of(BLOCKS, LEAVES), max_size=4), NODES)
# Odd inside the shapes that are read, and odd in their places.
ANSWERS = st.one_of(
    BLOCKS,
    st.fixed_dictionaries(
        {"usage": st.one_of(BLOCKS, st.fixed_dictionaries({"iterations": MANY, "cache_creation": NODES}))},
        optional={
            "model": LEAVES,
            "tool_usage": st.one_of(NODES, st.fixed_dictionaries({"image_gen": BLOCKS, "web_search": BLOCKS})),
            "svg_usage": BLOCKS,
            "output": MANY,
            "tools": MANY,
            "data": MANY,
        },
    ),
)
ENDPOINTS = st.sampled_from(["chat", "responses", "compact", "embeddings", "audio", "images", "videos", "messages"])
DEAR = Charges(input=5, output=7, per_image=3, per_second=2)  # type: ignore[arg-type]
MINE = {"m": Price(1, 2, search=1, above={"100": DEAR}, tiers={"flex": DEAR}, sizes={"8": DEAR})}  # type: ignore[arg-type, dict-item]
KINDS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
FOUND = {kind: Pricer(kind, url, MINE, "highest") for kind, url in KINDS.items()}


@given(ANSWERS, ENDPOINTS, st.sampled_from(sorted(KINDS)), st.sampled_from([*NAMES, None]))
@example({"usage": {"iterations": [{"type": ["message"], "input_tokens": 1}]}}, "messages", "anthropic", "m")
@example({"usage": {}, "tools": [{"type": {}}], "output": [{"type": []}]}, "responses", "openai", "m")
@example({"seconds": 10**400, "size": []}, "videos", "openai", None)
@example({"seconds": "1e300", "size": "1024x1024"}, "videos", "openai", "sora-2")
@settings(deadline=None)
def test_no_answer_is_so_odd_that_it_has_no_price(answer: dict, endpoint: str, kind: str, asked: str | None) -> None:
    usage = dialect_for(kind).usage(endpoint, answer)
    if usage is None:
        return
    for one in (usage, *usage.parts):
        assert min(one.input, one.cached_input, one.output, one.reasoning) >= 0
    cost = FOUND[kind].cost(endpoint, usage, asked, at=1_795_000_000.0)
    assert 0 <= cost.estimated <= cost.nanos
    assert type(cost.nanos) is type(cost.estimated) is int


@given(ANSWERS, ENDPOINTS, st.sampled_from(sorted(KINDS)))
@settings(deadline=None)
def test_no_request_is_so_odd_that_it_cannot_be_reserved_for(body: dict, endpoint: str, kind: str) -> None:
    cost = FOUND[kind].cost_of_request(endpoint, body, at=1_795_000_000.0)
    assert cost is None or 0 <= cost.estimated <= cost.nanos


def test_a_thousand_iterations_are_told_apart_and_no_more() -> None:
    one = {"type": "message", "input_tokens": 1000, "output_tokens": 0}
    usage = dialect_for("anthropic").usage("messages", {"model": "m", "usage": {"iterations": [one] * 5000}})
    assert usage is not None
    assert len(usage.parts) == 1000
    assert usage.input == 1_000_000
