"""A model's price in the policy, as rates: in force before anything that the table of prices says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from decimal import Decimal

from proxy.egress.billing.pricing.rates import Rates, inherited_price, parse_span, span_holds
from proxy.egress.dialects.base import Json
from proxy.policy.schema import Charges, Price

# The policy's key, the table's unit, and how many of what the policy prices are what the table prices.
UNITS: Mapping[str, tuple[str, int]] = {
    "input": ("input", 1),
    "output": ("output", 1),
    "cached_input": ("cached", 1),
    "cached_write": ("written", 1),
    "cached_write_1h": ("written_1h", 1),
    "reasoning": ("reasoning", 1),
    "audio_input": ("audio_in", 1),
    "audio_output": ("audio_out", 1),
    "cached_audio_input": ("audio_cached", 1),
    "image_input": ("image_in", 1),
    "image_output": ("image_out", 1),
    "cached_image_input": ("image_cached", 1),
    "characters": ("characters", 1),
    "per_minute": ("hours", 60),
    "per_second": ("video_seconds", 1),
    "per_image": ("images", 1),
    "per_request": ("requests", 1000),
    "search": ("searches", 1000),
    "file_search": ("file_searches", 1000),
}
Row = dict[str, object]
NO_MEDIA: Json = {}


class PolicyPrice:
    """The price of one model. For a tier, a size or a time that the policy does not name, the usual price holds."""

    __slots__ = ("_price", "_rates_by_charges", "_timed_charges", "_usual")

    def __init__(self, price: Price) -> None:
        self._price = price
        self._timed_charges = [(parse_span(when), charges) for when, charges in price.times.items()]
        self._usual = Rates(_price_row(price))
        self._rates_by_charges: dict[tuple[object, ...], Rates] = {}

    def rates(self, at: float, tier: str | None = None, media: Json = NO_MEDIA) -> Rates:
        """The rates at a moment (wall clock). `media`: has the `size` and `quality` of an image or a video."""
        price = self._price
        # Later entries override earlier ones: the time of day, then the tier, then the size.
        over = [charges for span, charges in self._timed_charges if span_holds(span, at)]
        if tier is not None and tier in price.tiers:
            over.append(price.tiers[tier])
        size = media.get("size") if price.sizes else None
        if isinstance(size, str):
            over += [price.sizes[one] for one in (size, f"{size} {media.get('quality')}") if one in price.sizes]
        if not over:
            return self._usual
        key = tuple(map(id, over))  # ids are safe as keys: the charges live as long as the price does
        found = self._rates_by_charges.get(key)
        if found is None:
            found = self._rates_by_charges[key] = Rates(_price_row(price, over))
        return found


def _price_row(price: Price, over: Sequence[Charges] = ()) -> Row:
    row = _charges_row(price)
    for tokens, charges in sorted(price.above.items(), key=lambda item: int(item[0])):
        for unit, dollars in _charges_row(charges).items():
            before = row.get(unit, inherited_price(unit, row) or 0)
            row[unit] = [*(before if isinstance(before, list) else [before]), [int(tokens), dollars]]
    for more in over:
        row |= _charges_row(more)
    if price.least_seconds:
        row["least_seconds"] = price.least_seconds
    return row


def _charges_row(charges: Charges) -> Row:
    found: Row = {}
    for item in fields(Charges):
        value: Decimal | None = getattr(charges, item.name)
        if value is not None:
            unit, times = UNITS[item.name]
            found[unit] = value * times
    return found
