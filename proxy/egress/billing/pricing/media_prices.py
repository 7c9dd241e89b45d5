"""What videos cost: by the second, and by their size."""

from __future__ import annotations

from decimal import Decimal

from proxy.egress.billing.pricing.billable_usage import LONGEST
from proxy.egress.billing.pricing.rates import Cost, dollars_to_nanos
from proxy.egress.billing.pricing.table import video_prices
from proxy.egress.dialects.base import Json, as_text, to_decimal

# What the API takes where a request does not say (developers.openai.com/api/docs/api-reference/videos/create).
MODEL, SIZE, SECONDS = "sora-2", "720x1280", 4


def video_cost(model: str | None, details: Json) -> Cost:
    """By `video_seconds` and `size`; the dearest there is, as an estimate, where the table does not have it."""
    by_size = video_prices(model or MODEL)
    price = by_size.get(size_of(details))
    length = min(max(to_decimal(details.get("video_seconds")) or Decimal(0), Decimal(0)), Decimal(LONGEST))
    if price is not None:
        return Cost(dollars_to_nanos(price * length))
    guess = dollars_to_nanos(max((by_size or video_prices(None)).values()) * length)
    return Cost(guess, guess)


def seconds_asked(body: Json) -> int:
    """The API takes them as text."""
    told = body.get("seconds")
    if isinstance(told, str) and told.isdecimal() and len(told) < 6:
        return int(told)
    return told if isinstance(told, int) and told > 0 else SECONDS


def size_of(told: Json) -> str:
    return as_text(told.get("size")) or SIZE
