"""Where an upstream's models are looked up, by whatever name they go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy.egress.money.rates import Rates
from proxy.egress.money.table import DAY, Model, Section, table

LONGEST_NAME = 200  # characters; no model has a longer one
_DAY = re.compile(r"[-@]20\d{2}(-?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])$")
_COMPACT = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")
_REGIONAL = re.compile(r"^[a-z]{2}\.api\.openai\.com$")
TUNED = 2  # what a fine-tuned model without a price of its own costs, times its base's


@dataclass(frozen=True, slots=True)
class Entry:
    """`sure`: the table has this very model at this very host."""

    model: Model
    sure: bool = True
    times: int = 1


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

    def model(self, name: str) -> Model | None:
        entry = self.entry(name)
        return entry.model if entry is not None else None

    def entry(self, name: str) -> Entry | None:
        key = name.strip().lower().removeprefix("models/")  # Google's
        return self._tuned(key) if key.startswith("ft:") else self._named(key)

    def dearest(self, endpoint: str | None, at: float) -> Rates:
        """The dearest price of each unit that any model fit for the endpoint has, long contexts included."""
        fit = _FIT.get(endpoint or "", _any)
        day = int(at // DAY)
        found = self._dearest.get(fit.__name__)
        if found is None or found[0] != day:
            found = self._dearest[fit.__name__] = (day, self._highest(fit, at))
        return found[1]

    def _named(self, key: str) -> Entry | None:
        sections = self._sections()
        if (model := _first(sections[: self._own], key)) is not None:
            return Entry(model)
        vendor, slash, rest = key.partition("/")
        sold = table().vendors.get(vendor) if slash and sections else None
        if sold is not None and (model := table().section(sold).find(rest)) is not None:
            return Entry(model, sure=self._names_vendors)
        if (model := _first(sections[self._own :], key)) is not None:
            return Entry(model, sure=False)
        # A variant that the table does not have costs what it is a variant of, as far as one knows.
        short = snapshot_of(key) or key.rpartition(":")[0] or rest
        found = self._named(short) if short else None
        return Entry(found.model, sure=False) if found is not None else None

    def _tuned(self, key: str) -> Entry | None:
        """`ft:BASE:ORGANISATION:…`: its own price, else twice its base's."""
        for section in self._sections():
            if (model := section.find(key)) is not None:
                return Entry(model)
        found = self._named(key.split(":")[1])
        return Entry(found.model, sure=False, times=TUNED) if found is not None else None

    def _sections(self) -> list[Section]:
        """The host's own and those whose models it sells; then the dialect's vendor's; then all others."""
        if self._order is None:
            self._order = []
            if self._kind in ("openai", "anthropic"):
                host = table().host(self._base_url)
                own = host or self._kind
                self._names_vendors = host in (None, "openrouter")
                self._order = [own, *table().others.get(own, ())]
                self._own = len(self._order)
                if host is None or host == "openrouter":
                    self._order += [self._kind, *table().vendors.values()]
                self._order = list(dict.fromkeys(self._order))
        return [table().section(name) for name in self._order]

    def _highest(self, fit: Callable[[Rates, str], bool], at: float) -> Rates:
        sections = self._sections()
        if not sections:
            return Rates({})
        chosen = list(_rates(sections[0], fit, at)) or list(_rates(sections[0], _any, at))
        return Rates.highest_of(chosen)


def _first(sections: Iterable[Section], key: str) -> Model | None:
    dashed = _COMPACT.sub(r"-\1-\2-\3", key)
    for section in sections:
        model = section.find(key) or (section.find(dashed) if dashed != key else None)
        if model is not None:
            return model
    return None


def _rates(section: Section, fit: Callable[[Rates, str], bool], at: float) -> Iterator[Rates]:
    for model in section.models():
        rates, _ = model.rates(at)
        if fit(rates, model.name):
            yield rates


def _any(rates: Rates, name: str) -> bool:
    return True


def _embedding(rates: Rates, name: str) -> bool:
    return "input" in rates.priced and "output" not in rates.priced


def _audio(rates: Rates, name: str) -> bool:
    return bool(rates.priced & {"hours", "characters"}) or "transcribe" in name or "tts" in name


def _image(rates: Rates, name: str) -> bool:
    return "image" in name


# What the endpoint can serve: an embedding never costs what the dearest chat does.
_FIT: dict[str, Callable[[Rates, str], bool]] = {"embeddings": _embedding, "audio": _audio, "images": _image}
