"""Which row of the price table a model's name means, at one upstream.

Tried in order: the host's own section; a name with its vendor (`openai/gpt-4o`); the sections of the dialect's vendor
and all others; the same without the day or the variant at the end of the name. What is found beyond the host's own
section is an estimate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy.egress.billing.pricing.rates import DAY, PriceRow, Rates, highest_prices
from proxy.egress.billing.pricing.table import HostSection, ModelPrices, price_table

_DAY_SUFFIX = re.compile(r"[-@]20\d{2}(-?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])$")
_COMPACT_DAY = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")
_REGIONAL_HOST = re.compile(r"^[a-z]{2}\.api\.openai\.com$")
FINE_TUNE_FACTOR = 2  # what a fine-tuned model without a price of its own costs, in prices of its base

ModelFilter = Callable[[PriceRow, str], bool]


@dataclass(frozen=True, slots=True)
class CatalogMatch:
    """`exact`: the table has this very model at this very host. `factor`: times its price."""

    model: ModelPrices
    exact: bool = True
    factor: int = 1


def snapshot_of(name: str) -> str | None:
    """`gpt-4o` of `gpt-4o-2024-08-06`; None if the name has no day."""
    short = _DAY_SUFFIX.sub("", name)
    return short if short != name and short else None


class Catalog:
    """The parts of the table that one upstream's models are looked up in; read at the first question."""

    def __init__(self, kind: str, base_url: str) -> None:
        self._kind = kind
        self._base_url = base_url
        self._section_names: list[str] | None = None
        self._own_count = 0  # how many of them are the host's
        self._names_vendors = True  # `openai/gpt-4o` is a name of the host's own
        self._highest_by_filter: dict[str, tuple[int, Rates]] = {}
        self.regional = kind == "openai" and bool(_REGIONAL_HOST.match(urlsplit(base_url).hostname or ""))

    def find_model(self, name: str) -> ModelPrices | None:
        entry = self.find(name)
        return entry.model if entry is not None else None

    def find(self, name: str) -> CatalogMatch | None:
        key = name.strip().lower().removeprefix("models/")  # Google's
        return self._find_fine_tuned(key) if key.startswith("ft:") else self._find_by_name(key)

    def model_label(self, name: str) -> str | None:
        """The name of a model as a metric's label: one that the table has; None if it has none.

        A snapshot that the table lacks goes by its model. A mere variant of something has no label, since callers could
        make up any number of those.
        """
        key = name.strip().lower().removeprefix("models/")
        vendor, slash, _ = key.partition("/")
        sold = price_table().vendors.get(vendor) if slash and self._sections() else None
        for one in filter(None, (key, snapshot_of(key))):
            if self._sections() and one in price_table().videos:
                return one
            for section in self._sections():
                if (found := section.model_label(one)) is not None:
                    return found
            if (
                sold is not None
                and (found := price_table().section(sold).model_label(one.partition("/")[2])) is not None
            ):
                return f"{vendor}/{found}"
        return None

    def highest_rates(self, endpoint: str | None, at: float) -> Rates:
        """The highest price of each unit among the models that can serve the endpoint, long contexts included."""
        fit = _FILTERS.get(endpoint or "", _serves_anything)
        # Kept for a day: it is an estimate, and prices seldom change.
        day = int(at // DAY)
        found = self._highest_by_filter.get(fit.__name__)
        if found is None or found[0] != day:
            found = self._highest_by_filter[fit.__name__] = (day, self._highest_rates_of(fit, at))
        return found[1]

    def _find_by_name(self, key: str, tries: int = 3) -> CatalogMatch | None:
        sections = self._sections()
        if (model := _find_first(sections[: self._own_count], key)) is not None:
            return CatalogMatch(model)
        vendor, slash, rest = key.partition("/")
        sold = price_table().vendors.get(vendor) if slash and sections else None
        if sold is not None and (model := price_table().section(sold).find(rest)) is not None:
            return CatalogMatch(model, exact=self._names_vendors)
        if (model := _find_first(sections[self._own_count :], key)) is not None:
            return CatalogMatch(model, exact=False)
        # A variant that the table does not have costs what it is a variant of, as far as one knows.
        short = snapshot_of(key) or key.rpartition(":")[0] or rest
        found = self._find_by_name(short, tries - 1) if short and tries else None
        return CatalogMatch(found.model, exact=False) if found is not None else None

    def _find_fine_tuned(self, key: str) -> CatalogMatch | None:
        """The price of `ft:BASE:ORGANISATION:…`: its own, else twice its base's."""
        if (model := _find_first(self._sections()[: self._own_count], key)) is not None:
            return CatalogMatch(model)
        found = self._find_by_name(key.split(":")[1])
        return CatalogMatch(found.model, exact=False, factor=FINE_TUNE_FACTOR) if found is not None else None

    def _sections(self) -> list[HostSection]:
        """The host's own section and those whose models it sells; then the dialect's vendor's; then all others."""
        if self._section_names is None:
            self._section_names = []
            if self._kind in ("openai", "anthropic"):
                host = price_table().host(self._base_url)
                own = host or self._kind
                self._names_vendors = host in (None, "openrouter")
                self._section_names = [own, *price_table().others.get(own, ())]
                self._own_count = len(self._section_names)
                if host is None or host == "openrouter":
                    self._section_names += [self._kind, *price_table().vendors.values()]
                self._section_names = list(dict.fromkeys(self._section_names))
        return [price_table().section(name) for name in self._section_names]

    def _highest_rates_of(self, fit: ModelFilter, at: float) -> Rates:
        sections = self._sections()
        if not sections:
            return Rates({})
        rows = [(model.name, model.price_row(at)) for model in sections[0].models()]
        return Rates(highest_prices([row for name, row in rows if fit(row, name)] or [row for _, row in rows]))


def _find_first(sections: Iterable[HostSection], key: str) -> ModelPrices | None:
    # Vendors write a snapshot's day both ways: 20250929 (Anthropic) and 2025-09-29 (OpenAI).
    dashed = _COMPACT_DAY.sub(r"-\1-\2-\3", key)
    for section in sections:
        model = section.find(key) or (section.find(dashed) if dashed != key else None)
        if model is not None:
            return model
    return None


def _serves_anything(row: PriceRow, name: str) -> bool:
    return True


def _serves_embeddings(row: PriceRow, name: str) -> bool:
    return "input" in row and "output" not in row


def _serves_audio(row: PriceRow, name: str) -> bool:
    heard = "whisper" in name or "transcribe" in name or "voxtral" in name
    return "characters" in row or "-tts" in name or (heard and "realtime" not in name and "live" not in name)


def _serves_images(row: PriceRow, name: str) -> bool:
    return "image" in name


# Which models an endpoint can use: an embedding never costs what the dearest chat model does.
_FILTERS: Mapping[str, ModelFilter] = {
    "embeddings": _serves_embeddings,
    "audio": _serves_audio,
    "images": _serves_images,
}
