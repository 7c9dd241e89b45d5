"""Retry-After in both directions: as the gateway states it, and as other servers ask it of the gateway.

What another server writes is not trusted: no text raises, and no wait is longer than a day.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

MAX_WAIT = 86400.0  # seconds


def round_retry_after(seconds: float) -> int:
    """Whole seconds for a Retry-After field (RFC 9110 section 10.2.3): rounded up, so that nobody comes too early, and
    at least 1, since 0 would say "at once"."""
    return max(1, math.ceil(seconds))


def wait_from_headers(header: Callable[[str], str | None], now: float) -> float | None:
    """Seconds that a response asks its client to wait, or None if it asks for nothing that can be understood.

    `retry-after-ms` goes before Retry-After, as in OpenAI's SDKs. `header` gives the value of a field by its name in
    lower case; `now` is the wall clock, in seconds.
    """
    millis = _parse_number(header("retry-after-ms"))
    if millis is not None:
        return _clamp_wait(millis / 1000.0)
    return parse_retry_after(header("retry-after"), now)


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Seconds that a Retry-After asks for: a number, which may have decimals, or a date (RFC 9110 section 10.2.3)."""
    seconds = _parse_number(text)
    if seconds is None and text:
        try:
            moment = parsedate_to_datetime(text)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError, TypeError, IndexError):  # which of them depends on Python's version
            return None
    return None if seconds is None else _clamp_wait(seconds)


def _parse_number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return None if number is None or math.isnan(number) else number


def _clamp_wait(seconds: float) -> float:
    return min(MAX_WAIT, max(0.0, seconds))
