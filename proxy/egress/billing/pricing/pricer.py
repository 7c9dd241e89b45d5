"""What calls of one upstream cost: the policy's prices first, then its host's, then its dialect's vendor's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from proxy.egress.billing.pricing.billable_usage import SPEECH_TOKENS, BillableUsage, billable_usage_of
from proxy.egress.billing.pricing.catalog import Catalog, snapshot_of
from proxy.egress.billing.pricing.media_prices import seconds_asked, size_of, video_cost
from proxy.egress.billing.pricing.policy_prices import NOTHING_DRAWN, PolicyPrice
from proxy.egress.billing.pricing.rates import NO_COST, Rates, dollars_to_nanos, round_to_nanos
from proxy.egress.billing.pricing.rates import Cost as Cost
from proxy.egress.billing.pricing.table import ModelPrices, image_price, video_prices
from proxy.egress.dialects import Usage
from proxy.egress.dialects.base import MAX_MODEL_NAME, Json, as_mapping, as_text, to_count, to_decimal
from proxy.policy import schema

DEFAULT_MAX_OUTPUT = 128_000  # tokens; more no model of the table writes in one answer but one
REMEMBERED = 512  # names of models
DEAREST = Decimal(1_000_000)  # dollars; no single call costs more, whatever an answer says
PRICED_TIERS = frozenset(("flex", "batch", "priority", "fast", "ultrafast"))  # those that change a price
CHARACTERS = 15  # of English, spoken in a second
TICKS = 10  # of xAI, a nano-dollar


@dataclass(frozen=True, slots=True)
class PriceMatch:
    """A price: the policy's (`own`), or a model of the table. `sure`: this very model's, so no estimate."""

    policy_price: PolicyPrice | None = None
    model: ModelPrices | None = None
    exact: bool = True
    factor: int = 1


class Pricer:
    """One an upstream. `unknown` is the policy's `unknown_price`; `refuse` is the caller's to enforce."""

    def __init__(
        self,
        kind: str,
        base_url: str,
        overrides: Mapping[str, schema.Price],
        unknown: Literal["highest", "refuse", "zero"],
    ) -> None:
        self._catalog = Catalog(kind, base_url)
        self._overrides = {name: PolicyPrice(price) for name, price in overrides.items()}
        self._unknown = unknown
        self._find = lru_cache(maxsize=REMEMBERED)(self._look)
        self._label = lru_cache(maxsize=REMEMBERED)(self._label_of)

    def has_price(self, model: str | None) -> bool:
        """Whether there is a price."""
        return self._found(model, None) is not None or (model is not None and bool(video_prices(model)))

    def model_label(self, model: str) -> str | None:
        """The model as a metric's label; None where neither policy nor table has its very name (or its snapshot's)."""
        return self._label(model) if len(model) <= MAX_MODEL_NAME else None

    def _label_of(self, model: str) -> str | None:
        for name in filter(None, (model, snapshot_of(model))):
            if name in self._overrides:
                return name
        return self._catalog.model_label(model)

    def refuses_model(self, model: str | None) -> bool:
        return self._unknown == "refuse" and not self.has_price(model)

    def max_output_tokens(self, model: str | None) -> int:
        """Tokens that an answer of the model can have; SAFE_OUTPUT where that is not known."""
        found = self._found(model, None)
        most = found.model.max_output if found is not None and found.model is not None else 0
        return most or DEFAULT_MAX_OUTPUT

    def cost(self, endpoint: str | None, usage: Usage, model: str | None, *, at: float) -> Cost:
        """What the reported usage costs; `model` is the one asked for, `at` wall clock.

        A cost that the answer reports itself is taken as it is, unless the policy has a price for the model.
        """
        if endpoint == "moderations":
            return NO_COST  # developers.openai.com/api/docs/models/omni-moderation-latest: free
        found = self._found(model, usage.model)
        if found is None or found.policy_price is None:
            reported = _reported(usage.details)
            if reported is not None:
                return Cost(reported)
        if not usage.parts:
            return self._priced(endpoint, usage, found, model, at)
        total = estimated = 0
        for part in usage.parts:
            # The model asked for says nothing of what another model of the same call costs.
            asked = model if part.model == usage.model and part.endpoint is None else None
            kind = part.endpoint or endpoint
            cost = self._priced(kind, part, self._found(asked, part.model), asked, at, first=part is usage.parts[0])
            total, estimated = total + cost.nanos, estimated + cost.estimated
        return Cost(total, estimated)

    def _priced(
        self,
        endpoint: str | None,
        usage: Usage,
        found: PriceMatch | None,
        model: str | None,
        at: float,
        first: bool = True,
    ) -> Cost:
        """`first`: of several parts, the one that is charged what a call costs once."""
        details, named = usage.details, usage.model or model
        if found is None and self._unknown == "zero" and not (endpoint == "videos" and named and video_prices(named)):
            return NO_COST
        rates, sure = self._rates(found, endpoint, _tier(details), at, details)
        if endpoint == "videos" and "video_seconds" not in rates.priced:
            return video_cost(named, details)
        took = billable_usage_of(endpoint, usage, rates.priced, named)
        if not first:
            took.amounts.pop("requests", None)
        return self._charge(took, rates, found, sure=sure, at=at, geo=details.get("inference_geo"))

    def estimate_cost(
        self, endpoint: str | None, model: str | None, *, input_tokens: int, output_tokens: int, at: float
    ) -> Cost:
        """What so many tokens would cost; all of it is an estimate."""
        found = self._found(model, None)
        if endpoint == "moderations" or (found is None and self._unknown == "zero"):
            return NO_COST
        if endpoint == "videos":
            guess = self._video(model, {}, found, at).nanos
            return Cost(guess, guess)
        rates, _ = self._rates(found, endpoint, None, at)
        took = _expected(endpoint, to_count(input_tokens), to_count(output_tokens), rates.priced)
        return self._charge(took, rates, found, sure=False, at=at)

    def cost_of_request(self, endpoint: str | None, body: Json, *, at: float) -> Cost | None:
        """What a call costs whose answer reports nothing: speech by its text, DALL·E by its images. Else None."""
        model = as_text(body.get("model"))
        found = self._found(model, None)
        if endpoint == "moderations":
            return NO_COST
        if endpoint == "videos":
            return self._video(model, body, found, at)
        if endpoint == "images":
            return self._images(model, body, found, at)
        said = body.get("input")
        if endpoint != "audio" or not isinstance(said, str) or found is None:
            return None
        rates, sure = self._rates(found, endpoint, None, at)
        if "characters" in rates.priced:
            took = BillableUsage({"characters": len(said), "requests": 1})
            return self._charge(took, rates, found, sure=sure, at=at)
        took = BillableUsage({"input": -(-len(said) // 4), "audio_out": -(-len(said) * SPEECH_TOKENS // CHARACTERS)})
        return self._charge(took, rates, found, sure=False, at=at)

    def _images(self, model: str | None, body: Json, found: PriceMatch | None, at: float) -> Cost | None:
        if found is not None:
            rates, sure = self._rates(found, "images", None, at, body)
            if "images" in rates.priced:
                took = BillableUsage({"images": _number(body), "requests": 1})
                return self._charge(took, rates, found, sure=sure, at=at)
        return _images(model, body)

    def _video(self, model: str | None, body: Json, found: PriceMatch | None, at: float) -> Cost:
        """What was ordered; an estimate where it is another video's length, or the API's to choose."""
        told = {"video_seconds": seconds_asked(body), "size": size_of(body)}
        cost = self._priced("videos", Usage(0, 0, 0, 0, model, told), found, model, at)
        return cost if model and body.get("seconds") else Cost(cost.nanos, cost.nanos)

    def _found(self, asked: str | None, answered: str | None) -> PriceMatch | None:
        if (asked is not None and len(asked) > MAX_MODEL_NAME) or (
            answered is not None and len(answered) > MAX_MODEL_NAME
        ):
            return None
        return self._find(asked, answered)

    def _look(self, asked: str | None, answered: str | None) -> PriceMatch | None:
        names = [name for name in (asked, answered) if name]
        for name in (*names, *(short for name in names if (short := snapshot_of(name)) is not None)):
            if name in self._overrides:
                return PriceMatch(policy_price=self._overrides[name], model=self._catalog.find_model(name))
        # The answer names the snapshot; where only the request's name is known, that one it is.
        for name in reversed(names):
            if (entry := self._catalog.find(name)) is not None:
                return PriceMatch(model=entry.model, exact=entry.exact, factor=entry.factor)
        return None

    def _rates(
        self, found: PriceMatch | None, endpoint: str | None, tier: str | None, at: float, drawn: Json = NOTHING_DRAWN
    ) -> tuple[Rates, bool]:
        if found is None:
            return self._catalog.highest_rates(endpoint, at), False
        if found.policy_price is not None:
            return found.policy_price.rates(at, tier, drawn), True
        assert found.model is not None
        rates, known = found.model.rates(at, tier)
        return rates, known and found.exact

    def _charge(
        self, took: BillableUsage, rates: Rates, found: PriceMatch | None, *, sure: bool, at: float, geo: object = None
    ) -> Cost:
        by_unit = rates.for_context(took.context)
        amount = doubtful = 0
        for unit, number in took.amounts.items():
            if not number:
                continue
            if unit == "hours" and rates.least_seconds:
                number = max(number, rates.least_seconds * 1000)
            part = number * by_unit[unit]
            unsure = unit in took.doubtful
            if not part and unit not in rates.priced and unit in ("searches", "file_searches"):
                part, unsure = number * self._catalog.highest_rates(None, at).for_context(0)[unit], True
            amount += part
            if unsure:
                doubtful += part
        times, over = (found.factor if found is not None else 1), 1
        uplift = 0
        if found is None or found.policy_price is None:  # the policy's price is all there is to pay
            if geo == "us":
                times, over = times * 11, 10  # platform.claude.com/docs/en/about-claude/pricing: 1.1 times everything
            if self._catalog.regional:
                # developers.openai.com/api/docs/pricing: a tenth more, on newer models; which, no table says.
                uplift = round_to_nanos(amount, times, over * 10)
        total = round_to_nanos(amount, times, over)
        if not sure or took.uncertain:
            return Cost(total + uplift, total + uplift)
        return Cost(total + uplift, min(total, round_to_nanos(doubtful, times, over)) + uplift)


def _reported(details: Json) -> int | None:
    """OpenRouter's `cost` in dollars (openrouter.ai/docs/use-cases/usage-accounting), Perplexity's `total_cost`,
    xAI's `cost_in_usd_ticks` (docs.x.ai/developers/cost-tracking)."""
    ticks = details.get("cost_in_usd_ticks")
    if type(ticks) is int and ticks >= 0:  # and no bool
        return min((ticks + TICKS // 2) // TICKS, dollars_to_nanos(DEAREST))
    cost = details.get("cost")
    value = to_decimal(as_mapping(cost).get("total_cost")) if isinstance(cost, dict) else to_decimal(cost)
    if value is None or value < 0:
        return None
    if details.get("is_byok") is True:  # `cost` is OpenRouter's own fee: the vendor bills the rest
        rest = to_decimal(as_mapping(details.get("cost_details")).get("upstream_inference_cost"))
        value += max(Decimal(0), rest or Decimal(0))
    return dollars_to_nanos(min(value, DEAREST))


def _tier(details: Json) -> str | None:
    """The service tier that changes the price, as the answer has it: what was asked for may not be what it was."""
    if details.get("speed") == "fast":
        return "fast"
    tier = details.get("service_tier")
    return tier if isinstance(tier, str) and tier in PRICED_TIERS else None


def _expected(endpoint: str | None, before: int, after: int, priced: frozenset[str]) -> BillableUsage:
    """Tokens as the model counts: those of audio by the second where it is billed so, images where it draws."""
    if "hours" in priced and not priced & {"input", "audio_in"}:
        return BillableUsage({"hours": -(-before * 1000 // SPEECH_TOKENS), "requests": 1})
    if "characters" in priced and "input" not in priced:
        return BillableUsage({"characters": before * 4, "requests": 1})
    incoming = "audio_in" if endpoint == "audio" and "audio_in" in priced else "input"
    outgoing_ = "image_out" if endpoint == "images" else "output"
    amounts = {incoming: before, outgoing_: after, "requests": 1}
    if endpoint == "images" and "images" in priced:
        amounts["images"] = 1
    return BillableUsage(amounts, context=before)


def _images(model: str | None, body: Json) -> Cost | None:
    name = (model or "dall-e-2").lower().rpartition("/")[2]  # the API's own default
    size = re.sub(r"\s", "", as_text(body.get("size")) or "1024x1024")
    price = image_price(name, size, hd=body.get("quality") == "hd")
    return None if price is None else Cost(dollars_to_nanos(price * _number(body)))


def _number(body: Json) -> int:
    """Images asked for."""
    wanted = body.get("n")
    return wanted if isinstance(wanted, int) and 1 <= wanted <= 10 else 1
