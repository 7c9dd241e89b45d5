"""`app`, `listen`, `admin`, `overload`, `log` and `metrics`: the app and the front of the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from proxy.policy import urls, value_types
from proxy.policy.values import (
    Address,
    Bytes,
    Count,
    ListenAt,
    Network,
    Path,
    Period,
    Positive,
    Seconds,
    Share,
    empty_mapping,
)

# ── app ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ready:
    path: Path | None = None
    interval: Period = 0.25
    timeout: Period = 5.0


@dataclass(frozen=True, slots=True)
class Restart:
    backoff: Seconds = 1.0
    max_backoff: Seconds = 30.0
    give_up_after: Count = 0


@dataclass(frozen=True, slots=True)
class Liveness:
    path: Path | None = None
    interval: Period = 10.0
    timeout: Period = 5.0
    failures: Positive = 3


@dataclass(frozen=True, slots=True)
class Memory:
    limit: Annotated[int, value_types.MEMORY] | Literal["auto"] = "auto"
    warn: Share = 0.8
    recycle: Share | None = None
    every: Seconds = 600.0


@dataclass(frozen=True, slots=True)
class App:
    port: Annotated[int, value_types.whole_number(1, 65535)] | Literal["auto"] = "auto"
    url: Annotated[str, urls.APP_URL] | None = None
    ready: Ready = Ready()
    start_timeout: Period = 900.0
    stop_timeout: Seconds = 8.0
    stop_signal: Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"] = "SIGTERM"
    restart: Restart = Restart()
    hold: Seconds = 15.0
    liveness: Annotated[Liveness | None, "off"] = Liveness()
    memory: Memory = Memory()
    attribution: Literal["auto", "on", "off"] = "auto"


CLAIMABLE = ("/healthz", "/readyz", "/metrics", "/status", "/dashboard", "/ctl")


def _parse_claim(text: str) -> str:
    if text not in CLAIMABLE:
        raise ValueError("it is no path of ours")
    return text


CLAIM = value_types.ValueType(_parse_claim, str, f"one of {', '.join(CLAIMABLE)}", pattern="|".join(CLAIMABLE))


# ── listen, admin ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """Whose X-Forwarded-* are believed. `hops` and `networks` belong to the kinds of that name."""

    kind: Literal["auto", "none", "render", "private", "hops", "networks"] = "auto"
    hops: int = 0
    networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Connections:
    """`total: auto` is what the limit of file descriptors leaves room for."""

    total: Positive | Literal["auto"] = "auto"
    per_address: Positive | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """`min_rate` is in bytes a second."""

    buffer: Bytes = 64 * 1024
    min_rate: Annotated[int, value_types.BYTE_RATE] | None = None


@dataclass(frozen=True, slots=True)
class Listen:
    # `absent` is the text that is read if the key is not written.
    public: Annotated[ListenAt | None, "off"] = field(
        default=Address("0.0.0.0", 10000), metadata={"absent": "0.0.0.0:${PORT:-10000}"}
    )
    admin: ListenAt = Address("127.0.0.1", 9901)
    egress: ListenAt = Address("127.0.0.1", 9902)
    claim: tuple[Annotated[str, CLAIM], ...] = ()
    trusted_proxies: Annotated[TrustedProxies, "trusted_proxies"] = TrustedProxies()
    max_header: Annotated[int, value_types.HEADER_SIZE] = 32 * 1024
    max_body: Bytes | None = None
    keepalive: Period = 125.0
    connections: Connections = Connections()
    first_byte: Period = 20.0
    body: Body = Body()
    call_fields: bool = False
    drain: Seconds = 20.0


@dataclass(frozen=True, slots=True)
class Admin:
    token: Annotated[str, value_types.TOKEN] = field(
        default="", repr=False, metadata={"absent": "${OUTRIGGER_ADMIN_TOKEN:-}"}
    )


# ── overload ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FixedLimit:
    limit: Positive = 64
    queue: Count = 100
    wait: Seconds = 10.0


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    min: Positive = 4
    max: Positive = 200
    tolerance: Annotated[float, value_types.FACTOR] = 2.0


@dataclass(frozen=True, slots=True)
class Overload:
    mode: Literal["off", "fixed", "adaptive"] = "off"
    fixed: FixedLimit = FixedLimit()
    adaptive: AdaptiveLimit = AdaptiveLimit()
    priority: Mapping[str, Count] = field(default_factory=empty_mapping)


# ── log, metrics ─────────────────────────────────────────────────────────────────────────────

REDACT = ("authorization", "cookie", "set-cookie", "x-api-key", "token", "key", "password")


@dataclass(frozen=True, slots=True)
class Log:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"
    access: Literal["all", "errors", "off"] = "all"
    app_output: Literal["pass", "wrap"] = "pass"
    redact: Annotated[tuple[str, ...], "redact"] = REDACT  # the defaults and what the policy adds, lower case
    bodies: Literal["off"] = "off"


@dataclass(frozen=True, slots=True)
class Metrics:
    app: Path | None = None
    max_series: Positive = 2000
