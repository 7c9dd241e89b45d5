"""Usage as Anthropic reports it, and the iterations that a message was made of.

platform.claude.com/docs/en/build-with-claude/compaction, and …/agents-and-tools/tool-use/advisor-tool: what is billed
is the sum of the iterations. The fields above them leave out what compaction and an advisor took, and have the
input of the first iteration alone.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from proxy.egress.dialects.base import Json, Usage, as_mapping, as_text, model_name, to_count

MAX_ITERATIONS = 1_000  # of one message, that are told apart; no loop of theirs is that long
ANSWER_KINDS = frozenset(("message", "fallback_message"))  # the iterations that the fields above have too
ADVISOR_KIND = "advisor_message"
_PRICED_BY = ("service_tier", "inference_geo")  # of the whole message, and each of its parts
_SPEED = "speed"  # that of the model that was asked, not its advisor's


def anthropic_usage(found: Json, model: str | None) -> Usage:
    """Their input_tokens leave out what the cache read or wrote; ours have all of them.

    Tokens are those of the message's own model; each iteration is a part, with the model that it names.
    """
    whole = _token_usage(found, model)
    iterations = found.get("iterations")
    parts = _iteration_usages(found, iterations, model) if isinstance(iterations, list) and iterations else []
    if not parts:
        return whole
    parts = _spread_reasoning(parts, whole)
    # An advisor's or a fallback's tokens are another model's, at another price.
    own = [part for part in parts if part.model == model]
    return replace(
        whole,
        input=sum(part.input for part in own),
        cached_input=sum(part.cached_input for part in own),
        output=sum(part.output for part in own),
        parts=tuple(parts),
    )


def _token_usage(found: Json, model: str | None) -> Usage:
    read, wrote = to_count(found.get("cache_read_input_tokens")), _cache_write_tokens(found)
    fresh, thought = to_count(found.get("input_tokens")), as_mapping(found.get("output_tokens_details"))
    reasoning = to_count(thought.get("thinking_tokens"))
    return Usage(fresh + read + wrote, read, to_count(found.get("output_tokens")), reasoning, model, dict(found))


def _cache_write_tokens(found: Json) -> int:
    """A message_delta repeats the sum alone, message_start has the split too."""
    split = as_mapping(found.get("cache_creation"))
    return max(
        to_count(found.get("cache_creation_input_tokens")),
        to_count(split.get("ephemeral_5m_input_tokens")) + to_count(split.get("ephemeral_1h_input_tokens")),
    )


def _iteration_usages(found: Json, iterations: list[object], model: str | None) -> list[Usage]:
    parts, answers = [], []
    shared = {key: found[key] for key in _PRICED_BY if found.get(key) is not None}
    # A hostile answer may list any number of iterations.
    for one in islice(map(as_mapping, iterations), MAX_ITERATIONS):
        if not one:
            continue
        kind = as_text(one.get("type"))
        speed = {} if kind == ADVISOR_KIND or found.get(_SPEED) is None else {_SPEED: found[_SPEED]}
        part = _token_usage({**one, **shared, **speed}, model_name(one.get("model")) or model)
        parts.append(part)
        if kind in ANSWER_KINDS:
            answers.append(part)
    if parts and (rest := _unlisted_tokens(found, answers)):
        parts.append(_token_usage({**rest, **shared, **({_SPEED: found[_SPEED]} if found.get(_SPEED) else {})}, model))
    # Searches are billed once a call, so one part alone has them.
    if parts and (tools := found.get("server_tool_use")) is not None:
        parts[0] = replace(parts[0], details={**parts[0].details, "server_tool_use": tools})
    return parts


def _unlisted_tokens(found: Json, answers: list[Usage]) -> dict[str, object]:
    """What the fields above have and the iterations do not: all of it if none of them is an answer's."""
    told: dict[str, object] = {}
    for key in ("input_tokens", "cache_read_input_tokens", "output_tokens"):
        told[key] = max(0, to_count(found.get(key)) - sum(to_count(one.details.get(key)) for one in answers))
    wrote = max(0, _cache_write_tokens(found) - sum(_cache_write_tokens(one.details) for one in answers))
    hour = max(0, _hour_cache_tokens(found) - sum(_hour_cache_tokens(one.details) for one in answers))
    told["cache_creation_input_tokens"] = wrote
    told["cache_creation"] = {"ephemeral_1h_input_tokens": min(hour, wrote)}
    return told if any(to_count(value) for value in told.values()) else {}


def _hour_cache_tokens(found: Json) -> int:
    return to_count(as_mapping(found.get("cache_creation")).get("ephemeral_1h_input_tokens"))


def _spread_reasoning(parts: list[Usage], whole: Usage) -> list[Usage]:
    """Thinking tokens are reported for the whole alone: spread them over the iterations of the same model."""
    left, found = whole.reasoning, []
    for part in parts:
        mine = min(left, part.output) if part.model == whole.model else 0
        left -= mine
        found.append(replace(part, reasoning=mine))
    return found
