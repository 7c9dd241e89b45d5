"""What calls of one upstream cost: by the policy's prices first, then its host's, then its dialect's vendor's.

A model's name is matched with a price (`_match`), the price gives rates by unit for the moment and the service tier
(`_rates_of`), and the reported usage gives amounts by unit (billable_usage.py). Costs are whole nano-dollars (1e-9 $);
what rests on a guess is marked as estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from proxy.egress.billing.pricing.billable_usage import SPEECH_TOKENS_PER_SECOND, BillableUsage, billable_usage_of
from proxy.egress.billing.pricing.catalog import Catalog, snapshot_of
from proxy.egress.billing.pricing.media_prices import image_cost, image_count, requested_seconds, video_cost, video_size
from proxy.egress.billing.pricing.policy_prices import NO_MEDIA, PolicyPrice
from proxy.egress.billing.pricing.rates import NO_COST, Rates, dollars_to_nanos, round_to_nanos
from proxy.egress.billing.pricing.rates import Cost as Cost
from proxy.egress.billing.pricing.table import ModelPrices, video_prices
from proxy.egress.dialects import Usage
from proxy.egress.dialects.base import MAX_MODEL_NAME, Json, as_mapping, as_text, to_count, to_decimal
from proxy.policy import schema

DEFAULT_MAX_OUTPUT = 128_000  # tokens; only one model of the table writes more in one answer
MAX_CACHED_MODELS = 512  # names whose price is remembered
MAX_CALL_DOLLARS = Decimal(1_000_000)  # no single call costs more, whatever an answer says
PRICED_TIERS = frozenset(("flex", "batch", "priority", "fast", "ultrafast"))  # those that change a price
CHARACTERS_PER_SECOND = 15  # of English, spoken
TICKS_PER_NANO = 10  # xAI's unit of cost
_COST_KEYS = frozenset(("cost", "cost_in_usd_ticks"))  # by which an answer reports what it cost


@dataclass(frozen=True, slots=True)
class PriceMatch:
    """The price that a model's name was matched with.

    policy_price: the policy's; it goes before the table's
    model: the table's
    exact: the price is this very model's, so it makes no estimate
    factor: times the price (fine-tuned models)
    """

    policy_price: PolicyPrice | None = None
    model: ModelPrices | None = None
    exact: bool = True
    factor: int = 1


class Pricer:
    """Prices calls of one upstream. `unknown` is the policy's `unknown_price`; the caller enforces `refuse`."""

    def __init__(
        self,
        kind: str,
        base_url: str,
        overrides: Mapping[str, schema.Price],
        unknown: Literal["highest", "refuse", "zero"],
    ) -> None:
        self._catalog = Catalog(kind, base_url)
        self._policy_prices = {name: PolicyPrice(price) for name, price in overrides.items()}
        self._unknown = unknown
        self._cached_match = lru_cache(maxsize=MAX_CACHED_MODELS)(self._find_match)
        self._cached_label = lru_cache(maxsize=MAX_CACHED_MODELS)(self._find_label)

    def has_price(self, model: str | None) -> bool:
        """Whether there is a price."""
        return self._match(model, None) is not None or (model is not None and bool(video_prices(model)))

    def model_label(self, model: str) -> str | None:
        """The model as a metric's label; None if neither the policy nor the table has its name or its snapshot's."""
        return self._cached_label(model) if len(model) <= MAX_MODEL_NAME else None

    def _find_label(self, model: str) -> str | None:
        for name in filter(None, (model, snapshot_of(model))):
            if name in self._policy_prices:
                return name
        return self._catalog.model_label(model)

    def refuses_model(self, model: str | None) -> bool:
        return self._unknown == "refuse" and not self.has_price(model)

    def max_output_tokens(self, model: str | None) -> int:
        """The most tokens of an answer; DEFAULT_MAX_OUTPUT if that is not known."""
        found = self._match(model, None)
        most = found.model.max_output if found is not None and found.model is not None else 0
        return most or DEFAULT_MAX_OUTPUT

    def cost(self, endpoint: str | None, usage: Usage, model: str | None, *, at: float) -> Cost:
        """What the reported usage costs; `model` is the one asked for, `at` wall clock.

        A cost that the answer reports itself is taken as it is, unless the policy has a price for the model.
        """
        if endpoint == "moderations":
            return NO_COST  # developers.openai.com/api/docs/models/omni-moderation-latest: free
        found = self._match(model, usage.model)
        if (found is None or found.policy_price is None) and not _COST_KEYS.isdisjoint(usage.details):
            reported = _reported_cost(usage.details)
            if reported is not None:
                return Cost(reported)
        if not usage.parts:
            return self._price_usage(endpoint, usage, found, model, at)
        total = estimated = 0
        for part in usage.parts:
            # The model that was asked for says nothing about the price of another model in the same call.
            asked = model if part.model == usage.model and part.endpoint is None else None
            kind = part.endpoint or endpoint
            cost = self._price_usage(
                kind, part, self._match(asked, part.model), asked, at, first=part is usage.parts[0]
            )
            total, estimated = total + cost.nanos, estimated + cost.estimated
        return Cost(total, estimated)

    def _price_usage(
        self,
        endpoint: str | None,
        usage: Usage,
        found: PriceMatch | None,
        model: str | None,
        at: float,
        first: bool = True,
    ) -> Cost:
        """`first`: of several parts, the one that bears what is charged once a call."""
        details, named = usage.details, usage.model or model
        if found is None and self._unknown == "zero" and not (endpoint == "videos" and named and video_prices(named)):
            return NO_COST
        rates, sure = self._rates_of(found, endpoint, _service_tier(details), at, details)
        if endpoint == "videos" and "video_seconds" not in rates.priced:
            return video_cost(named, details)
        billed = billable_usage_of(endpoint, usage, rates.priced, named)
        if not first:
            billed.amounts.pop("requests", None)
        return self._price_amounts(billed, rates, found, sure=sure, at=at, geo=details.get("inference_geo"))

    def estimate_cost(
        self, endpoint: str | None, model: str | None, *, input_tokens: int, output_tokens: int, at: float
    ) -> Cost:
        """What so many tokens would cost; all of it is an estimate."""
        found = self._match(model, None)
        if endpoint == "moderations" or (found is None and self._unknown == "zero"):
            return NO_COST
        if endpoint == "videos":
            guess = self._video_cost(model, {}, found, at).nanos
            return Cost(guess, guess)
        rates, _ = self._rates_of(found, endpoint, None, at)
        billed = _expected_usage(endpoint, to_count(input_tokens), to_count(output_tokens), rates.priced)
        return self._price_amounts(billed, rates, found, sure=False, at=at)

    def cost_of_request(self, endpoint: str | None, body: Json, *, at: float) -> Cost | None:
        """What a call costs by what it asks for, if its answer reports no usage: speech, DALL·E, videos. Else None."""
        model = as_text(body.get("model"))
        found = self._match(model, None)
        if endpoint == "moderations":
            return NO_COST
        if endpoint == "videos":
            return self._video_cost(model, body, found, at)
        if endpoint == "images":
            return self._image_cost(model, body, found, at)
        said = body.get("input")
        if endpoint != "audio" or not isinstance(said, str) or found is None:
            return None
        rates, sure = self._rates_of(found, endpoint, None, at)
        if "characters" in rates.priced:
            billed = BillableUsage({"characters": len(said), "requests": 1})
            return self._price_amounts(billed, rates, found, sure=sure, at=at)
        billed = BillableUsage(
            {
                "input": -(-len(said) // 4),
                "audio_out": -(-len(said) * SPEECH_TOKENS_PER_SECOND // CHARACTERS_PER_SECOND),
            }
        )
        return self._price_amounts(billed, rates, found, sure=False, at=at)

    def _image_cost(self, model: str | None, body: Json, found: PriceMatch | None, at: float) -> Cost | None:
        if found is not None:
            rates, sure = self._rates_of(found, "images", None, at, body)
            if "images" in rates.priced:
                billed = BillableUsage({"images": image_count(body), "requests": 1})
                return self._price_amounts(billed, rates, found, sure=sure, at=at)
        return image_cost(model, body)

    def _video_cost(self, model: str | None, body: Json, found: PriceMatch | None, at: float) -> Cost:
        """What was ordered; an estimate if the length is another video's, or the API's to choose."""
        told = {"video_seconds": requested_seconds(body), "size": video_size(body)}
        cost = self._price_usage("videos", Usage(0, 0, 0, 0, model, told), found, model, at)
        return cost if model and body.get("seconds") else Cost(cost.nanos, cost.nanos)

    def _match(self, asked: str | None, answered: str | None) -> PriceMatch | None:
        if (asked is not None and len(asked) > MAX_MODEL_NAME) or (
            answered is not None and len(answered) > MAX_MODEL_NAME
        ):
            return None
        return self._cached_match(asked, answered)

    def _find_match(self, asked: str | None, answered: str | None) -> PriceMatch | None:
        names = [name for name in (asked, answered) if name]
        # The policy may name the model without the day of its snapshot; the exact name goes first.
        for name in (*names, *(short for name in names if (short := snapshot_of(name)) is not None)):
            if name in self._policy_prices:
                return PriceMatch(policy_price=self._policy_prices[name], model=self._catalog.find_model(name))
        # The answer names the snapshot, so it goes first; if only the request's name is known, that one is taken.
        for name in reversed(names):
            if (entry := self._catalog.find(name)) is not None:
                return PriceMatch(model=entry.model, exact=entry.exact, factor=entry.factor)
        return None

    def _rates_of(
        self, found: PriceMatch | None, endpoint: str | None, tier: str | None, at: float, media: Json = NO_MEDIA
    ) -> tuple[Rates, bool]:
        if found is None:
            return self._catalog.highest_rates(endpoint, at), False
        if found.policy_price is not None:
            return found.policy_price.rates(at, tier, media), True
        assert found.model is not None
        rates, known = found.model.rates(at, tier)
        return rates, known and found.exact

    def _price_amounts(
        self,
        billed: BillableUsage,
        rates: Rates,
        found: PriceMatch | None,
        *,
        sure: bool,
        at: float,
        geo: object = None,
    ) -> Cost:
        # Sums are kept in rates (whole numbers far below a nano-dollar), and rounded once below.
        by_unit = rates.for_context(billed.context)
        amount = doubtful = 0
        for unit, number in billed.amounts.items():
            if not number:
                continue
            if unit == "hours" and rates.least_seconds:
                number = max(number, rates.least_seconds * 1000)
            part = number * by_unit[unit]
            unsure = unit in billed.doubtful
            if not part and unit not in rates.priced and unit in ("searches", "file_searches"):
                part, unsure = number * self._catalog.highest_rates(None, at).for_context(0)[unit], True
            amount += part
            if unsure:
                doubtful += part
        # Factors as fractions, so that 1.1 times a price stays exact.
        times, over = (found.factor if found is not None else 1), 1
        uplift = 0
        if found is None or found.policy_price is None:  # a policy's price includes everything
            if geo == "us":
                times, over = times * 11, 10  # platform.claude.com/docs/en/about-claude/pricing: 1.1 times everything
            if self._catalog.regional:
                # developers.openai.com/api/docs/pricing: a tenth more, on newer models; which, no table says.
                uplift = round_to_nanos(amount, times, over * 10)
        total = round_to_nanos(amount, times, over)
        if not sure or billed.uncertain:
            return Cost(total + uplift, total + uplift)
        return Cost(total + uplift, min(total, round_to_nanos(doubtful, times, over)) + uplift)


def _reported_cost(details: Json) -> int | None:
    """OpenRouter's `cost` in dollars (openrouter.ai/docs/use-cases/usage-accounting), Perplexity's `total_cost`,
    xAI's `cost_in_usd_ticks` (docs.x.ai/developers/cost-tracking)."""
    ticks = details.get("cost_in_usd_ticks")
    if type(ticks) is int and ticks >= 0:  # and no bool
        return min((ticks + TICKS_PER_NANO // 2) // TICKS_PER_NANO, dollars_to_nanos(MAX_CALL_DOLLARS))
    cost = details.get("cost")
    value = to_decimal(as_mapping(cost).get("total_cost")) if isinstance(cost, dict) else to_decimal(cost)
    if value is None or value < 0:
        return None
    if details.get("is_byok") is True:  # `cost` is OpenRouter's own fee: the vendor bills the rest
        rest = to_decimal(as_mapping(details.get("cost_details")).get("upstream_inference_cost"))
        value += max(Decimal(0), rest or Decimal(0))
    return dollars_to_nanos(min(value, MAX_CALL_DOLLARS))


def _service_tier(details: Json) -> str | None:
    """The service tier that changes the price, as the answer reports it: another may have been asked for."""
    if details.get("speed") == "fast":
        return "fast"
    tier = details.get("service_tier")
    return tier if isinstance(tier, str) and tier in PRICED_TIERS else None


def _expected_usage(endpoint: str | None, before: int, after: int, priced: frozenset[str]) -> BillableUsage:
    """Expected tokens in the units that the model is billed by: seconds of audio, characters, images."""
    if "hours" in priced and not priced & {"input", "audio_in"}:
        return BillableUsage({"hours": -(-before * 1000 // SPEECH_TOKENS_PER_SECOND), "requests": 1})
    if "characters" in priced and "input" not in priced:
        return BillableUsage({"characters": before * 4, "requests": 1})
    incoming = "audio_in" if endpoint == "audio" and "audio_in" in priced else "input"
    outgoing_ = "image_out" if endpoint == "images" else "output"
    amounts = {incoming: before, outgoing_: after, "requests": 1}
    if endpoint == "images" and "images" in priced:
        amounts["images"] = 1
    return BillableUsage(amounts, context=before)
