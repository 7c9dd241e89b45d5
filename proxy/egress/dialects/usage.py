"""Tokens as the vendors report them."""

from __future__ import annotations

from proxy.egress.dialects.dialect import Json, Usage, count, mapping, text


def openai_usage(answer: Json) -> Usage | None:
    """Of an answer or of a stream's chunk; both spellings, chat's and Responses'."""
    found = answer.get("usage")
    if not isinstance(found, dict):
        return None
    before = mapping(found.get("prompt_tokens_details") or found.get("input_tokens_details"))
    after = mapping(found.get("completion_tokens_details") or found.get("output_tokens_details"))
    return Usage(
        input=count(found.get("prompt_tokens", found.get("input_tokens"))),
        cached_input=count(before.get("cached_tokens")),
        output=count(found.get("completion_tokens", found.get("output_tokens"))),
        reasoning=count(after.get("reasoning_tokens")),
        model=text(answer.get("model")),
        details={**found, "service_tier": answer.get("service_tier")},
    )
