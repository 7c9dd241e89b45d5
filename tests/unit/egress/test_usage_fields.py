"""Each number that the vendors' SDKs know as usage is priced, or named here with the reason why it is not.

A field that a newer `openai` or `anthropic` has fails these tests until somebody decides: read it in
proxy/egress/dialects (usage.py, iterations.py), or name it below.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.dialects import dialect_for
from proxy.policy.loading import PolicySource, load_policy

NAMES = re.compile("Usage|TokensDetails?|TokenDetails?")
# Reports to an organisation and its administrators: no answer to a call of an app's has them.
REPORTS = ("openai.types.admin.", "anthropic.types.organization.", "anthropic.types.beta.organization.")
Path = tuple[str, ...]

# ── where the types stand in an answer ───────────────────────────────────────────────────────

# Type → dialect, endpoint, and the answer that has it. Nested types are walked from these.
ANSWERS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "openai.types.completion_usage.CompletionUsage": ("openai", "chat", lambda u: {"usage": u}),
    "openai.types.create_embedding_response.Usage": ("openai", "embeddings", lambda u: {"usage": u}),
    "openai.types.decision.Usage": ("openai", "decisions", lambda u: {"usage": u}),
    "openai.types.responses.response_usage.ResponseUsage": ("openai", "responses", lambda u: {"usage": u}),
    "openai.types.beta.beta_response_usage.BetaResponseUsage": ("openai", "compact", lambda u: {"usage": u}),
    **dict.fromkeys(
        ("openai.types.responses.response.ToolUsage", "openai.types.beta.beta_response.ToolUsage"),
        (
            "openai",
            "responses",
            lambda u: {"usage": {}, "tool_usage": u, "tools": [{"type": "image_generation", "model": "m"}]},
        ),
    ),
    **dict.fromkeys(
        (
            "openai.types.responses.response_output_item.ImageGenerationCallSvgUsage",
            "openai.types.beta.beta_response_output_item.ImageGenerationCallSvgUsage",
        ),
        (
            "openai",
            "responses",
            lambda u: {"usage": {}, "output": [{"type": "image_generation_call", "svg_usage": {**u, "model": "m"}}]},
        ),
    ),
    "openai.types.images_response.SvgUsage": ("openai", "images", lambda u: {"svg_usage": {**u, "model": "m"}}),
    **dict.fromkeys(
        (
            "openai.types.images_response.Usage",
            "openai.types.image_gen_completed_event.Usage",
            "openai.types.image_edit_completed_event.Usage",
        ),
        ("openai", "images", lambda u: {"usage": u}),
    ),
    **dict.fromkeys(
        (
            "openai.types.audio.transcription.UsageTokens",
            "openai.types.audio.transcription.UsageDuration",
            "openai.types.audio.transcription_diarized.UsageTokens",
            "openai.types.audio.transcription_diarized.UsageDuration",
            "openai.types.audio.transcription_text_done_event.Usage",
            "openai.types.audio.transcription_verbose.Usage",
        ),
        ("openai", "audio", lambda u: {"usage": u}),
    ),
    **dict.fromkeys(
        (
            "anthropic.types.usage.Usage",
            "anthropic.types.message_delta_usage.MessageDeltaUsage",
            "anthropic.types.beta.beta_usage.BetaUsage",
            "anthropic.types.beta.beta_message_delta_usage.BetaMessageDeltaUsage",
        ),
        ("anthropic", "messages", lambda u: {"usage": u}),
    ),
}

# ── what is named instead ────────────────────────────────────────────────────────────────────

SUM = "the sum of other fields; what it has beyond them is priced"
REST = "the rest of what contains it, priced as such"
PREDICTED = "a part of completion_tokens, at their price"
FREE = "free besides its tokens (platform.claude.com/docs/en/agents-and-tools/tool-use/web-fetch-tool)"
LASTING = "parts of cache_write_tokens; a longer one makes that price an estimate, the table having one"

# By the end of their path.
NOT_PRICED: dict[Path, str] = {
    ("total_tokens",): SUM,
    ("text_tokens",): REST,
    ("cached_text_tokens",): REST,
    ("accepted_prediction_tokens",): PREDICTED,
    ("rejected_prediction_tokens",): PREDICTED,
    ("web_fetch_requests",): FREE,
    ("cache_write_tokens_details", "ttl_12h_tokens"): LASTING,
    ("cache_write_tokens_details", "ttl_30m_tokens"): LASTING,
}

BATCHES = "batches pass unmetered: their usage comes with a file, hours later"
SOCKETS = "a WebSocket passes unmetered; it is refused when no money is left"
THREADS = "threads and runs pass unmetered"
EVALS = "evals pass unmetered"
AGENTS = "sessions of agents that the vendor runs pass unmetered"
ASKED = "what an app repeats of an earlier answer, in its request or in a conversation that it reads"

# By the beginning of their module and name.
NOT_METERED: dict[str, str] = {
    "openai.types.batch_usage.": BATCHES,
    "openai.types.realtime.": SOCKETS,
    "openai.types.beta.realtime.": SOCKETS,
    "openai.types.live.": SOCKETS,
    "openai.types.beta.threads.": THREADS,
    "openai.types.evals.": EVALS,
    "openai.types.beta.token_usage.": AGENTS,
    "anthropic.types.beta.beta_managed_agents_": AGENTS,
    "anthropic.types.beta.sessions.": AGENTS,
    "anthropic.types.beta.beta_dream_usage.": AGENTS,
    "openai.types.responses.response_item.": ASKED,
    "openai.types.responses.response_input_item.": ASKED,
    "openai.types.beta.beta_response_item.": ASKED,
    "openai.types.beta.beta_response_input_item.": ASKED,
    "openai.types.conversations.": ASKED,
}


# ── the walk ─────────────────────────────────────────────────────────────────────────────────


@cache
def models() -> tuple[type[BaseModel], ...]:
    """Every model of both SDKs, but for reports."""
    found: list[type[BaseModel]] = []
    for package in ("openai", "anthropic"):
        root = importlib.import_module(f"{package}.types")
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if module.name.startswith(REPORTS):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                members = vars(importlib.import_module(module.name)).values()
            for one in members:
                if isinstance(one, type) and issubclass(one, BaseModel) and one.__module__ == module.name:
                    found.append(one)
    return tuple(found)


def name(model: type[BaseModel]) -> str:
    return f"{model.__module__}.{model.__qualname__}"


def inside(hint: Any) -> Iterator[type]:
    """The types that an annotation is made of, through options, lists and unions."""
    if isinstance(hint, type):
        yield hint
    for argument in get_args(hint):
        yield from inside(argument)


def numbers(model: type[BaseModel], path: Path = (), above: tuple[type, ...] = ()) -> Iterator[Path]:
    """The paths of a type's numeric fields, those of what is nested in it too."""
    if model in above:
        return
    for key, field in model.model_fields.items():
        for one in set(inside(field.annotation)):
            if issubclass(one, BaseModel):
                yield from numbers(one, (*path, key), (*above, model))
            elif one in (int, float):
                yield (*path, key)


