"""Which header fields a policy may not set or take out (`routes[].headers`), and why.

A field that frames a message says where it ends: two readers that disagree about it take one message for two (request
smuggling, RFC 9112 section 11.2). Fields of one connection end at each hop (RFC 9110 section 7.6.1). Others are the
gateway's own: it states them from what it knows, and what rests on them (limits by address, whose a call is) would
rest on a text of the policy.
"""

from __future__ import annotations

from proxy.http.hop_by_hop import HOP_BY_HOP

FRAMING = frozenset((b"content-length", b"content-range", b"trailer", b"expect"))
STATED_BY_GATEWAY = frozenset(
    (
        b"x-request-id",
        b"x-correlation-id",
        b"traceparent",
        b"tracestate",
        b"forwarded",
        b"via",
        b"age",
        b"cache-status",
        b"ratelimit",
        b"ratelimit-policy",
        b"x-cost-used-today",
    )
)
STATED_PREFIXES = (b"x-outrigger-", b"x-forwarded-", b"x-ratelimit-")


def find_reserved_field(name: str) -> str | None:
    """Why a policy may not name this field, in one clause; None if it may."""
    # CGI-style apps cannot tell a dash from an underscore.
    lower = name.lower().replace("_", "-").encode()
    if lower == b"host":
        return "Host passes to the app unchanged"
    if lower in FRAMING:
        return "it frames the message"
    if lower in HOP_BY_HOP:
        return "it belongs to one connection and ends at each hop"
    if lower in STATED_BY_GATEWAY or lower.startswith(STATED_PREFIXES):
        return "the gateway states this field itself"
    return None
