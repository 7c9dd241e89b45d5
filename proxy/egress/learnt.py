"""What an upstream tells of its own limits with each answer.

OpenAI: `x-ratelimit-remaining-requests`, `x-ratelimit-reset-requests: 6m0s`, and the same for tokens
(platform.openai.com/docs/guides/rate-limits). Anthropic: `anthropic-ratelimit-requests-remaining` and
`-reset`, an RFC 3339 time (docs.anthropic.com/en/api/rate-limits).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

LONGEST = 60.0  # seconds that one lesson is believed

LONGEST_ERROR = 4096  # bytes of an error that are looked at

# Anthropic's account limit; words of several hosts; Cloudflare's page for an address that asks too often.
_EVERY = re.compile(
    rb"\b(?:your|this|per) account(?:'s|\xe2\x80\x99s|\\u2019s)? (?:rate )?limit|\baccount[- ]wide\b"
    rb"|\b(?:all|every) models?\b|\bIP address\b|\berror code: 1015\b",
    re.IGNORECASE,
)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_WORTH = (86400.0, 3600.0, 60.0, 1.0, 0.001)


def lessons(headers: Mapping[str, str], now: float) -> list[tuple[str, float, float]]:
    """(requests or tokens, how many are left, seconds until there are more); `now` is the wall clock."""
    found = []
    for kind in ("requests", "tokens"):
        left = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
        again = seconds(headers.get(f"x-ratelimit-reset-{kind}"))
        if left is None:
            left = _number(headers.get(f"anthropic-ratelimit-{kind}-remaining"))
            again = _until(headers.get(f"anthropic-ratelimit-{kind}-reset"), now)
        if left is not None and again is not None:
            found.append((kind, left, min(LONGEST, max(0.0, again))))
    return found


def is_of_every_model(error: bytes) -> bool:
    """Whether the body of a 429 says that the limit is not that of one model. OpenAI's and Anthropic's usual ones are
    ("Rate limit reached for gpt-4.1 in organization …", "your organization's rate limit of 30,000 input tokens")."""
    return _EVERY.search(error[:LONGEST_ERROR]) is not None


def seconds(text: str | None) -> float | None:
    """`12ms`, `1s`, `6m0s`, `1h2m3.5s`; a bare number is seconds."""
    if not text:
        return None
    number = _number(text)
    if number is not None:
        return number
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    return sum(float(part) * worth for part, worth in zip(match.groups(), _WORTH, strict=True) if part)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except (ValueError, OverflowError):
        return None
    return value if value is not None and 0 <= value < 1e12 else None


def _until(text: str | None, now: float) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() - now if text else None
    except (ValueError, OverflowError):
        return None