@cache
def usages() -> dict[str, type[BaseModel]]:
    """Types that are usage by their name, or by the name of the field that they stand in; with numbers in them."""
    found: dict[str, type[BaseModel]] = {}
    for model in models():
        if NAMES.search(model.__name__):
            found[name(model)] = model
        for key, field in model.model_fields.items():
            if "usage" in key:
                found |= {name(one): one for one in inside(field.annotation) if issubclass(one, BaseModel)}
    return {key: model for key, model in found.items() if next(numbers(model), None)}


def nested(model: type[BaseModel]) -> Iterator[str]:
    for field in model.model_fields.values():
        for one in inside(field.annotation):
            if issubclass(one, BaseModel):
                yield name(one)
                yield from nested(one)


FIELDS = [(key, path) for key in ANSWERS if key in usages() for path in sorted(set(numbers(usages()[key])))]


def reason(path: Path) -> str | None:
    return next((why for end, why in NOT_PRICED.items() if path[-len(end) :] == end), None)


def test_every_usage_type_of_the_sdks_is_in_a_table() -> None:
    assert len(usages()) > 50, "the walk finds the SDKs' types"
    known = {one for key in ANSWERS if key in usages() for one in (key, *nested(usages()[key]))}
    unknown = [key for key in usages() if key not in known and not key.startswith(tuple(NOT_METERED))]
    assert unknown == []


