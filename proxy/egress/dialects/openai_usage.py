"""Usage as OpenAI and hosts with a similar API report it.

platform.openai.com/docs/api-reference/chat/object and …/responses/object; what other hosts do differently is noted
beside the line that reads it.
"""

from __future__ import annotations

from dataclasses import replace

from proxy.egress.dialects.base import MAX_COUNT, Json, Usage, as_mapping, as_text, model_name, to_count
from proxy.egress.dialects.image_tokens import image_tokens

MAX_TOOL_KINDS = 20  # that are counted apart
MAX_SVG_PARTS = 20  # of one answer, whose models are told apart
IMAGE_CALL = "image_generation_call"
SEARCH_CALL = "web_search_call"
_TOOL_KEYS = frozenset(("output", "tool_usage", "svg_usage"))  # which may report more than a model's plain tokens


def openai_usage(answer: Json, tier: str | None = None) -> Usage | None:
    """The usage in an answer or in a stream's chunk, in either spelling, chat's or Responses'.

    `details` has the vendor's usage, the answer's `service_tier` (`tier`: the one that an earlier chunk named), and
    `tools`: how many calls of each the answer's output lists. `parts` has what models of its tools took besides.
    """
    found = answer.get("usage")
    plain, used = _TOOL_KEYS.isdisjoint(answer), isinstance(found, dict)
    if not used and plain:
        return None
    usage = _token_usage(as_mapping(found), model_name(answer.get("model")), answer.get("service_tier") or tier)
    if plain:
        return usage
    drawn = _image_tool_usage(answer)
    parts = (*drawn, *_svg_usage(answer))
    if not used and not parts:
        return None
    if tools := _count_tool_calls(answer, drawn=bool(drawn)):
        usage = replace(usage, details={**usage.details, "tools": tools})
    return replace(usage, parts=(usage, *parts)) if parts else usage


def image_usage(answer: Json) -> Usage | None:
    """The usage of generated images: `details` has how many there are as `images`."""
    usage, drawn = openai_usage(answer), answer.get("data")
    if usage is None or not isinstance(drawn, list):
        return usage
    # The unit of price is the image at its size and quality, so these go along with the tokens.
    told = {"images": len(drawn), "size": answer.get("size"), "quality": answer.get("quality")}
    own = replace(usage, details={**usage.details, **told}, parts=())
    return replace(own, parts=(own, *usage.parts[1:])) if usage.parts else own


def video_usage(answer: Json) -> Usage | None:
    """The usage of a video that was ordered: it has no tokens, its `seconds` and `size` are billed."""
    usage = openai_usage(answer)
    if usage is not None:
        return usage
    try:
        seconds = float(answer.get("seconds") or 0)
    except (TypeError, ValueError, OverflowError):
        return None
    if not 0 < seconds < float("inf"):
        return None
    return Usage(0, 0, 0, 0, model_name(answer.get("model")), {"video_seconds": seconds, "size": answer.get("size")})


def _token_usage(found: Json, model: str | None, tier: object = None, endpoint: str | None = None) -> Usage:
    before = as_mapping(found.get("prompt_tokens_details") or found.get("input_tokens_details"))
    after = as_mapping(found.get("completion_tokens_details") or found.get("output_tokens_details"))
    sent = to_count(found.get("prompt_tokens", found.get("input_tokens")))
    written = to_count(found.get("completion_tokens", found.get("output_tokens")))
    reasoning = to_count(after.get("reasoning_tokens", found.get("reasoning_tokens")))
    total, details = to_count(found.get("total_tokens")), {**found}
    if tier is not None:
        details["service_tier"] = tier
    if total and not sent and not written:
        sent = total  # embeddings of some hosts say no more
    # What the total has beyond input and output was billed as well: for most hosts it is reasoning.
    outside = max(0, total - sent - written) if total else reasoning if reasoning > written else 0
    if outside:
        # Written all the same: xAI's total has the reasoning besides the completion (docs.x.ai), Gemini's what it
        # thought, which no other field of this dialect has.
        if outside != reasoning:
            details["outside"] = outside
        written, reasoning = written + outside, max(reasoning, outside)
    return Usage(sent, _cached_tokens(found, before), written, reasoning, model, details, endpoint=endpoint)


