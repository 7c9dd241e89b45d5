"""What an upstream said of its own limits, by model: until when it wants no calls, how much is left.

Each answer has it in its header. OpenAI: `x-ratelimit-remaining-requests`, `x-ratelimit-reset-requests: 6m0s`, and the
same for tokens (platform.openai.com/docs/guides/rate-limits). Anthropic: `anthropic-ratelimit-requests-remaining` and
`-reset`, an RFC 3339 time (docs.anthropic.com/en/api/rate-limits).

Vendors count by model: OpenAI says so of all its limits, Anthropic counts by class of model, Azure by deployment. A
limit that holds for every model is told apart by the words of its error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime

# A count is old as soon as others call with the same key, so it is believed for so many seconds at most.
MAX_PAUSE_LEARNT = 60.0

MAX_ERROR_READ = 4096  # bytes of an error that are looked at

# Anthropic's account limit; words of several hosts; Cloudflare's page for an address that asks too often.
_EVERY_MODEL = re.compile(
    rb"\b(?:your|this|per) account(?:'s|\xe2\x80\x99s|\\u2019s)? (?:rate )?limit|\baccount[- ]wide\b"
    rb"|\b(?:all|every) models?\b|\bIP address\b|\berror code: 1015\b",
    re.IGNORECASE,
)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_REMAINING_FIELDS = frozenset(
    (
        "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-tokens-remaining",
    )
)
_UNIT_SECONDS = (86400.0, 3600.0, 60.0, 1.0, 0.001)


def parse_limit_headers(headers: Mapping[str, str], now: float) -> list[tuple[str, float, float]]:
    """(requests or tokens, how many are left, seconds until there are more); `now` is the wall clock."""
    found = []
    for kind in ("requests", "tokens"):
        left = _parse_number(headers.get(f"x-ratelimit-remaining-{kind}"))
        again = parse_duration(headers.get(f"x-ratelimit-reset-{kind}"))
        if left is None:
            left = _parse_number(headers.get(f"anthropic-ratelimit-{kind}-remaining"))
            again = _seconds_until(headers.get(f"anthropic-ratelimit-{kind}-reset"), now)
        if left is not None and again is not None:
            found.append((kind, left, min(MAX_PAUSE_LEARNT, max(0.0, again))))
    return found


def concerns_every_model(error: bytes) -> bool:
    """Whether the body of a 429 says that the limit is not that of one model. OpenAI's and Anthropic's usual ones are
    ("Rate limit reached for gpt-4.1 in organization …", "your organization's rate limit of 30,000 input tokens")."""
    return _EVERY_MODEL.search(error[:MAX_ERROR_READ]) is not None


def parse_duration(text: str | None) -> float | None:
    """Seconds of `12ms`, `1s`, `6m0s`, `1h2m3.5s` or a bare number, which is seconds; None if it is none of these."""
    if not text:
        return None
    number = _parse_number(text)
    if number is not None:
        return number
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    return sum(float(part) * worth for part, worth in zip(match.groups(), _UNIT_SECONDS, strict=True) if part)


def _parse_number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except (ValueError, OverflowError):
        return None
    # NaN and infinity, which float() reads, are no counts.
    return value if value is not None and 0 <= value < 1e12 else None


def _seconds_until(text: str | None, now: float) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() - now if text else None
    except (ValueError, OverflowError):
        return None


MAX_MODELS = 100  # told apart; the one whose limit ends soonest goes first


class _ModelLimit:
    """One model's limits. Moments are the clock's; `left` counts tokens, and holds until `left_until`."""

    __slots__ = ("exhausted_until", "left", "left_until", "paused_until")

    def __init__(self) -> None:
        self.paused_until = 0.0  # by a 429 with Retry-After
        self.exhausted_until = 0.0  # by the upstream's own count of what is left
        self.left = 0.0
        self.left_until = 0.0

    @property
    def ends(self) -> float:
        return max(self.paused_until, self.exhausted_until, self.left_until)


class ProviderLimits:
    """The limits of one upstream. `clock` is monotonic, `now` the wall clock; calls that name no model count as one."""

    def __init__(self, clock: Callable[[], float], now: Callable[[], float]) -> None:
        self._clock = clock
        self._now = now
        self._all_paused_until = 0.0  # until when no model is to be called
        self._models: dict[str | None, _ModelLimit] = {}

    def __repr__(self) -> str:
        now = self._clock()
        waits = {model: max(limit.paused_until, limit.exhausted_until) - now for model, limit in self._models.items()}
        held = [f"{model or 'calls of no model'} for {wait:.1f} s" for model, wait in waits.items() if wait > 0]
        held += [f"every model for {self._all_paused_until - now:.1f} s"] if self._all_paused_until > now else []
        return f"<Limits {', '.join(held) or 'none'}>"

    def pause_model(self, seconds: float, model: str | None) -> None:
        """The upstream wants a pause of this model's calls."""
        limit = self._limit_of(model)
        limit.paused_until = max(limit.paused_until, self._clock() + seconds)

    def pause_all(self, seconds: float) -> None:
        """The upstream wants a pause of all calls."""
        self._all_paused_until = max(self._all_paused_until, self._clock() + seconds)

    def read_headers(self, headers: Mapping[str, str], model: str | None) -> None:
        """Learn from the header of an answer of this model's."""
        if _REMAINING_FIELDS.isdisjoint(headers):
            return
        for kind, left, again in parse_limit_headers(headers, self._now()):
            limit, until = self._limit_of(model), self._clock() + again
            # Whether the tokens left are enough depends on the call, so they are kept; requests are left or are not.
            if kind == "tokens":
                limit.left, limit.left_until = left, until
            elif left < 1:
                limit.exhausted_until = max(limit.exhausted_until, until)

    def paused_until(self, model: str | None) -> float:
        """The moment until which a pause was asked for (Retry-After); one that is past if none was."""
        limit = self._models.get(model)
        return self._all_paused_until if limit is None else max(self._all_paused_until, limit.paused_until)

    def exhausted_until(self, model: str | None, tokens: int) -> float:
        """The moment from which on there is enough left for such a call, by the upstream's own count."""
        limit = self._models.get(model)
        if limit is None:
            return 0.0
        # Too few tokens are enough again when the count is renewed, and not before.
        lacks = tokens > limit.left and self._clock() < limit.left_until
        return max(limit.exhausted_until, limit.left_until) if lacks else limit.exhausted_until

    def _limit_of(self, model: str | None) -> _ModelLimit:
        found = self._models.get(model)
        if found is None:
            # The app chooses the names of models; what ends soonest is missed least.
            if len(self._models) >= MAX_MODELS:
                del self._models[min(self._models, key=lambda name: self._models[name].ends)]
            found = self._models[model] = _ModelLimit()
        return found
