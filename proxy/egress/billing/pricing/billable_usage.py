"""How many units of each kind a call is billed for, out of the usage that an answer reports.

The units are those of the price table. Each token counts once: cached and cache-written ones, audio and images are
taken off the input that contains them; audio, images and reasoning off the output. Figures that contradict each other
are charged one by one and marked as doubtful. Nothing here is ever below zero or raises, whatever an answer says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from proxy.egress.dialects import Usage
from proxy.egress.dialects.base import Json, as_mapping, to_count, to_decimal

SPEECH_TOKENS_PER_SECOND = 17  # of audio (platform.openai.com/docs/pricing: $0.006 a minute at $6 a million)
MAX_MEDIA_SECONDS = 30 * 86_400  # of audio or video in one call, that are believed
_INPUT_UNITS = frozenset(
    ("input", "cached", "written", "written_1h", "audio_in", "audio_cached", "image_in", "image_cached")
)
_INPUT_DETAIL_KEYS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAIL_KEYS = ("completion_tokens_details", "output_tokens_details", "output_token_details")
_DURATION_KEYS = frozenset(("seconds", "prompt_audio_seconds"))  # OpenAI's, Mistral's
_WRITE_KEYS = frozenset(("cache_creation", "cache_creation_input_tokens"))
# Tools of the Responses API whose price no usage reports.
_UNPRICED_TOOLS = ("image_generation_call", "code_interpreter_call")


@dataclass(slots=True)
class BillableUsage:
    """What is billed.

    amounts: by unit; `hours` and `video_seconds` in milliseconds
    context: input tokens, which decide on the price of a long context
    doubtful: units whose amount rests on a guess
    uncertain: something was bought that is not among the units
    """

    amounts: dict[str, int]
    context: int = 0
    doubtful: set[str] = field(default_factory=set)
    uncertain: bool = False


def billable_usage_of(
    endpoint: str | None, usage: Usage, priced: frozenset[str], model: str | None = None
) -> BillableUsage:
    """`priced` are the units that the model has a price of its own for."""
    found = BillableUsage({"requests": 1})
    details = usage.details
    # Duration first: an answer that reports seconds is billed by them, whatever tokens it has besides.
    if "video_seconds" in details:
        found.amounts["video_seconds"] = _milliseconds(details["video_seconds"])
        return found
    if not _DURATION_KEYS.isdisjoint(details) and ("hours" in priced or details.get("type") == "duration"):
        _count_audio(found, next(details[key] for key in ("seconds", "prompt_audio_seconds") if key in details), priced)
        return found
    if "hours" in priced and not priced & {"input", "audio_in"}:
        found.amounts["hours"] = to_count(usage.input) * 1000 // SPEECH_TOKENS_PER_SECOND
        found.doubtful.add("hours")
        return found
    _count_input(found, endpoint, usage, priced)
    _count_output(found, endpoint, usage, priced)
    _count_tools(found, endpoint, usage, model or usage.model or "")
    found.uncertain = found.uncertain or "guessed" in details
    return found


def _count_audio(found: BillableUsage, seconds: object, priced: frozenset[str]) -> None:
    """Audio by its length; in tokens if the model has no price by the hour."""
    length = _milliseconds(seconds)
    if "hours" in priced:
        found.amounts["hours"] = length
    else:
        found.amounts["audio_in"] = length * SPEECH_TOKENS_PER_SECOND // 1000
        found.doubtful.add("audio_in")


def _milliseconds(seconds: object) -> int:
    return int(min(max(to_decimal(seconds) or Decimal(0), Decimal(0)), Decimal(MAX_MEDIA_SECONDS)) * 1000)


def _count_input(found: BillableUsage, endpoint: str | None, usage: Usage, priced: frozenset[str]) -> None:
    details, total = usage.details, to_count(usage.input)
    before = _first_mapping(details, _INPUT_DETAIL_KEYS)
    cached = to_count(usage.cached_input)
    written = hour = audio = image = 0
    if before or not _WRITE_KEYS.isdisjoint(details):
        written, hour = _cache_writes(details, before)
        audio, image = to_count(before.get("audio_tokens")), to_count(before.get("image_tokens"))
    if endpoint == "audio" and "audio_in" in priced and not before:
        audio = max(0, total - cached)  # nothing says that any of it was text
        found.doubtful.add("audio_in")
    amounts = found.amounts
    named = cached + written
    if audio or image:
        old_audio, old_image = _cached_media(found, total - named, before, cached, audio, image)
        amounts |= {"audio_in": audio - old_audio, "audio_cached": old_audio}
        amounts |= {"image_in": image - old_image, "image_cached": old_image}
        named += audio - old_audio + image - old_image
        cached -= old_audio + old_image
    amounts["cached"] = cached
    if written:
        amounts |= {"written": written - hour, "written_1h": hour}
        if to_count(as_mapping(before.get("cache_write_tokens_details")).get("ttl_12h_tokens")):
            found.doubtful.add("written")  # kept longer than the one price that there is says
    amounts["input"] = max(0, total - named)
    # The parts are more than the whole: one of the figures is wrong, so none of them is sure.
    if named > total:
        found.doubtful |= _INPUT_UNITS
    found.context = max(total, named)


def _cached_media(
    found: BillableUsage, rest: int, before: Json, cached: int, audio: int, image: int
) -> tuple[int, int]:
    """How many of the tokens of audio and of images were cached. `rest`: how many tokens can be new."""
    said = as_mapping(before.get("cached_tokens_details"))
    if said:
        old = min(to_count(said.get("audio_tokens")), audio, cached)
        return old, min(to_count(said.get("image_tokens")), image, cached - old)
    if cached:
        found.doubtful |= {"cached", "audio_in", "image_in"}
    # If nothing says what was cached, it was text first: the dearer way to count.
    overlap = max(0, audio + image - rest)
    old = min(overlap, audio, cached)
    return old, min(overlap - old, image, cached - old)


def _cache_writes(details: Json, before: Json) -> tuple[int, int]:
    """Tokens written to a cache, and those of them that are kept for an hour (Anthropic)."""
    hour = short = 0
    if "cache_creation" in details:
        split = as_mapping(details["cache_creation"])
        hour = to_count(split.get("ephemeral_1h_input_tokens"))
        short = to_count(split.get("ephemeral_5m_input_tokens"))
    told = max(to_count(details.get("cache_creation_input_tokens")), to_count(before.get("cache_write_tokens")))
    return max(told, hour + short), hour


def _count_output(found: BillableUsage, endpoint: str | None, usage: Usage, priced: frozenset[str]) -> None:
    total, reasoning = to_count(usage.output), to_count(usage.reasoning)
    after = _first_mapping(usage.details, _OUTPUT_DETAIL_KEYS)
    audio = image = 0
    if after:
        audio, image = to_count(after.get("audio_tokens")), to_count(after.get("image_tokens"))
    if endpoint == "images" and "image_out" in priced and not after:
        image = total
        found.doubtful.add("image_out")
    if audio or image:
        found.amounts |= {"audio_out": audio, "image_out": image}
        if audio + image > total:
            found.doubtful |= {"output", "audio_out", "image_out"}
        if (audio and "audio_out" not in priced) or (image and "image_out" not in priced and endpoint != "images"):
            found.doubtful |= {"audio_out", "image_out"}
        total = max(0, total - audio - image)
    if "images" in priced and endpoint == "images":
        found.amounts["images"] = to_count(usage.details.get("images")) or 1
    if "outside" in usage.details:
        found.doubtful.add("reasoning")  # what was neither input nor output the answer does not say
    # Reasoning is part of the output; more of it than output would charge it twice.
    found.amounts["reasoning"] = min(reasoning, total)
    found.amounts["output"] = total - min(reasoning, total)


def _count_tools(found: BillableUsage, endpoint: str | None, usage: Usage, model: str) -> None:
    details, searches = usage.details, 0
    if "server_tool_use" in details:
        searches = to_count(as_mapping(details["server_tool_use"]).get("web_search_requests"))
    if "tools" in details:
        tools = as_mapping(details["tools"])
        searches += to_count(tools.get("web_search_call"))
        found.amounts["file_searches"] = to_count(tools.get("file_search_call"))
        found.uncertain = any(to_count(tools.get(kind)) for kind in _UNPRICED_TOOLS)
    if not searches and endpoint == "chat" and "-search-" in model:
        searches = 1  # such a model searches the web for every answer, and no usage says so
        found.doubtful.add("searches")
    if searches:
        found.amounts["searches"] = searches


def _first_mapping(details: Json, names: tuple[str, ...]) -> Mapping[str, Any]:
    for name in names:
        if name in details and (found := as_mapping(details[name])):
            return found
    return {}
