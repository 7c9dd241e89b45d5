"""One model's price by the policy, as rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal

from proxy.egress.billing.pricing.rates import Rates, inherited_price
from proxy.egress.dialects.base import Json
from proxy.policy.schema import Charges, Price

# [merged from egress/billing/times] When a price holds: from a day on, or between two times of each day, in UTC.
DAY = 86_400


def span_of(since: str | None) -> tuple[float, float] | None:
    """From when on, in wall clock; or the seconds of each day between which it holds."""
    if since is None:
        return None
    if len(since) == 10:
        return datetime.fromisoformat(since).replace(tzinfo=UTC).timestamp(), float("inf")
    begin, end = (int(one[:2]) * 3600 + int(one[3:]) * 60 for one in since.split("-"))
    return float(begin), float(end)


def holds(span: tuple[float, float] | None, at: float) -> bool:
    if span is None:
        return True
    begin, end = span
    if end == float("inf"):
        return at >= begin
    second = at % DAY
    return begin <= second < end if begin <= end else second >= begin or second < end


# The policy's words, the table's unit, and how many of what the policy prices are what the table prices.
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
NOTHING_DRAWN: Json = {}


class PolicyPrice:
    """Of a tier, a size or a time that the policy does not name the price is the usual one: all there is to pay."""

    __slots__ = ("_made", "_price", "_times", "_usual")

    def __init__(self, price: Price) -> None:
        self._price = price
        self._times = [(span_of(when), charges) for when, charges in price.times.items()]
        self._usual = Rates(_row(price))
        self._made: dict[tuple[object, ...], Rates] = {}

    def rates(self, at: float, tier: str | None = None, drawn: Json = NOTHING_DRAWN) -> Rates:
        """`at`: wall clock. `drawn`: what has a `size` and a `quality`, where an image or a video is priced."""
        price = self._price
        over = [charges for span, charges in self._times if holds(span, at)]
        if tier is not None and tier in price.tiers:
            over.append(price.tiers[tier])
        size = drawn.get("size") if price.sizes else None
        if isinstance(size, str):
            over += [price.sizes[one] for one in (size, f"{size} {drawn.get('quality')}") if one in price.sizes]
        if not over:
            return self._usual
        key = tuple(map(id, over))  # they live as long as the price does
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = Rates(_row(price, over))
        return found


def _row(price: Price, over: Sequence[Charges] = ()) -> Row:
    row = _charges(price)
    for tokens, charges in sorted(price.above.items(), key=lambda item: int(item[0])):
        for unit, dollars in _charges(charges).items():
            before = row.get(unit, inherited_price(unit, row) or 0)
            row[unit] = [*(before if isinstance(before, list) else [before]), [int(tokens), dollars]]
    for more in over:
        row |= _charges(more)
    if price.least_seconds:
        row["least_seconds"] = price.least_seconds
    return row


def _charges(charges: Charges) -> Row:
    found: Row = {}
    for item in fields(Charges):
        value: Decimal | None = getattr(charges, item.name)
        if value is not None:
            unit, times = UNITS[item.name]
            found[unit] = value * times
    return found
