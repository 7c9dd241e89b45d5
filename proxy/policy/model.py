"""What a policy says, typed and immutable. Attribute names are the keys of the policy language.

Units: durations are seconds, sizes are bytes, shares are 0 to 1, money is Decimal dollars.
A key whose value may be `null` or `off` is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import Annotated, Any, Literal

Seconds = Annotated[float, "duration"]
Bytes = Annotated[int, "size"]
Share = Annotated[float, "share"]
Dollars = Annotated[Decimal, "money"]
Network = IPv4Network | IPv6Network


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` in every window of `period` seconds."""

    count: int
    period: Seconds


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# ── app ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ready:
    path: str | None = None
    interval: Seconds = 0.25
    timeout: Seconds = 5.0


@dataclass(frozen=True, slots=True)
class Restart:
    backoff: Seconds = 1.0
    max_backoff: Seconds = 30.0
    give_up_after: int = 0


@dataclass(frozen=True, slots=True)
class Liveness:
    path: str | None = None
    interval: Seconds = 10.0
    timeout: Seconds = 5.0
    failures: int = 3


@dataclass(frozen=True, slots=True)
class Memory:
    limit: Bytes | Literal["auto"] = "auto"
    warn: Share = 0.8
    recycle: Share | None = None
    every: Seconds = 600.0


@dataclass(frozen=True, slots=True)
class App:
    port: int | Literal["auto"] = "auto"
    url: str | None = None
    ready: Ready = Ready()
    start_timeout: Seconds = 900.0
    stop_timeout: Seconds = 8.0
    restart: Restart = Restart()
    hold: Seconds = 15.0
    liveness: Liveness = Liveness()
    memory: Memory = Memory()
    attribution: Literal["auto", "on", "off"] = "auto"


# ── listen, admin ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """Whose X-Forwarded-* is believed. `hops` and `networks` go with the kinds of that name."""

    kind: Literal["auto", "none", "render", "private", "hops", "networks"] = "auto"
    hops: int = 0
    networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Listen:
    public: Address | None = Address("0.0.0.0", 10000)
    admin: Address = Address("127.0.0.1", 9901)
    egress: Address = Address("127.0.0.1", 9902)
    claim: tuple[str, ...] = ()
    trusted_proxies: TrustedProxies = TrustedProxies()
    max_header: Bytes = 32 * 1024
    max_body: Bytes | None = None
    keepalive: Seconds = 125.0
    drain: Seconds = 20.0


@dataclass(frozen=True, slots=True)
class Admin:
    token: str = ""


# ── identity ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PathSource:
    template: str  # /api/user/{user}/*


@dataclass(frozen=True, slots=True)
class HeaderSource:
    name: str


@dataclass(frozen=True, slots=True)
class JwtSource:
    key: str
    header: str = "Authorization"
    claim: str = "sub"
    algorithms: tuple[str, ...] = ("HS256",)


@dataclass(frozen=True, slots=True)
class CookieSource:
    name: str


@dataclass(frozen=True, slots=True)
class IpSource:
    pass


Source = PathSource | HeaderSource | JwtSource | CookieSource | IpSource


@dataclass(frozen=True, slots=True)
class Tier:
    name: str
    users: str | None = None  # a shell pattern; None fits everybody


@dataclass(frozen=True, slots=True)
class Identity:
    user: tuple[Source, ...] = (IpSource(),)  # IpSource is always last
    tiers: tuple[Tier, ...] = ()


# ── routes, overload ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Match:
    path: str = "/*"
    methods: tuple[str, ...] = ()  # empty: all


@dataclass(frozen=True, slots=True)
class Queue:
    size: int = 20
    wait: Seconds = 5.0


@dataclass(frozen=True, slots=True)
class Retries:
    attempts: int = 1
    on: tuple[str, ...] = ("connect",)


ANY_TIER = "*"


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    match: Match = Match()
    timeout: Seconds | None = None
    total: Seconds | None = None
    rate_limit: Mapping[str, tuple[Rate, ...]] = field(default_factory=_empty)
    concurrency: int | None = None
    queue: Queue = Queue()
    max_body: Bytes | None = None
    requires_budget: bool = False
    when_abandoned: Literal["close", "cancel"] = "close"
    enforce: bool = True
    retries: Retries = Retries()

    def limits_for(self, tier: str) -> tuple[Rate, ...]:
        """The limits a tier has on this route; one value for all stands under ANY_TIER."""
        return self.rate_limit.get(tier) or self.rate_limit.get(ANY_TIER) or ()


DEFAULT_ROUTE = Route("default")


@dataclass(frozen=True, slots=True)
class FixedLimit:
    limit: int = 64
    queue: int = 100
    wait: Seconds = 10.0


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    min: int = 4
    max: int = 200
    tolerance: float = 2.0


@dataclass(frozen=True, slots=True)
class Overload:
    mode: Literal["off", "fixed", "adaptive"] = "off"
    fixed: FixedLimit = FixedLimit()
    adaptive: AdaptiveLimit = AdaptiveLimit()
    priority: Mapping[str, int] = field(default_factory=_empty)


# ── log, metrics ─────────────────────────────────────────────────────────────────────────────

REDACT = ("authorization", "cookie", "set-cookie", "x-api-key", "token", "key", "password")


@dataclass(frozen=True, slots=True)
class Log:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"
    access: Literal["all", "errors", "off"] = "all"
    app_output: Literal["pass", "wrap"] = "pass"
    redact: tuple[str, ...] = REDACT  # the defaults and what the policy adds, lower case
    bodies: Literal["off"] = "off"


@dataclass(frozen=True, slots=True)
class Metrics:
    app: str | None = None
    max_series: int = 2000
