"""`make prices`: what models cost, out of genai-prices, into proxy/egress/billing/pricing/prices.json.

genai-prices takes 30 MB at run time; of what it knows the gateway needs a table. One line a price and one a
model, so that a change of prices reads well in a diff. `--check` says whether the file is what would be written.

Prices are dollars: per million of tokens or characters, per hour, per thousand searches or requests.
A model is `[name, matchers, price, tiers, most]`: a matcher is `=exact`, `^prefix`, `*part`, `$suffix`,
`~expression` or `["&", all, of, these]`; a price the number of a line of `prices`, or a list of
`[from, number]`, the last that holds wins; `from` is a day (UTC), or `HH:MM-HH:MM` of each day (UTC); tiers are
`[tier, from, number]`, a price's parts that a service tier changes; `most` the tokens an answer can have.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices import types
from genai_prices.data import providers

FILE = Path(__file__).parent.parent / "proxy" / "egress" / "billing" / "pricing" / "prices.json"
# Whose API is OpenAI's or Anthropic's, or a likeness, and whose models others sell on.
SECTIONS = (
    "openai anthropic openrouter azure google groq mistral deepseek together fireworks x-ai perplexity cerebras"
    " moonshotai cohere zai"
).split()
PAST = frozenset(("openai", "anthropic"))  # whose former prices are kept
# How OpenRouter and proxies write whose model it is: `openai/gpt-4o`.
VENDORS = {name: name for name in SECTIONS} | {"mistralai": "mistral", "z-ai": "zai", "gemini": "google"}
UNITS = {
    "input_mtok": "input",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "written",
    "cache_write_1h_mtok": "written_1h",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "audio_in",
    "cache_audio_read_mtok": "audio_cached",
    "output_audio_mtok": "audio_out",
    "input_image_mtok": "image_in",
    "cache_image_read_mtok": "image_cached",
    "output_image_mtok": "image_out",
    "input_video_mtok": "video_in",
    "output_video_mtok": "video_out",
    "input_mchars": "characters",
    "input_audio_hours": "hours",
    "audio_hours": "hours",
    "web_searches_kcount": "searches",
    "storage_searches_kcount": "file_searches",
    "requests_kcount": "requests",
}
LEFT_OUT = frozenset(  # no dialect of ours reports them
    (
        "output_citation_mtok",
        "input_text_messages_kcount",
        "input_document_kpages",
        "input_annotated_document_kpages",
        "rerank_searches_kcount",
    )
)
# What genai-prices lacks, of models that have gone from OpenAI's price page but that some hosts still serve.
# developers.openai.com/api/docs/models/gpt-4o-audio-preview.md and …/gpt-4o-mini-audio-preview.md, 2026-11-26.
AUDIO = {"gpt-4o-audio-preview": ("40", "80"), "gpt-4o-mini-audio-preview": ("10", "20")}
# openai.com/pricing, image models, 2023-12-25; standard and HD.
IMAGES = {
    "dall-e-3": {
        "1024x1024": ("0.04", "0.08"),
        "1024x1792": ("0.08", "0.12"),
        "1792x1024": ("0.08", "0.12"),
    },
    "dall-e-2": {"256x256": ("0.016",) * 2, "512x512": ("0.018",) * 2, "1024x1024": ("0.02",) * 2},
}
# Dollars a second of video: developers.openai.com/api/docs/pricing, Sora, 2026-03; some hosts still serve it.
VIDEOS = {
    "sora-2": {"720x1280": "0.1", "1280x720": "0.1"},
    "sora-2-pro": {
        "720x1280": "0.3",
        "1280x720": "0.3",
        "1024x1792": "0.5",
        "1792x1024": "0.5",
        "1080x1920": "0.7",
        "1920x1080": "0.7",
    },
}
# Fine-tunes: cached input where genai-prices has none, and those that it does not have: input, cached input, output
# (developers.openai.com/api/docs/pricing, fine-tuning, 2026-03).
TUNED_CACHED = {"ft:gpt-4o": "1.875", "ft:gpt-4o-mini": "0.15"}
TUNED = {
    "ft:gpt-4.1-2025-": ("3", "0.75", "12"),
    "ft:gpt-4.1-mini-2025-": ("0.8", "0.2", "3.2"),
    "ft:gpt-4.1-nano-2025-": ("0.2", "0.05", "0.8"),
    "ft:o4-mini-2025-": ("4", "1", "16"),
}
# The most tokens of an answer, by the model's name, the first that fits: "max output" of
# developers.openai.com/api/docs/models and platform.claude.com/docs/en/about-claude/models/overview, 2026-11.
MOST = (
    (r"^(text-embedding|omni-moderation|text-moderation|whisper|tts-|dall-e)", 1),
    (r"gpt-5(\.\d+)?-chat|gpt-chat|chatgpt-|gpt-4o|gpt-audio", 16_384),
    (r"gpt-4\.1", 32_768),
    (r"gpt-4-turbo|gpt-4-\d{4}-preview|gpt-4-vision|gpt-3\.5", 4_096),
    (r"gpt-4(-0\d{3})?$|gpt-4-32k", 8_192),
    (r"gpt-realtime|-realtime-", 4_096),
    (r"(^|/)o1-preview", 32_768),
    (r"(^|/)o1-mini", 65_536),
    (r"(^|/)(o1|o3|o4)(-|$)|codex-mini", 100_000),
    (r"gpt-5-pro", 272_000),
    (r"gpt-[5-9]", 128_000),
    (r"claude-(v?[12]|instant|3-(opus|sonnet|haiku))|claude-3-(opus|sonnet|haiku)", 4_096),
    (r"claude-3[.-]5", 8_192),
    (r"claude-3[.-]7", 128_000),
    (r"claude-(opus-4(-0|-1)?|4-opus)(-?latest)?$", 32_000),
    (r"claude-(opus|sonnet|haiku)-4[.-]5|claude-sonnet-4(-0)?$|claude-4-sonnet", 64_000),
    (r"claude", 128_000),
)


def main() -> None:
    text = compiled(_taken())
    if "--check" in sys.argv[1:]:
        sys.exit(0 if FILE.read_text() == text else f"{FILE.name} is not what `make prices` would write")
    FILE.write_text(text)
    print(f"{FILE.name}: genai-prices {version('genai-prices')}, {len(text) / 1000:.0f} kB")


def compiled(taken: date) -> str:
    """The file's text. `taken` is the day this version was first compiled: no later day is the table's."""
    known = {one.id: one for one in providers}
    prices = Prices()
    sections = {name: list(_models(known[name], prices, taken)) for name in SECTIONS}
    head = {
        "source": "genai-prices",
        "version": version("genai-prices"),
        "date": max(day for day in _days() if day <= taken).isoformat(),
        "taken": taken.isoformat(),
        "vendors": VENDORS,
        "hosts": [[known[name].api_pattern, name] for name in SECTIONS],
        "others": {name: _others(known[name]) for name in SECTIONS if _others(known[name])},
        "images": {
            name: {size: [float(one) for one in two] for size, two in of.items()} for name, of in IMAGES.items()
        },
        "videos": {name: {size: float(one) for size, one in of.items()} for name, of in VIDEOS.items()},
    }
    lines = [json.dumps(head)[:-1]]
    lines.append(f'"prices": {_rows(prices.rows)}')
    lines.append(
        '"models": {\n' + ",\n".join(f"{json.dumps(name)}: {_rows(of)}" for name, of in sections.items()) + "}}\n"
    )
    return ",\n".join(lines)


class Prices:
    """Each different price once."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._at: dict[str, int] = {}

    def add(self, row: dict[str, Any]) -> int:
        key = json.dumps(row)
        if key not in self._at:
            self._at[key] = len(self.rows)
            self.rows.append(row)
        return self._at[key]


