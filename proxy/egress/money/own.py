"""One model's price by the policy, as rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal

from proxy.egress.money.rates import Rates, parent
from proxy.policy.price import Charges, Price

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


class Own:
    """Of a tier or a size that the policy does not name the price is the usual one: there is nothing else to pay."""

    __slots__ = ("_made", "_price", "_usual")

    def __init__(self, price: Price) -> None:
        self._price = price
        self._usual = Rates(_row(price, None, None))
        self._made: dict[tuple[str | None, str | None], Rates] = {}

    def rates(self, tier: str | None = None, size: object = None) -> Rates:
        tier = tier if tier in self._price.tiers else None
        found = size if isinstance(size, str) and size in self._price.sizes else None
        if tier is None and found is None:
            return self._usual
        if (tier, found) not in self._made:
            self._made[tier, found] = Rates(_row(self._price, tier, found))
        return self._made[tier, found]


def _row(price: Price, tier: str | None, size: str | None) -> Row:
    row = _charges(price)
    for tokens, charges in sorted(price.above.items(), key=lambda item: int(item[0])):
        for unit, dollars in _charges(charges).items():
            before = row.get(unit, parent(unit, row) or 0)
            row[unit] = [*(before if isinstance(before, list) else [before]), [int(tokens), dollars]]
    for key, more in ((tier, price.tiers), (size, price.sizes)):
        if key is not None:
            row |= _charges(more[key])
    return row


def _charges(charges: Charges) -> Row:
    found: Row = {}
    for item in fields(Charges):
        value: Decimal | None = getattr(charges, item.name)
        if value is not None:
            unit, times = UNITS[item.name]
            found[unit] = value * times
    return found
