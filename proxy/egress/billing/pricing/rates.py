"""What one unit of each thing costs, in whole numbers.

A rate is in units of 1/9e12 nano-dollar: a price of up to 12 decimals, per million, per thousand or per hour, is
a whole number of them, so that sums are exact and there is one rounding a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from proxy.egress.dialects.base import MAX_COUNT

SCALE = 9 * 10**12  # a nano-dollar
_DECIMALS = 10**12
_COMMON = 9 * 10**9
_PER: Mapping[str, int] = {  # how many units a price is for; of the others a million
    "hours": 3600 * 1000,  # counted in milliseconds
    "searches": 1000,
    "file_searches": 1000,
    "requests": 1000,
    "images": 1,
    "video_seconds": 1000,  # counted in milliseconds too
}
# What is charged like its parent where it has no price of its own. Order matters: parents first.
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


class Rates:
    """One price: by unit, and by step where a longer context costs more. `priced` are the units it names."""

    __slots__ = ("_bands", "least_seconds", "priced")

    def __init__(self, row: PriceRow) -> None:
        least = row.get("least_seconds")
        self.least_seconds = least if isinstance(least, int) else 0
        prices = {unit: price for unit, price in row.items() if unit != "least_seconds"}
        self.priced = frozenset(prices)
        starts = sorted({_start(step) for price in prices.values() for step in _steps(price)})
        self._bands = tuple(
            (start, _whole({unit: _rate(unit, _at(price, start)) for unit, price in prices.items()}))
            for start in (-1, *starts)
        )

    def for_context(self, context: int) -> Mapping[str, int]:
        """Rates of a request with so many tokens of input; a step reprices all of it."""
        for start, rates in reversed(self._bands):
            if context > start:
                return rates
        return self._bands[0][1]


def inherited_price(unit: str, row: PriceRow) -> object:
    """The price of what a unit is charged like, where a row has none of its own for it."""
    for one in _PARENTS.get(unit, ()):
        if (found := row.get(one, inherited_price(one, row))) is not None:
            return found
    return None


def round_to_nanos(amount: int, times: int = 1, over: int = 1) -> int:
    """Whole nano-dollars of an amount of rates, rounded half up."""
    whole = SCALE * over
    return (2 * amount * times + whole) // (2 * whole)


def dollars_to_nanos(value: Decimal) -> int:
    """Nano-dollars; below zero counts as nothing."""
    return max(0, int((value * 10**9).to_integral_value(ROUND_HALF_UP)))


def highest_prices(rows: Iterable[PriceRow]) -> PriceRow:
    """The highest price of each unit, whatever the context. What is cached counts as new."""
    found: dict[str, Any] = {}
    for row in rows:
        for unit, price in row.items():
            if "cached" not in unit and unit != "least_seconds":
                found[unit] = max(_at(price, MAX_COUNT), found.get(unit, 0))
    return found


def _steps(price: object) -> Sequence[Sequence[object]]:
    return price[1:] if isinstance(price, list) else ()


def _start(step: Sequence[object]) -> int:
    start = step[0]
    assert isinstance(start, int)
    return start


def _at(price: Any, start: int) -> Any:
    if not isinstance(price, list):
        return price
    found = price[0]
    for step in price[1:]:
        if step[0] <= start:
            found = step[1]
    return found


def _rate(unit: str, price: object) -> int:
    value = price if isinstance(price, Decimal) else Decimal(str(price))
    exact = (value * _DECIMALS).to_integral_value(ROUND_HALF_UP)
    return max(0, int(exact)) * (_COMMON // _PER.get(unit, 10**6))


def _whole(rates: dict[str, int]) -> Mapping[str, int]:
    """Every unit has a rate: its own, its parent's, or nothing."""
    found = {unit: rates.get(unit, 0) for unit in _PRICED_ALONE}
    named = set(rates)
    for unit, parents in _PARENTS.items():
        if unit in rates:
            found[unit] = rates[unit]
            continue
        parent = next((one for one in parents if one in named), parents[-1])
        found[unit] = found[parent]
    return found


# [merged from egress/billing/cost] What something cost.
@dataclass(frozen=True, slots=True)
class Cost:
    """Whole nano-dollars (1e-9 $), never a float. `estimated` is the part that rests on an estimate."""

    nanos: int
    estimated: int = 0


NO_COST = Cost(0)
