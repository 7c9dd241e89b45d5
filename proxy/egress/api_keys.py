"""The upstream's real key, put in here: the app has a key made at start in its place.

The made-up one is replaced wherever the app shows it, as the vendor's documentation has it put the real one: in a
header field of any name and scheme (Basic included), in the query, in the path. A call that does not show it is
nobody's that this gateway serves.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from urllib.parse import quote

from proxy.egress.headers import Fields, portable

KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
KEY_PREFIX = "sk-outrigger-"  # no secret: what is compared in constant time stands behind it


def key_variable(kind: str, name: str) -> str:
    """The variable that the app reads its key from: the dialect's own; of `kind: http` one named after the upstream,
    so `mail-er` has MAIL_ER_API_KEY."""
    found = KEY_VARIABLES.get(kind)
    if found is not None:
        return found
    word = re.sub(r"[^A-Za-z0-9]", "_", name).upper()
    return f"{'_' if word[:1].isdigit() else ''}{word}_API_KEY"


class VirtualKeys:
    """The keys made for this process, one for each variable that the app has; they open nothing but this gateway."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def key_for(self, kind: str, name: str = "") -> str:
        """The key that the app gets for such an upstream, made when it is first asked for."""
        return self._keys.setdefault(key_variable(kind, name), f"{KEY_PREFIX}{secrets.token_urlsafe(24)}")

    def inject(self, made: str, real: str, target: str, fields: Fields) -> tuple[str, Fields] | None:
        """Target and header with the real key in the made-up one's place; None if that is not shown."""
        found = False
        path, mark, query = target.partition("?")
        changed_path = _replaced(path, made, quote(real, safe="/:@"))
        changed_query = _replaced(query, made, quote(real, safe="/:@"))
        found = changed_path is not None or changed_query is not None
        target = f"{changed_path or path}{mark}{changed_query or query}"
        changed: Fields = []
        for name, value in fields:
            put = _replaced(value, made, real)
            if put is None and name.lower() == "authorization":
                put = _basic(value, made, real)
            changed.append((name, value if put is None else put))
            found = found or put is not None
        return (target, changed) if found else None


def with_own_key(kind: str, real: str, fields: Fields) -> Fields:
    """The header for another upstream than the one that was called: its own key, nothing of anybody else's."""
    return [*portable(fields), ("x-api-key", real) if kind == "anthropic" else ("Authorization", f"Bearer {real}")]


def _replaced(text: str, made: str, real: str) -> str | None:
    """The text with `real` wherever `made` stands; None if it does not."""
    at = text.find(KEY_PREFIX)
    if at < 0:
        return None
    wanted, parts, since = made.encode(), [], 0
    while at >= 0:
        end = at + len(made)
        # In constant time, so that how long it takes tells nothing of the key.
        if hmac.compare_digest(text[at:end].encode("utf-8", "surrogatepass"), wanted):
            parts += [text[since:at], real]
            since = end
        at = text.find(KEY_PREFIX, at + 1)
    return "".join([*parts, text[since:]]) if parts else None


def _basic(value: str, made: str, real: str) -> str | None:
    """Replace the key within the Basic scheme, whose user and password are in base64 (RFC 7617)."""
    scheme, space, word = value.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(word.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    put = _replaced(text, made, real)
    return None if put is None else f"{scheme}{space}{base64.b64encode(put.encode()).decode()}"
