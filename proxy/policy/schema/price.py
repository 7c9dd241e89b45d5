"""`upstreams.NAME.prices`: what a model costs by the policy, with everything that the shipped table of models can
say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated

from proxy.policy import value_types
from proxy.policy.values import Count, empty_mapping

Rated = Annotated[Decimal, value_types.PRICE] | None  # dollars a million of tokens, or of characters
Fee = Annotated[Decimal, value_types.FEE] | None  # dollars each


@dataclass(frozen=True, slots=True)
class Charges:
    """Prices of each kind of usage; also what differs from them in a long context, a tier, a size or at a time."""

    input: Rated = None
    output: Rated = None
    cached_input: Rated = None
    cached_write: Rated = None
    cached_write_1h: Rated = None
    reasoning: Rated = None
    audio_input: Rated = None
    audio_output: Rated = None
    cached_audio_input: Rated = None
    image_input: Rated = None
    image_output: Rated = None
    cached_image_input: Rated = None
    characters: Rated = None
    per_minute: Fee = None
    per_second: Fee = None
    per_image: Fee = None
    per_request: Fee = None
    search: Fee = None
    file_search: Fee = None


@dataclass(frozen=True, slots=True)
class Price(Charges):
    """Without a price of its own cached input costs what input does, and so on (see billing/pricing/rates.py)."""

    least_seconds: Count | None = None
    above: Mapping[Annotated[str, value_types.TOKENS], Charges] = field(default_factory=empty_mapping)
    tiers: Mapping[Annotated[str, value_types.SERVICE_TIER], Charges] = field(default_factory=empty_mapping)
    sizes: Mapping[Annotated[str, value_types.TEXT], Charges] = field(default_factory=empty_mapping)
    times: Mapping[Annotated[str, value_types.PRICE_TIME], Charges] = field(default_factory=empty_mapping)
