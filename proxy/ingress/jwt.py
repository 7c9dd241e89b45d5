"""Users from signed tokens (RFC 7519), verified by PyJWT."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from proxy.errors import OutriggerError
from proxy.ingress.ports import RequestView
from proxy.policy.schema import JwtSource
from proxy.policy.signing_keys import find_key_misfit, load_jwt

MAX_REMEMBERED_TOKENS = 1024  # about 300 bytes each
NO_EXPIRY = float("inf")

# The app judges for whom a token is meant: a policy names no audience. PyJWT wants `sub` to be text, but numbers are
# common there.
_OPTIONS: Any = {"verify_aud": False, "verify_sub": False, "verify_jti": False}


class TokenVerifier:
    """The user that a request's token names, or None: no token, forged, expired, not yet valid, no claim.

    A verified token is remembered by its hash until it expires, so that a signature is checked once and not for every
    request. `wall` is the time of day in seconds since 1970, as `exp` has it.
    """

    def __init__(self, source: JwtSource, wall: Callable[[], float]) -> None:
        self._source = source
        self._algorithms = list(source.algorithms)
        self._header = source.header.lower()
        self._wall = wall
        self._verified: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()
        problem = find_key_misfit(source.key, source.algorithms)
        if problem is not None:
            raise OutriggerError(f"identity.user: jwt: key: {problem}")
        self._jwt = load_jwt(source.algorithms)

    def __call__(self, view: RequestView) -> str | None:
        value = view.header(self._header)
        token = _extract_token(value, self._header) if value is not None else None
        if token is None:
            return None
        # By hash: whole tokens are secrets, and take ten times the memory.
        key = hashlib.sha256(token).digest()
        known = self._verified.get(key)
        if known is not None:
            user, expires = known
            if self._wall() < expires:
                self._verified.move_to_end(key)
                return user
            del self._verified[key]
            return None
        claims = self._verify(token)
        if claims is None:
            return None
        user = _claim_text(claims.get(self._source.claim))
        expires = float(claims["exp"]) if "exp" in claims else NO_EXPIRY
        # PyJWT has compared it with its own clock; this one is the caller's, which tests move.
        if self._wall() >= expires:
            return None
        self._verified[key] = user, expires
        if len(self._verified) > MAX_REMEMBERED_TOKENS:
            self._verified.popitem(last=False)
        return user

    def _verify(self, token: bytes) -> dict[str, Any] | None:
        try:
            with warnings.catch_warnings(action="ignore"):
                claims: dict[str, Any] = self._jwt.decode(
                    token, self._source.key, algorithms=self._algorithms, options=_OPTIONS
                )
                return claims
        except (self._jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None  # anybody can write a token, and PyJWT lets some of json's errors through


def _extract_token(value: str, header: str) -> bytes | None:
    scheme, space, rest = value.strip().partition(" ")
    if space:
        token = rest.strip() if scheme.lower() == "bearer" else ""
    else:
        token = scheme if header != "authorization" else ""
    return token.encode() if token and token.isascii() else None


def _claim_text(claim: object) -> str | None:
    if isinstance(claim, str):
        return claim
    if isinstance(claim, int) and not isinstance(claim, bool):
        return str(claim)
    return None