def test_no_table_names_what_the_sdks_do_not_have() -> None:
    assert [key for key in ANSWERS if key not in usages()] == []
    assert [start for start in NOT_METERED if not any(key.startswith(start) for key in usages())] == []
    ends = [end for end in NOT_PRICED if not any(path[-len(end) :] == end for _, path in FIELDS)]
    assert ends == []


# ── what a field changes ─────────────────────────────────────────────────────────────────────

# Each thing at a price of its own, so that no two fields can be taken for one another.
PRICES = (
    "{input: 1, output: 100, cached_input: 0.3, cached_write: 1.7, cached_write_1h: 2.9, reasoning: 170,"
    " audio_input: 13, audio_output: 190, cached_audio_input: 3.1, image_input: 11, image_output: 230,"
    " cached_image_input: 2.3, per_minute: 0.07, search: 0.01, file_search: 0.02}"
)
SUMS = ("input_tokens", "output_tokens", "prompt_tokens", "completion_tokens")


def put(tree: dict[str, Any], path: Path, value: int) -> None:
    """At a path; what is a list in the answer (`iterations`) is a list of one, whose kind leaves it outside."""
    for key in path[:-1]:
        if key == "iterations":
            (tree,) = tree.setdefault(key, [{"type": "compaction"}])
        else:
            tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def cost(key: str, path: Path, *, number: int) -> int:
    """Of an answer with large sums and one detail; of kinds of cached tokens, with such tokens that were cached."""
    model = usages()[key]
    kind, endpoint, answer = ANSWERS[key]
    usage: dict[str, Any] = {}
    for one in numbers(model):
        if one[-1] in SUMS:
            put(usage, one, 1000)
        elif "cached_tokens_details" in path and one[-1] == "cached_tokens":
            put(usage, one, 500)
        elif (
            "cached_tokens_details" in path
            and one[-1] in ("image_tokens", "audio_tokens")
            and one[-2:-1] != path[-2:-1]
        ):
            put(usage, one, 400)
    put(usage, path, number)
    found = dialect_for(kind).usage(endpoint, json.loads(json.dumps({"model": "m", **answer(usage)})))
    assert found is not None
    return tariffs(kind).cost(endpoint, found, "m", at=1_795_000_000.0).nanos


@cache
def tariffs(kind: str) -> Pricer:
    text = f"upstreams: {{mine: {{kind: {kind}, base_url: 'https://a.example', prices: {{m: {PRICES}}}}}}}"
    upstream = load_policy(PolicySource("prices", None, text), {}).upstreams["mine"]
    return Pricer(upstream.kind, upstream.base_url, upstream.prices, "refuse")


@pytest.mark.parametrize(
    ("key", "path"), FIELDS, ids=[f"{key.split('.')[-1]}.{'.'.join(path)}" for key, path in FIELDS]
)
def test_a_number_that_is_reported_changes_the_price_or_is_named_with_the_reason(key: str, path: Path) -> None:
    changes = cost(key, path, number=100) != cost(key, path, number=300)
    why = reason(path)
    if why is None:
        assert changes, f"{key}: {'.'.join(path)} is reported and not read"
    elif why != SUM:
        assert not changes, f"{key}: {'.'.join(path)} is read, and named as not priced: {why}"
