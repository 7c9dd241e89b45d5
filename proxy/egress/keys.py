"""The upstream's real key, put in here: the app has a key made at start in its place."""

from __future__ import annotations

import hmac
import secrets

from proxy.egress.headers import KEYS, Fields

VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


class Keys:
    """One key a process for each kind, since the app has one variable for all of a kind; it opens nothing but
    this gateway."""

    def __init__(self) -> None:
        self._made: dict[str, str] = {}

    def shown(self, kind: str) -> str:
        """What the app gets as its key."""
        return self._made.setdefault(kind, f"sk-outrigger-{secrets.token_urlsafe(24)}")

    def injected(self, kind: str, real: str, fields: Fields) -> Fields | None:
        """The header with the real key in the app's place; None where the app's is not the one it was given.

        A kind without a variable of its own (http) was given none: the key is put in as a bearer token.
        """
        if kind not in VARIABLES:
            return [(name, value) for name, value in fields if name.lower() not in KEYS] + _as_bearer(real)
        wanted = self.shown(kind).encode()
        changed, found = [], False
        for name, value in fields:
            if name.lower() not in KEYS:
                changed.append((name, value))
                continue
            scheme, space, key = value.rpartition(" ")
            if hmac.compare_digest(key.strip().encode("utf-8", "surrogateescape"), wanted):
                changed.append((name, scheme + space + real))
                found = True
        return changed if found else None


def own(kind: str, real: str, fields: Fields) -> Fields:
    """The header for another upstream than the one that was called: its own key, nobody else's."""
    kept = [(name, value) for name, value in fields if name.lower() not in KEYS]
    return kept + ([("x-api-key", real)] if kind == "anthropic" else _as_bearer(real))


def _as_bearer(real: str) -> Fields:
    return [("Authorization", f"Bearer {real}")]