def _cached_tokens(found: Json, before: Json) -> int:
    """DeepSeek and Moonshot report them in places of their own (api-docs.deepseek.com, platform.moonshot.ai)."""
    told = to_count(before.get("cached_tokens"))
    return told or to_count(found.get("prompt_cache_hit_tokens")) or to_count(found.get("cached_tokens"))


def _count_tool_calls(answer: Json, *, drawn: bool) -> dict[str, int]:
    """Calls of the Responses API's own tools. Of the web's only searches cost, not the pages opened.

    `tool_usage` says which searches are billed, and goes before the list. `drawn`: images are priced by their tokens.
    """
    found: dict[str, int] = {}
    output = answer.get("output")
    for item in output if isinstance(output, list) else ():
        kind = as_text(as_mapping(item).get("type"))
        if kind is None or not kind.endswith("_call") or kind == "function_call":
            continue
        if kind == SEARCH_CALL and as_mapping(item.get("action")).get("type", "search") != "search":
            continue
        if kind in found or len(found) < MAX_TOOL_KINDS:
            found[kind] = found.get(kind, 0) + 1
    searches = as_mapping(as_mapping(answer.get("tool_usage")).get("web_search")).get("num_requests")
    if isinstance(searches, int):
        found[SEARCH_CALL] = to_count(searches)
    if drawn:
        found.pop(IMAGE_CALL, None)
    return found


def _image_tool_usage(answer: Json) -> list[Usage]:
    """What the image model behind a Responses call used: tokens of its own, at its own price.

    If they are not reported they are estimated by the images' sizes (`guessed`).
    """
    image = as_mapping(as_mapping(answer.get("tool_usage")).get("image_gen"))
    if not to_count(image.get("input_tokens")) and not to_count(image.get("output_tokens")):
        return _guessed_image_usage(answer)
    old = as_mapping(image.get("cached_tokens_details"))
    before: dict[str, object] = {**as_mapping(image.get("input_tokens_details"))}
    before["cached_tokens"] = image.get("cached_tokens")
    if old:
        before["cached_tokens_details"] = {
            "image_tokens": old.get("cached_image_tokens"),
            "text_tokens": old.get("cached_text_tokens"),
        }
    found = {**image, "input_tokens_details": before, "images": len(_finished_images(answer))}
    return [_token_usage(found, image_tool_model(answer), endpoint="images")]


def _guessed_image_usage(answer: Json) -> list[Usage]:
    named, pictures = image_tool_model(answer), _finished_images(answer)
    tokens = sum(
        image_tokens(as_text(one.get("model")) or named, one.get("size"), one.get("quality")) for one in pictures
    )
    if not tokens:
        return []
    details = {"output_tokens_details": {"image_tokens": tokens}, "images": len(pictures), "guessed": True}
    return [Usage(0, 0, min(tokens, MAX_COUNT), 0, named, details, endpoint="images")]


def _finished_images(answer: Json) -> list[Json]:
    output = answer.get("output")
    items = map(as_mapping, output) if isinstance(output, list) else ()
    return [item for item in items if item.get("type") == IMAGE_CALL and item.get("result")]


def image_tool_model(answer: Json) -> str | None:
    """An answer repeats the tools it was given; a default is not named."""
    tools = answer.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if as_mapping(tool).get("type") == "image_generation":
            return model_name(tool.get("model"))
    return None


def _svg_usage(answer: Json) -> list[Usage]:
    """What models that write SVG used, besides the one that draws."""
    output = answer.get("output")
    told = [answer, *(output if isinstance(output, list) else ())]
    found = [as_mapping(as_mapping(one).get("svg_usage")) for one in told]
    return [_token_usage(one, model_name(one.get("model")), endpoint="responses") for one in found if one][
        :MAX_SVG_PARTS
    ]
