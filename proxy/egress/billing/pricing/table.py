"""The vendors' prices: `prices.json`, which `make prices` compiles out of genai-prices (see deploy/prices.py).

Read at the first call that needs a price (about 5 ms); what it says never changes while the gateway runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from proxy.egress.billing.pricing.rates import PriceRow, Rates, parse_span, span_holds

_PRICES_FILE = Path(__file__).parent / "prices.json"


class ModelPrices:
    """A model's prices over time and by service tier. `max_output`: the most tokens of an answer; 0 if not known."""

    __slots__ = ("_dated_rows", "_prices", "_rates_by_rows", "_tier_rows", "_usual_rates", "max_output", "name")

    def __init__(self, row: Sequence[Any], prices: Sequence[Mapping[str, Any]]) -> None:
        self.name: str = row[0]
        dated: list[tuple[str | None, int]] = row[2] if isinstance(row[2], list) else [(None, row[2])]
        self._dated_rows = tuple((parse_span(since), number) for since, number in dated)
        self._tier_rows = tuple(
            (tier, parse_span(since), number) for tier, since, number in (row[3] if len(row) > 3 else ())
        )
        self.max_output: int = row[4] if len(row) > 4 else 0
        self._prices = prices
        self._rates_by_rows: dict[tuple[int, ...], Rates] = {}
        self._usual_rates: dict[int, Rates] = {}  # of one row alone, by its number

    def price_row(self, at: float) -> PriceRow:
        """The standard tier's prices at that time."""
        return self._prices[self._row_number_at(at)]

    def rates(self, at: float, tier: str | None = None) -> tuple[Rates, bool]:
        """The rates at that time; with False if the tier has no price here, so that they are the standard tier's."""
        number = self._row_number_at(at)
        if tier is None and (usual := self._usual_rates.get(number)) is not None:
            return usual, True
        numbers: tuple[int, ...] = (number,)
        if tier is not None:
            # Flex costs what a batch does (developers.openai.com/api/docs/pricing), and often has no row of its own.
            for name in (tier, "batch") if tier == "flex" else (tier,):
                over = tuple(one for known, span, one in self._tier_rows if known == name and span_holds(span, at))
                if over:
                    numbers = (number, *reversed(over))
                    break
        found = self._rates_by_rows.get(numbers)
        if found is None:
            row: dict[str, Any] = {}
            for one in numbers:
                row |= self._prices[one]
            found = self._rates_by_rows[numbers] = Rates(row)
            if len(numbers) == 1:
                self._usual_rates[number] = found
        return found, tier is None or len(numbers) > 1

    def _row_number_at(self, at: float) -> int:
        if len(self._dated_rows) == 1:
            return self._dated_rows[0][1]
        return next((one for span, one in reversed(self._dated_rows) if span_holds(span, at)), self._dated_rows[0][1])


class HostSection:
    """The models of one host. Matchers are tried in the table's order, exact names at once."""

    def __init__(self, rows: Sequence[Sequence[Any]], prices: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        self._prices = prices
        self._models: dict[int, ModelPrices] = {}
        self._exact: dict[str, int] = {}
        self._other_matchers: list[tuple[int, Any]] = []
        for at, row in enumerate(rows):
            for matcher in row[1] or (f"={row[0]}",):
                if isinstance(matcher, str) and matcher[0] == "=":
                    self._exact.setdefault(matcher[1:], at)
                else:
                    self._other_matchers.append((at, matcher))

    def find(self, name: str) -> ModelPrices | None:
        # The table's order decides between matchers, an exact name included: an earlier row may fit as well.
        first = self._exact.get(name, len(self._rows))
        first = next((at for at, matcher in self._other_matchers if at < first and _matches(matcher, name)), first)
        return self._model_at(first) if first < len(self._rows) else None

    def model_label(self, name: str) -> str | None:
        """One of the table's own names for the model, of which there is a bounded number; None if it matches none."""
        if name in self._exact:
            return name
        found = self.find(name)
        return found.name if found is not None else None

    def models(self) -> Iterator[ModelPrices]:
        return (self._model_at(at) for at in range(len(self._rows)))

    def _model_at(self, at: int) -> ModelPrices:
        found = self._models.get(at)
        if found is None:
            found = self._models[at] = ModelPrices(self._rows[at], self._prices)
        return found


class PriceTable:
    """The parsed file. Which host's section prices a model, and in what order, catalog.py decides.

    vendors: prefixes of names (`openai/…`) → section
    others: section → sections whose models that host sells too
    images: model → size → dollars an image, standard and HD
    videos: model → size → dollars a second
    """

    def __init__(self, text: str) -> None:
        found = json.loads(text)
        self.vendors: Mapping[str, str] = found["vendors"]
        self.others: Mapping[str, Sequence[str]] = found["others"]
        self.images: Mapping[str, Mapping[str, Sequence[float]]] = found["images"]
        self.videos: Mapping[str, Mapping[str, float]] = found["videos"]
        self._hosts: Sequence[tuple[str, str]] = found["hosts"]
        self._prices = found["prices"]
        self._rows = found["models"]
        self._sections: dict[str, HostSection] = {}

    def section(self, name: str) -> HostSection:
        found = self._sections.get(name)
        if found is None:
            found = self._sections[name] = HostSection(self._rows[name], self._prices)
        return found

    def host(self, base_url: str) -> str | None:
        """The section of a host; None if the table does not know it."""
        return next((name for pattern, name in self._hosts if re.match(pattern, base_url)), None)


@cache
def price_table() -> PriceTable:
    return PriceTable(_PRICES_FILE.read_text())


@cache
def _read_head() -> Mapping[str, Any]:
    with _PRICES_FILE.open() as file:
        found: Mapping[str, Any] = json.loads(file.readline().rstrip().removesuffix(",") + "}")
    return found


def table_date() -> date:
    """The newest day on which the source looked at a price."""
    return date.fromisoformat(_read_head()["date"])


def table_version() -> str:
    """The version of genai-prices that the table was compiled from."""
    return str(_read_head()["version"])


def table_age(now: float) -> float:
    """Seconds since the table's date; `now` is wall clock."""
    return max(0.0, now - datetime.combine(table_date(), time(), UTC).timestamp())


def image_price(model: str, size: str, *, hd: bool) -> Decimal | None:
    """Dollars an image."""
    prices = price_table().images.get(model, {}).get(size)
    return None if prices is None else Decimal(str(prices[hd]))


def video_prices(model: str | None) -> Mapping[str, Decimal]:
    """Dollars a second, by size; empty for a model that is not known. Without a model, the highest of each size."""
    known = price_table().videos
    if model is not None:
        name = re.sub(r"-20\d\d-\d\d-\d\d$", "", model.lower().rpartition("/")[2])
        return {size: Decimal(str(price)) for size, price in known.get(name, {}).items()}
    sizes = {size for of in known.values() for size in of}
    return {size: max(Decimal(str(of[size])) for of in known.values() if size in of) for size in sizes}


def _matches(matcher: Any, name: str) -> bool:
    if isinstance(matcher, list):
        fit = all if matcher[0] == "&" else any
        return fit(_matches(one, name) for one in matcher[1:])
    sign, text = matcher[0], matcher[1:]
    if sign == "^":
        return name.startswith(text)
    if sign == "*":
        return text in name
    if sign == "$":
        return name.endswith(text)
    return name == text if sign == "=" else re.search(text, name) is not None