def _models(provider: types.Provider, prices: Prices, taken: date) -> Iterator[list[Any]]:
    for model in provider.models:
        if provider.id == "openrouter" and _as_at_its_vendor(model):
            continue
        price = _dated(provider, model, prices, taken)
        tiers = [
            [tier, _from(variant.constraint), prices.add(_price(variant.prices))]
            for variant in model.price_variants or ()
            if (tier := _tier(variant.when)) is not None
        ]
        row = [model.id.lower(), _matchers(model), price, tiers, _most(model)]
        while len(row) > 3 and not row[-1]:
            row.pop()
        yield row
    for name, dollars in TUNED.items() if provider.id == "openai" else ():
        row = {unit: _number(Decimal(one)) for unit, one in zip(("input", "cached", "output"), dollars, strict=True)}
        yield [name.removesuffix("-2025-"), [f"^{name}"], prices.add(row), [], _written(name)]


def _as_at_its_vendor(model: types.ModelInfo) -> bool:
    """OpenRouter sells most models at their vendor's price: those are found there."""
    vendor, _, name = model.id.partition("/")
    provider = next((one for one in providers if one.id == VENDORS.get(vendor)), None)
    found = provider.find_model(name) if provider is not None else None
    if (
        found is None
        or not isinstance(model.prices, types.ModelPrice)
        or not isinstance(found.prices, types.ModelPrice)
    ):
        return False
    ours, theirs = _price(model.prices), _price(found.prices)
    tools = {unit: price for unit, price in theirs.items() if "searches" in unit}
    return tools | ours == theirs


def _dated(provider: types.Provider, model: types.ModelInfo, prices: Prices, taken: date) -> int | list[Any]:
    if isinstance(model.prices, types.ModelPrice):
        return prices.add(_whole(provider, model, model.prices))
    rows = [[_from(one.constraint), prices.add(_whole(provider, model, one.prices))] for one in model.prices]
    if provider.id not in PAST:
        # The last day that has come is where the table begins; what was before it nobody asks for again.
        begun = [at for at, (day, _) in enumerate(rows) if day is None or (len(day) == 10 and day <= str(taken))]
        rows = [[None, rows[begun[-1]][1]], *rows[begun[-1] + 1 :]]
    return rows if len(rows) > 1 else rows[0][1]


