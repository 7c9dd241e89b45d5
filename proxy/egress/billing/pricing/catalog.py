"""Where an upstream's models are looked up, by whatever name they go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy.egress.billing.pricing.rates import PriceRow, Rates, highest_prices
from proxy.egress.billing.pricing.table import DAY, HostSection, ModelPrices, price_table

_DAY = re.compile(r"[-@]20\d{2}(-?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])$")
_COMPACT = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")
_REGIONAL = re.compile(r"^[a-z]{2}\.api\.openai\.com$")
TUNED = 2  # what a fine-tuned model without a price of its own costs, times its base's

Fit = Callable[[PriceRow, str], bool]


@dataclass(frozen=True, slots=True)
class CatalogMatch:
    """`sure`: the table has this very model at this very host."""

    model: ModelPrices
    exact: bool = True
    factor: int = 1


def snapshot_of(name: str) -> str | None:
    """`gpt-4o` of `gpt-4o-2024-08-06`; None where the name has no day."""
    short = _DAY.sub("", name)
    return short if short != name and short else None


class Catalog:
    """One upstream's part of the table, read when first asked."""

    def __init__(self, kind: str, base_url: str) -> None:
        self._kind = kind
        self._base_url = base_url
        self._order: list[str] | None = None
        self._own = 0  # how many of them are the host's
        self._names_vendors = True  # `openai/gpt-4o` is a name of the host's own
        self._dearest: dict[str, tuple[int, Rates]] = {}
        self.regional = kind == "openai" and bool(_REGIONAL.match(urlsplit(base_url).hostname or ""))

    def find_model(self, name: str) -> ModelPrices | None:
        entry = self.find(name)
        return entry.model if entry is not None else None

    def find(self, name: str) -> CatalogMatch | None:
        key = name.strip().lower().removeprefix("models/")  # Google's
        return self._tuned(key) if key.startswith("ft:") else self._named(key)

    def model_label(self, name: str) -> str | None:
        """The name of a model as a metric's label: one that the table has, however many others come from outside. A
        snapshot that it lacks goes by its model; what is no more than a variant of something has none."""
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
        """The dearest price of each unit that any model fit for the endpoint has, long contexts included."""
        fit = _FIT.get(endpoint or "", _any)
        day = int(at // DAY)
        found = self._dearest.get(fit.__name__)
        if found is None or found[0] != day:
            found = self._dearest[fit.__name__] = (day, self._highest(fit, at))
        return found[1]

    def _named(self, key: str, tries: int = 3) -> CatalogMatch | None:
        sections = self._sections()
        if (model := _first(sections[: self._own], key)) is not None:
            return CatalogMatch(model)
        vendor, slash, rest = key.partition("/")
        sold = price_table().vendors.get(vendor) if slash and sections else None
        if sold is not None and (model := price_table().section(sold).find(rest)) is not None:
            return CatalogMatch(model, exact=self._names_vendors)
        if (model := _first(sections[self._own :], key)) is not None:
            return CatalogMatch(model, exact=False)
        # A variant that the table does not have costs what it is a variant of, as far as one knows.
        short = snapshot_of(key) or key.rpartition(":")[0] or rest
        found = self._named(short, tries - 1) if short and tries else None
        return CatalogMatch(found.model, exact=False) if found is not None else None

    def _tuned(self, key: str) -> CatalogMatch | None:
        """`ft:BASE:ORGANISATION:…`: its own price, else twice its base's."""
        if (model := _first(self._sections()[: self._own], key)) is not None:
            return CatalogMatch(model)
        found = self._named(key.split(":")[1])
        return CatalogMatch(found.model, exact=False, factor=TUNED) if found is not None else None

    def _sections(self) -> list[HostSection]:
        """The host's own and those whose models it sells; then the dialect's vendor's; then all others."""
        if self._order is None:
            self._order = []
            if self._kind in ("openai", "anthropic"):
                host = price_table().host(self._base_url)
                own = host or self._kind
                self._names_vendors = host in (None, "openrouter")
                self._order = [own, *price_table().others.get(own, ())]
                self._own = len(self._order)
                if host is None or host == "openrouter":
                    self._order += [self._kind, *price_table().vendors.values()]
                self._order = list(dict.fromkeys(self._order))
        return [price_table().section(name) for name in self._order]

    def _highest(self, fit: Fit, at: float) -> Rates:
        sections = self._sections()
        if not sections:
            return Rates({})
        rows = [(model.name, model.price_row(at)) for model in sections[0].models()]
        return Rates(highest_prices([row for name, row in rows if fit(row, name)] or [row for _, row in rows]))


def _first(sections: Iterable[HostSection], key: str) -> ModelPrices | None:
    dashed = _COMPACT.sub(r"-\1-\2-\3", key)
    for section in sections:
        model = section.find(key) or (section.find(dashed) if dashed != key else None)
        if model is not None:
            return model
    return None


def _any(row: PriceRow, name: str) -> bool:
    return True


def _embedding(row: PriceRow, name: str) -> bool:
    return "input" in row and "output" not in row


def _audio(row: PriceRow, name: str) -> bool:
    heard = "whisper" in name or "transcribe" in name or "voxtral" in name
    return "characters" in row or "-tts" in name or (heard and "realtime" not in name and "live" not in name)


def _image(row: PriceRow, name: str) -> bool:
    return "image" in name


# What the endpoint can serve: an embedding never costs what the dearest chat does.
_FIT: Mapping[str, Fit] = {"embeddings": _embedding, "audio": _audio, "images": _image}
