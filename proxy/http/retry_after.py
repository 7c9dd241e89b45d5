"""How long somebody asks us to wait: Retry-After, and `retry-after-ms`, which OpenAI's SDKs obey before it.

What is said is a stranger's: no text raises, and no wait is longer than a day.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST = 86400.0  # seconds


def asked_wait(field: Callable[[str], str | None], now: float) -> float | None:
    """Seconds of an answer's header, or None where it asks for nothing that can be understood. `field` gives the
    value of a name in lower case; `now` is the wall clock."""
    millis = _number(field("retry-after-ms"))
    if millis is not None:
        return _bounded(millis / 1000.0)
    return parse_retry_after(field("retry-after"), now)


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Seconds of a Retry-After: a number, of decimals too, or a date (RFC 9110 section 10.2.3)."""
    seconds = _number(text)
    if seconds is None and text:
        try:
            moment = parsedate_to_datetime(text)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
        except (
            ValueError,
            OverflowError,
            TypeError,
            IndexError,
        ):  # what it raises of texts depends on Python's version
            return None
    return None if seconds is None else _bounded(seconds)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is None or number == number else None  # NaN says nothing


def _bounded(seconds: float) -> float:
    return min(LONGEST, max(0.0, seconds))
