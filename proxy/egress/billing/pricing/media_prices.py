"""What videos cost by the second and their size, and images by the piece, if no usage is reported for them."""

from __future__ import annotations

import re
from decimal import Decimal

from proxy.egress.billing.pricing.billable_usage import MAX_MEDIA_SECONDS
from proxy.egress.billing.pricing.rates import Cost, dollars_to_nanos
from proxy.egress.billing.pricing.table import image_price, video_prices
from proxy.egress.dialects.base import Json, as_text, to_decimal

# What the API takes if a request does not say (developers.openai.com/api/docs/api-reference/videos/create).
DEFAULT_VIDEO_MODEL, DEFAULT_VIDEO_SIZE, DEFAULT_VIDEO_SECONDS = "sora-2", "720x1280", 4


def video_cost(model: str | None, details: Json) -> Cost:
    """By `video_seconds` and `size`; if the table does not have it, the highest price, as an estimate."""
    by_size = video_prices(model or DEFAULT_VIDEO_MODEL)
    price = by_size.get(video_size(details))
    length = min(max(to_decimal(details.get("video_seconds")) or Decimal(0), Decimal(0)), Decimal(MAX_MEDIA_SECONDS))
    if price is not None:
        return Cost(dollars_to_nanos(price * length))
    guess = dollars_to_nanos(max((by_size or video_prices(None)).values()) * length)
    return Cost(guess, guess)


def requested_seconds(body: Json) -> int:
    """Seconds of the video that a request asks for. The API takes them as text."""
    details = body.get("seconds")
    if isinstance(details, str) and details.isdecimal() and len(details) < 6:
        return int(details)
    return details if isinstance(details, int) and details > 0 else DEFAULT_VIDEO_SECONDS


def video_size(details: Json) -> str:
    return as_text(details.get("size")) or DEFAULT_VIDEO_SIZE


def image_cost(model: str | None, body: Json) -> Cost | None:
    name = (model or "dall-e-2").lower().rpartition("/")[2]  # the API's own default
    size = re.sub(r"\s", "", as_text(body.get("size")) or "1024x1024")
    price = image_price(name, size, hd=body.get("quality") == "hd")
    return None if price is None else Cost(dollars_to_nanos(price * image_count(body)))


def image_count(body: Json) -> int:
    """Images asked for."""
    wanted = body.get("n")
    return wanted if isinstance(wanted, int) and 1 <= wanted <= 10 else 1