def _whole(provider: types.Provider, model: types.ModelInfo, price: types.ModelPrice) -> dict[str, Any]:
    row = _price(price)
    audio = AUDIO.get(model.id) if provider.id == "openai" else None
    if audio is not None:
        row |= {"audio_in": float(audio[0]), "audio_out": float(audio[1])}
    if provider.id == "openai" and model.id in TUNED_CACHED:
        row = {"input": row["input"], "cached": float(TUNED_CACHED[model.id]), **row}
    if provider.id == "groq" and "hours" in row:
        row["least_seconds"] = 10  # console.groq.com/docs/speech-to-text: at least 10 s are billed
    return row


def _price(price: types.ModelPrice) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in price.__dict__.items():
        if value is None or key in LEFT_OUT:
            continue
        if isinstance(value, types.TieredPrices):
            row[UNITS[key]] = [_number(value.base), *([step.start, _number(step.price)] for step in value.tiers)]
        else:
            row[UNITS[key]] = _number(value)
    return dict(sorted(row.items(), key=lambda item: list(UNITS.values()).index(item[0])))


def _number(value: Decimal) -> int | float:
    value = round(value, 12)
    assert value >= 0
    number = int(value) if value == value.to_integral_value() else float(value)
    assert Decimal(str(number)) == value, value
    return number


def _tier(when: dict[str, str]) -> str | None:
    """The tier's name as an answer reports it: `service_tier`, or Anthropic's `speed`; None: the standard one's."""
    if len(when) != 1 or when == {"service_tier": "default"}:
        return None
    (key, value), *_ = when.items()
    return value if key in ("service_tier", "speed") or (key, value) == ("processing", "batch") else None


def _from(constraint: object) -> str | None:
    if constraint is None:
        return None
    if isinstance(constraint, types.StartDateConstraint):
        return constraint.start_date.isoformat()
    assert isinstance(constraint, types.TimeOfDateConstraint)
    begin, end = (datetime.combine(date(2000, 1, 1), one) for one in (constraint.start_time, constraint.end_time))
    return "-".join((one.astimezone(UTC) if one.tzinfo else one).strftime("%H:%M") for one in (begin, end))


def _matchers(model: types.ModelInfo) -> list[Any] | int:
    """One of them must fit; 0: the name itself, and no other."""
    name = model.id.lower()
    found = [one for one in _alternatives(model.match) if not _snapshot(one, f"={name}")]
    return 0 if found == [f"={model.id.lower()}"] else found


def _snapshot(matcher: object, name: str) -> bool:
    """OpenRouter's dated names of a model: a snapshot whose name is not known is looked for without its day."""
    return isinstance(matcher, str) and "/" in name and bool(re.fullmatch(re.escape(name) + r"-20\d{6}", matcher))


def _alternatives(clause: Any) -> list[Any]:
    if isinstance(clause, types.ClauseOr):
        return [one for part in clause.or_ for one in _alternatives(part)]
    if isinstance(clause, types.ClauseAnd):
        parts = []
        for part in clause.and_:
            found = _alternatives(part)
            parts.append(found[0] if len(found) == 1 else ["|", *found])
        return [["&", *parts]]
    if isinstance(clause, types.ClauseRegex):
        return [f"~{clause.regex}"]
    sign, text = {
        types.ClauseEquals: lambda: ("=", clause.equals),
        types.ClauseStartsWith: lambda: ("^", clause.starts_with),
        types.ClauseContains: lambda: ("*", clause.contains),
        types.ClauseEndsWith: lambda: ("$", clause.ends_with),
    }[type(clause)]()
    return [sign + text.lower()]


def _most(model: types.ModelInfo) -> int:
    """0: not known. A small context bounds an answer too; a large one says nothing of it."""
    most = _written(model.id.lower().rpartition("/")[2])
    context = model.context_window or 0
    return min(most, context or most) if most else context if context < 128_000 else 0


def _written(name: str) -> int:
    return next((tokens for pattern, tokens in MOST if re.search(pattern, name)), 0)


def _others(provider: types.Provider) -> list[str]:
    return [one for one in provider.fallback_model_providers or () if one in SECTIONS]


def _days() -> Iterator[date]:
    """Every day that the package's data name: when a price was looked at or began."""
    for provider in providers:
        for model in provider.models:
            text = f"{model.price_comments or ''} {provider.price_comments or ''}"
            yield from (date.fromisoformat(day) for day in re.findall(r"20\d\d-[01]\d-[0-3]\d", text))
            conditions = model.prices if isinstance(model.prices, list) else ()
            for one in (*conditions, *(model.price_variants or ())):
                if isinstance(one.constraint, types.StartDateConstraint):
                    yield one.constraint.start_date


def _taken() -> date:
    if FILE.exists():
        head = json.loads(FILE.read_text())
        if head["version"] == version("genai-prices"):
            return date.fromisoformat(head["taken"])
    return datetime.now(UTC).date()


def _rows(rows: list[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "]"


if __name__ == "__main__":
    main()
