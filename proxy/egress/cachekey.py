"""What makes two calls the same: everything that could change the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# They say who asks and how it is traced, and change no answer. All others count.
_NEUTRAL = frozenset(
    (
        "user-agent",
        "traceparent",
        "tracestate",
        "baggage",
        "x-request-id",
        "x-correlation-id",
        "idempotency-key",
        "content-length",
        "date",
        "host",
        "expect",
    )
)
_NEUTRAL_PREFIXES = ("x-stainless-", "x-outrigger-")


def key(*, upstream: str, url: str, method: str, headers: Iterable[tuple[str, str]], body: bytes, scope: str) -> bytes:
    """A digest; keys and cookies are in it, and cannot be had out of it. `url` is where the call goes, as it is sent,
    `headers` what goes along: so another address or account after a reload is another question. `scope` is the user,
    or empty."""
    digest = hashlib.blake2b(digest_size=24)
    parts = [upstream, method, url, scope]
    counted = [(name.lower(), value) for name, value in headers]
    for name, value in sorted(counted):
        if name not in _NEUTRAL and not name.startswith(_NEUTRAL_PREFIXES):
            parts += [name, value]
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    digest.update(b"\xff" * 8 + body)
    return digest.digest()
