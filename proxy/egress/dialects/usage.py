"""Tokens as the vendors report them."""

from __future__ import annotations

from proxy.egress.dialects.dialect import Json, Usage, count, mapping, text

TOOLS = 20  # kinds of them, that are counted


def openai_usage(answer: Json, tier: str | None = None) -> Usage | None:
    """Of an answer or of a stream's chunk; both spellings, chat's and Responses'.

    `details` has the vendor's usage, the answer's `service_tier` (`tier`: the one that an earlier chunk named), and
    `tools`: how many calls of each the answer's output lists.
    """
    found = answer.get("usage")
    if not isinstance(found, dict):
        return None
    before = mapping(found.get("prompt_tokens_details") or found.get("input_tokens_details"))
    after = mapping(found.get("completion_tokens_details") or found.get("output_tokens_details"))
    details = {**found, "service_tier": answer.get("service_tier") or tier or found.get("service_tier")}
    if tools := _tools(answer.get("output")):
        details["tools"] = tools
    return Usage(
        input=count(found.get("prompt_tokens", found.get("input_tokens"))),
        cached_input=_cached(found, before),
        output=count(found.get("completion_tokens", found.get("output_tokens"))),
        reasoning=count(after.get("reasoning_tokens")),
        model=text(answer.get("model")),
        details=details,
    )


def _cached(found: Json, before: Json) -> int:
    """DeepSeek and Moonshot tell it in places of their own (api-docs.deepseek.com, platform.moonshot.ai)."""
    for value in (before.get("cached_tokens"), found.get("prompt_cache_hit_tokens"), found.get("cached_tokens")):
        if told := count(value):
            return told
    return 0


def _tools(output: object) -> dict[str, int]:
    """Calls of the Responses API's own tools. Of the web's only searches cost, not the pages opened."""
    found: dict[str, int] = {}
    for item in output if isinstance(output, list) else ():
        kind = text(mapping(item).get("type"))
        if kind is None or not kind.endswith("_call") or kind == "function_call":
            continue
        if kind == "web_search_call" and mapping(item.get("action")).get("type", "search") != "search":
            continue
        if kind in found or len(found) < TOOLS:
            found[kind] = found.get(kind, 0) + 1
    return found
