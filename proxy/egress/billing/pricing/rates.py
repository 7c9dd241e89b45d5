"""What one unit of each thing costs, in whole numbers, and when a price holds.

A rate is a whole number of 1/9e12 nano-dollars. A price of up to 12 decimals, per million, per thousand or per hour,
comes out whole in it, so sums are exact and a call is rounded once, at its end (`round_to_nanos`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from proxy.egress.dialects.base import MAX_COUNT

DAY = 86_400  # seconds
RATES_PER_NANO = 9 * 10**12  # rates in a nano-dollar
_PRICE_DECIMALS = 10**12
_RATES_PER_DECIMAL = 9 * 10**9
_UNITS_PER_PRICE: Mapping[str, int] = {  # how many units a price is for; of the others a million
    "hours": 3600 * 1000,  # counted in milliseconds
    "searches": 1000,
    "file_searches": 1000,
    "requests": 1000,
    "images": 1,
    "video_seconds": 1000,  # counted in milliseconds too
}
# A unit without a price of its own costs what its parent does. Order matters: parents first.
_PARENTS: Mapping[str, tuple[str, ...]] = {
    "cached": ("input",),
    "written": ("input",),
    "written_1h": ("written",),
    "audio_in": ("input",),
    "image_in": ("input",),
    "video_in": ("input",),
    "audio_cached": ("audio_in", "cached"),
    "image_cached": ("image_in", "cached"),
    "reasoning": ("output",),
    "audio_out": ("output",),
    "image_out": ("output",),
    "video_out": ("output",),
}
_PRICED_ALONE = (
    "input",
    "output",
    "characters",
    "hours",
    "searches",
    "file_searches",
    "requests",
    "images",
    "video_seconds",
)
PriceRow = Mapping[str, object]  # as the table has it: unit → dollars, or [dollars, [from tokens, dollars] …]


@dataclass(slots=True)  # not frozen, see RequestInfo
class Cost:
    """What something costs, in whole nano-dollars (1e-9 $); `estimated` is the part that rests on an estimate."""

    nanos: int
    estimated: int = 0


NO_COST = Cost(0)


class Rates:
    """A price by unit, in steps if a longer context costs more.

    priced: the units that have a price of their own
    least_seconds: of audio, that are billed at least
    """

    __slots__ = ("_bands", "least_seconds", "priced")

    def __init__(self, row: PriceRow) -> None:
        least = row.get("least_seconds")
        self.least_seconds = least if isinstance(least, int) else 0
        prices = {unit: price for unit, price in row.items() if unit != "least_seconds"}
        self.priced = frozenset(prices)
        starts = sorted({_step_start(step) for price in prices.values() for step in _steps_of(price)})
        self._bands = tuple(
            (start, _fill_rates({unit: _rate_of(unit, _price_at(price, start)) for unit, price in prices.items()}))
            for start in (-1, *starts)
        )

    def for_context(self, context: int) -> Mapping[str, int]:
        """Rates by unit, of a request with so many input tokens: a step reprices all of it, not what is above alone."""
        if len(self._bands) == 1:
            return self._bands[0][1]
        # Strictly above: a price "over 200k tokens" does not hold at 200,000.
        for start, rates in reversed(self._bands):
            if context > start:
                return rates
        return self._bands[0][1]


def inherited_price(unit: str, row: PriceRow) -> object:
    """The price of the parent that a unit is charged like; None if none of them has one in this row."""
    for one in _PARENTS.get(unit, ()):
        if (found := row.get(one, inherited_price(one, row))) is not None:
            return found
    return None


def round_to_nanos(amount: int, times: int = 1, over: int = 1) -> int:
    """Whole nano-dollars of `amount` rates times `times / over`, rounded half up."""
    # Half up in integers: floats would lose nano-dollars at sums that a month of calls reaches.
    whole = RATES_PER_NANO * over
    return (2 * amount * times + whole) // (2 * whole)


def dollars_to_nanos(value: Decimal) -> int:
    """Whole nano-dollars, rounded half up; less than nothing counts as nothing."""
    return max(0, int((value * 10**9).to_integral_value(ROUND_HALF_UP)))


def highest_prices(rows: Iterable[PriceRow]) -> PriceRow:
    """The highest price of each unit, whatever the context. Cached tokens count as new ones."""
    found: dict[str, Any] = {}
    for row in rows:
        for unit, price in row.items():
            if "cached" not in unit and unit != "least_seconds":
                found[unit] = max(_price_at(price, MAX_COUNT), found.get(unit, 0))
    return found


def _steps_of(price: object) -> Sequence[Sequence[object]]:
    return price[1:] if isinstance(price, list) else ()


def _step_start(step: Sequence[object]) -> int:
    start = step[0]
    assert isinstance(start, int)
    return start


def _price_at(price: Any, start: int) -> Any:
    if not isinstance(price, list):
        return price
    found = price[0]
    for step in price[1:]:
        if step[0] <= start:
            found = step[1]
    return found


def _rate_of(unit: str, price: object) -> int:
    value = price if isinstance(price, Decimal) else Decimal(str(price))
    exact = (value * _PRICE_DECIMALS).to_integral_value(ROUND_HALF_UP)
    return max(0, int(exact)) * (_RATES_PER_DECIMAL // _UNITS_PER_PRICE.get(unit, 10**6))


def _fill_rates(rates: dict[str, int]) -> Mapping[str, int]:
    """A rate for every unit: its own, its parent's, or 0."""
    found = {unit: rates.get(unit, 0) for unit in _PRICED_ALONE}
    named = set(rates)
    for unit, parents in _PARENTS.items():
        if unit in rates:
            found[unit] = rates[unit]
            continue
        parent = next((one for one in parents if one in named), parents[-1])
        found[unit] = found[parent]
    return found


def parse_span(text: str | None) -> tuple[float, float] | None:
    """When a price holds: from a day on (`2026-01-31`), as wall clock; or between two times of each day
    (`08:30-16:30`), as seconds of the day. Both are UTC. None: always."""
    if text is None:
        return None
    if len(text) == 10:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp(), float("inf")
    begin, end = (int(one[:2]) * 3600 + int(one[3:]) * 60 for one in text.split("-"))
    return float(begin), float(end)


def span_holds(span: tuple[float, float] | None, at: float) -> bool:
    if span is None:
        return True
    begin, end = span
    if end == float("inf"):
        return at >= begin
    second = at % DAY
    return begin <= second < end if begin <= end else second >= begin or second < end
