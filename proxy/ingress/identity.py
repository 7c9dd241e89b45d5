"""Whose request it is, and which tier that user has."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from proxy.ingress import client_address, routing
from proxy.ingress.ports import RequestView
from proxy.policy.schema import (
    CookieSource,
    HeaderSource,
    Identity,
    IpSource,
    JwtSource,
    PathSource,
    Source,
    Tier,
    TierMatcher,
)
from proxy.util.user_names import RESERVED_NAMES, RESERVED_PREFIX, normalize_user_name

MAX_USER_LENGTH = 256
MAX_COOKIE_LENGTH = 4096  # as long as browsers keep (RFC 6265 section 6.1)

IP_PREFIX = "ip:"
COOKIE_PREFIX = "cookie:"

_Find = Callable[[RequestView], str | None]


class Identified(NamedTuple):
    """A request's user. `source` is one of path, header, jwt, cookie and ip."""

    user: str
    tier: str
    source: str


class Identifier:
    """Asks the sources of `identity.user` in turn; the first that gives a valid name decides.

    Names from path, header and token are the app's own names for its users and stay as they are, but for the gateway's
    own (`unattributed`), which get a mark. A user known by cookie is `cookie:` and 16 hex digits of a SHA-256, the same
    after every restart; one known by address is `ip:` and the address, of IPv6 its /64. No other source can give a name
    with these prefixes, or one that is empty, longer than 256 characters or not printable: such a value names nobody,
    and the next source is asked.

    A user's tier is the first whose shell pattern matches the name, case included; the last tier is everybody else's,
    and that of every user known by address. Without tiers it is "default".

    Raises OutriggerError if it is made with a key that its algorithms cannot use.
    """

    def __init__(self, identity: Identity, *, wall: Callable[[], float] = time.time) -> None:
        asked = [source for source in identity.user if not isinstance(source, IpSource)]
        self._token_fields = [source.header.lower() for source in asked if isinstance(source, JwtSource)]
        self._sources = [_make_finder(source, wall) for source in asked]
        # Most requests of a client come one after another, and parsing an address takes microseconds.
        self._ip = lru_cache(maxsize=4096)(_ip_user)
        self._tiers = TierMatcher(identity.tiers)

    def identify(self, view: RequestView) -> Identified:
        for source, find in self._sources:
            value = find(view)
            if value is not None:
                return Identified(value, self._tiers.match(value), source)
        return Identified(self._ip(view.client_ip), self._tiers.last, "ip")

    def depends_on_time(self, view: RequestView) -> bool:
        """Whether the same request may name somebody else later: it has a token, which may expire or begin to count."""
        return any(view.header(name) is not None for name in self._token_fields)

    def match_tier(self, user: str) -> str:
        """The tier of a user that is known by name."""
        return self._tiers.match(user)

    def tier_of(self, identified: Identified) -> Tier | None:
        """The tier of a user, with the pattern that gave it; None if the policy has no tiers."""
        return self._tiers.find(identified.tier)


def _make_finder(source: Source, wall: Callable[[], float]) -> tuple[str, _Find]:
    match source:
        case PathSource():
            return "path", _find_by_path(source.template)
        case HeaderSource():
            return "header", _find_by_header(source.name.lower())
        case JwtSource():
            from proxy.ingress.jwt import TokenVerifier  # PyJWT is loaded only if a policy names a key

            return "jwt", _find_by_token(TokenVerifier(source, wall))
        case CookieSource():
            return "cookie", _find_by_cookie(source.name)
        case IpSource():
            return "ip", lambda view: _ip_user(view.client_ip)


def _find_by_path(template: str) -> _Find:
    match = re.compile(routing.compile_pattern(template, capture=True) + r"\Z", routing.PATTERN_FLAGS).match

    def find(view: RequestView) -> str | None:
        # By the same readings as routes are matched: another spelling of a path must not be another user.
        for reading in routing.path_readings(view.path):
            found = match(reading)
            if found is not None and (user := _valid_user(found[1])) is not None:
                return user
        return None

    return find


def _find_by_header(name: str) -> _Find:
    def find(view: RequestView) -> str | None:
        value = view.header(name)
        return None if value is None else _valid_user(value.strip())

    return find


def _find_by_token(users: Callable[[RequestView], str | None]) -> _Find:
    def find(view: RequestView) -> str | None:
        user = users(view)
        return None if user is None else _valid_user(user)

    return find


def _find_by_cookie(name: str) -> _Find:
    search = re.compile(rf"(?:^|;)[ \t]*{re.escape(name)}=([^;]*)").search
    domain = f"outrigger cookie {name}\0"

    def find(view: RequestView) -> str | None:
        cookies = view.header("cookie")
        found = search(cookies) if cookies is not None else None
        value = found[1].strip().strip('"') if found is not None else ""
        if not value or len(value) > MAX_COOKIE_LENGTH:
            return None
        # A hash, since a session cookie is a secret and a user's name appears in logs.
        digest = hashlib.sha256((domain + value).encode("utf-8", "surrogateescape"))
        return COOKIE_PREFIX + digest.hexdigest()[:16]

    return find


def _valid_user(value: str) -> str | None:
    """A name as requests bear it, or None if it may not name a user."""
    if (
        not value
        or len(value) > MAX_USER_LENGTH
        or not value.isprintable()
        or value.startswith((IP_PREFIX, COOKIE_PREFIX))
    ):
        return None
    return normalize_user_name(value)


def canonical_user(user: str) -> str:
    """A user's name as requests bear it: an address in any spelling becomes the network that it counts with, and the
    gateway's own names get a mark.
    """
    if user in RESERVED_NAMES:
        return RESERVED_PREFIX + user
    if user.startswith(IP_PREFIX) and client_address.parse_address(user.removeprefix(IP_PREFIX)) is not None:
        return _ip_user(user.removeprefix(IP_PREFIX))
    return user


def _ip_user(client_ip: str) -> str:
    return IP_PREFIX + client_address.client_network(client_ip)
