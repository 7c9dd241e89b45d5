"""`upstreams` and `egress`: the upstreams that an app calls, what they may cost, and every other host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from proxy.policy import urls, value_types
from proxy.policy.schema.price import Price
from proxy.policy.values import (
    RATE,
    SPEND,
    Bytes,
    ByTier,
    Dollars,
    Label,
    Period,
    Positive,
    Rate,
    Seconds,
    Share,
    Spend,
    empty_mapping,
)

DialectName = Literal["openai", "anthropic", "http"]


@dataclass(frozen=True, slots=True)
class CallTimeout:
    """`first_byte` and `idle` apply to streams only; `total` covers all attempts and the waits between them."""

    connect: Period = 10.0
    first_byte: Period | None = None
    idle: Period | None = 300.0
    total: Period | None = 600.0


@dataclass(frozen=True, slots=True)
class Backoff:
    first: Seconds = 0.5
    max: Seconds = 10.0
    jitter: Literal["full", "none"] = "full"


@dataclass(frozen=True, slots=True)
class RetryAfter:
    max: Seconds = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """`on` has words (connect, reset, first_byte) and statuses, both as text."""

    attempts: Annotated[int, value_types.whole_number(1, 20)] = 4
    backoff: Backoff = Backoff()
    on: tuple[Annotated[str, value_types.RETRY_ON], ...] = (
        "connect",
        "reset",
        "408",
        "409",
        "429",
        "500",
        "502",
        "503",
        "504",
    )
    retry_after: RetryAfter = RetryAfter()
    budget: Share = 0.2


@dataclass(frozen=True, slots=True)
class Breaker:
    window: Period = 60.0
    min_calls: Positive = 5
    failure_ratio: Share = 0.5
    open: Period = 30.0
    probes: Positive = 1
    slow_call: Period | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    requests: Annotated[Rate, RATE] | None = None
    tokens: Annotated[Rate, RATE] | None = None
    concurrency: Positive | None = None
    wait: Seconds = 10.0


@dataclass(frozen=True, slots=True)
class Cap:
    per_call: Dollars | None = None
    per_user: Annotated[Mapping[str, tuple[Spend, ...]], ByTier(SPEND)] = field(default_factory=empty_mapping)
    unattributed: Annotated[Spend, SPEND] | None = None
    total: Annotated[Spend, SPEND] | None = None
    reserve: Literal["typical", "worst"] = "typical"
    warn: tuple[Share, ...] = (0.5, 0.8, 1.0)
    timezone: Annotated[str, value_types.TIME_ZONE] = "UTC"


@dataclass(frozen=True, slots=True)
class Cache:
    ttl: Seconds = 0.0
    max: Bytes = 16 * 1024 * 1024
    scope: Literal["user", "all"] = "user"
    when: Literal["deterministic", "always"] = "deterministic"
    stale_if_error: Seconds = 3600.0


@dataclass(frozen=True, slots=True)
class Fallback:
    """One of: another upstream or model (or both), an expired cache entry, a fixed text."""

    upstream: Label | None = None
    model: Annotated[str, value_types.TEXT] | None = None
    stale: bool = False
    text: Annotated[str, value_types.PROSE] | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    kind: DialectName = "http"
    base_url: Annotated[str, urls.HTTP_URL] = ""
    env: tuple[Annotated[str, value_types.VARIABLE], ...] = ()
    api_key: Annotated[str, value_types.SECRET] | None = field(default=None, repr=False)
    timeout: CallTimeout = CallTimeout()
    retry: Retry = Retry()
    breaker: Breaker | None = Breaker()
    pace: Pace = Pace()
    cap: Cap = Cap()
    cache: Cache = Cache()
    coalesce: bool = False
    fallback: tuple[Fallback, ...] = ()
    prices: Mapping[Annotated[str, value_types.TEXT], Price] = field(default_factory=empty_mapping)
    unknown_price: Literal["highest", "refuse", "zero"] = "highest"


OPENAI = Upstream("openai", "https://api.openai.com/v1", ("OPENAI_BASE_URL", "OPENAI_API_BASE"))
ANTHROPIC = Upstream("anthropic", "https://api.anthropic.com", ("ANTHROPIC_BASE_URL",))
# An upstream of such a name has these defaults; any other name needs kind and base_url.
NAMED_AFTER_THEIR_KIND: Mapping[str, Upstream] = MappingProxyType({"openai": OPENAI, "anthropic": ANTHROPIC})


def default_upstreams() -> Mapping[str, Upstream]:
    # An unmodified app that uses OpenAI is metered without a line of policy.
    return MappingProxyType({"openai": OPENAI})


@dataclass(frozen=True, slots=True)
class HostTimeout:
    connect: Period = 10.0
    idle: Period | None = 30.0
    total: Period | None = 120.0


@dataclass(frozen=True, slots=True)
class HostBreaker:
    window: Period = 60.0
    min_calls: Positive = 5
    failure_ratio: Share = 0.5
    open: Period = 30.0
    probes: Positive = 1


@dataclass(frozen=True, slots=True)
class Egress:
    """The hosts that no upstream names."""

    other_hosts: Literal["allow", "observe", "deny"] = "allow"
    timeout: HostTimeout = HostTimeout()
    breaker: HostBreaker | None = HostBreaker()
    no_proxy: tuple[Annotated[str, value_types.TEXT], ...] = ("localhost", "127.0.0.1", "::1")
