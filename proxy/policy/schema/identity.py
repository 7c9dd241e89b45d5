"""`identity`: where the name of a request's user comes from, and the tier of that user."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from proxy.policy import value_types
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
    template: Annotated[str, value_types.TEMPLATE]  # /api/user/{user}/*


@dataclass(frozen=True, slots=True)
class HeaderSource:
    name: Annotated[str, value_types.HEADER]


@dataclass(frozen=True, slots=True)
class JwtSource:
    key: Annotated[str, value_types.SIGNING_KEY] = field(repr=False)
    header: Annotated[str, value_types.HEADER] = "Authorization"
    claim: Annotated[str, value_types.TEXT] = "sub"
    algorithms: tuple[Algorithm, ...] = ("HS256",)


@dataclass(frozen=True, slots=True)
class CookieSource:
    name: Annotated[str, value_types.COOKIE]


@dataclass(frozen=True, slots=True)
class IpSource:
    pass


Source = PathSource | HeaderSource | JwtSource | CookieSource | IpSource


@dataclass(frozen=True, slots=True)
class Tier:
    name: Label
    users: Annotated[str, value_types.TEXT] | None = None  # a shell pattern; None fits everybody


@dataclass(frozen=True, slots=True)
class Identity:
    user: Annotated[tuple[Source, ...], "sources"] = (IpSource(),)  # IpSource is always last
    tiers: tuple[Tier, ...] = ()


NO_TIER = "default"  # everybody's tier if the policy has none


class TierMatcher:
    """Finds the tier of a user: the first whose shell pattern matches the name, case-sensitively; the last is everybody
    else's. `last` is its name."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        # Compiled once: this is asked at each request.
        self._tiers = [(re.compile(fnmatch.translate(tier.users or "*")).match, tier) for tier in tiers]
        self.last = tiers[-1].name if tiers else NO_TIER

    def match(self, user: str) -> str:
        for fits, tier in self._tiers:
            if fits(user):
                return tier.name
        return self.last

    def find(self, name: str) -> Tier | None:
        """The tier of that name, or None if the policy has no such tier."""
        return next((tier for _, tier in self._tiers if tier.name == name), None)
