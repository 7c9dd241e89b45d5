"""`routes`: what each kind of request gets: limits, timeouts, a queue, a cache, compression; or to run later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from proxy.policy import value_types
from proxy.policy.values import (
    ANY_TIER,
    RATE,
    Bytes,
    ByTier,
    Count,
    Label,
    Path,
    Period,
    Positive,
    Rate,
    Seconds,
    empty_mapping,
)


@dataclass(frozen=True, slots=True)
class Match:
    path: Path = "/*"
    methods: tuple[Annotated[str, value_types.METHOD], ...] = ()  # empty: all


@dataclass(frozen=True, slots=True)
class Queue:
    size: Count = 20
    wait: Seconds = 5.0


@dataclass(frozen=True, slots=True)
class Retries:
    attempts: Annotated[int, value_types.whole_number(1, 20)] = 1
    on: tuple[Literal["connect"], ...] = ("connect",)


@dataclass(frozen=True, slots=True)
class TaskBackoff:
    """The wait before a further try of a task: `first`, then twice as long each time, at most `max`."""

    first: Seconds = 5.0
    max: Seconds = 300.0


@dataclass(frozen=True, slots=True)
class TaskRetry:
    """`attempts`: tries of a task in all, less those that a drain or a death cut off."""

    attempts: Annotated[int, value_types.whole_number(1, 20)] = 3
    backoff: TaskBackoff = TaskBackoff()


@dataclass(frozen=True, slots=True)
class Background:
    """Requests that run later. `concurrency` and `max_queued` hold over all instances; `timeout` is of one try."""

    mode: Literal["off", "prefer", "always"] = "off"
    concurrency: Positive = 2
    timeout: Period = 900.0
    max_queued: Count = 1000
    retry: TaskRetry = TaskRetry()


@dataclass(frozen=True, slots=True)
class RouteCache:
    """Answers that are kept (RFC 9111). `ttl` is for answers that name no freshness, `max` bounds the route's total."""

    ttl: Seconds = 0.0
    scope: Literal["user", "public"] = "user"
    max: Annotated[int, value_types.MEMORY] = 16 * 1024 * 1024
    stale_while_revalidate: Seconds = 0.0
    stale_if_error: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class FieldValue:
    """What a header field is set to. `secret`: it came out of the environment, and is not shown again."""

    text: str
    secret: bool = False


FieldChanges = Annotated[Mapping[str, FieldValue | None], "header_fields"]


@dataclass(frozen=True, slots=True)
class RouteHeaders:
    """Fields that are set, or with None taken out, by their names in the policy's spelling."""

    request: FieldChanges = field(default_factory=empty_mapping)
    response: FieldChanges = field(default_factory=empty_mapping)


@dataclass(frozen=True, slots=True)
class Route:
    name: Label
    match: Match = Match()
    timeout: Period | None = None
    total: Period | None = None
    rate_limit: Annotated[Mapping[str, tuple[Rate, ...]], ByTier(RATE)] = field(default_factory=empty_mapping)
    concurrency: Positive | None = None
    queue: Queue = Queue()
    max_body: Bytes | None = None
    streams: Positive | None = None
    requires_budget: bool = False
    when_abandoned: Literal["close", "cancel"] = "close"
    enforce: bool = True
    cache: RouteCache | None = None
    compress: Literal["off", "auto"] = "off"
    headers: RouteHeaders = RouteHeaders()
    background: Background = Background()
    retries: Retries = Retries()

    def limits_for(self, tier: str) -> tuple[Rate, ...]:
        """The rate limits of a tier on this route; one value for all tiers is under ANY_TIER."""
        return self.rate_limit.get(tier) or self.rate_limit.get(ANY_TIER) or ()


DEFAULT_ROUTE = Route("default")
