"""Header fields that belong to one connection and end at a proxy (RFC 9110 section 7.6.1).

A proxy also drops what the Connection field names, and the fields of authentication with a proxy (section 11.7).
"""

from __future__ import annotations

from collections.abc import Iterable

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Names in lower case. Trailer is not among them: whoever passes trailers on passes on what announces them."""


def connection_options(values: Iterable[bytes]) -> frozenset[bytes]:
    """The names in the values of Connection, in lower case (RFC 9110 section 7.6.1)."""
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))
