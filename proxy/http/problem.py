"""Refusals as a client sees them: RFC 9457 problem details, and the CORS headers that let a page read them."""

from __future__ import annotations

import json
from email.utils import formatdate
from functools import lru_cache

from proxy.errors import Refusal
from proxy.http.retry_after import round_retry_after

CONTENT_TYPE = "application/problem+json"

_EXPOSED = (
    b"Retry-After, RateLimit, RateLimit-Policy, "
    b"X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, X-Cost-Used-Today, X-Request-Id"
)


@lru_cache(maxsize=2)
def http_date(second: int) -> bytes:
    """A second as the Date field has it (RFC 9110 section 5.6.7)."""
    return formatdate(second, usegmt=True).encode()


def render_problem(refusal: Refusal, request_id: str) -> bytes:
    """The JSON body of a refusal, in ASCII. `retry_after` is in it only if the refusal has one."""
    body: dict[str, object] = {
        "type": f"urn:outrigger:{refusal.name}",
        "title": refusal.title,
        "status": refusal.status,
        "detail": refusal.detail,
        "request_id": request_id,
    }
    if refusal.retry_after is not None:
        body["retry_after"] = round_retry_after(refusal.retry_after)
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def cors_headers(origin: str | None, *, also: bytes = b"") -> tuple[tuple[bytes, bytes], ...]:
    """What lets the page of this Origin read a refusal; nothing if no Origin was sent. `also` are further fields that
    it may read.

    The Origin is echoed, never `*`: a wildcard does not hold for requests with credentials (Fetch standard, section
    "CORS check"). An Origin that is not plain printable ASCII is none, and gets nothing.
    """
    if not origin or not origin.isascii() or not origin.isprintable():
        return ()
    return (
        (b"Access-Control-Allow-Origin", origin.encode("ascii")),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Access-Control-Expose-Headers", _EXPOSED + (b", " + also if also else b"")),
        # Caches must not give one page's permission to another.
        (b"Vary", b"Origin"),
    )
