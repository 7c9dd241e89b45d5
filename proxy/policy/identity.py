"""Who a request belongs to: where its user's name comes from, and the tier of that user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from proxy.policy import kinds
from proxy.policy.values import Label

Algorithm = Literal[
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]


@dataclass(frozen=True, slots=True)
class PathSource:
    template: Annotated[str, kinds.TEMPLATE]  # /api/user/{user}/*


@dataclass(frozen=True, slots=True)
class HeaderSource:
    name: Annotated[str, kinds.HEADER]


@dataclass(frozen=True, slots=True)
class JwtSource:
    key: Annotated[str, kinds.SIGNING_KEY] = field(repr=False)
    header: Annotated[str, kinds.HEADER] = "Authorization"
    claim: Annotated[str, kinds.TEXT] = "sub"
    algorithms: tuple[Algorithm, ...] = ("HS256",)


@dataclass(frozen=True, slots=True)
class CookieSource:
    name: Annotated[str, kinds.COOKIE]


@dataclass(frozen=True, slots=True)
class IpSource:
    pass


Source = PathSource | HeaderSource | JwtSource | CookieSource | IpSource


@dataclass(frozen=True, slots=True)
class Tier:
    name: Label
    users: Annotated[str, kinds.TEXT] | None = None  # a shell pattern; None fits everybody


@dataclass(frozen=True, slots=True)
class Identity:
    user: Annotated[tuple[Source, ...], "sources"] = (IpSource(),)  # IpSource is always last
    tiers: tuple[Tier, ...] = ()
