"""Request fields that show who asks. An answer to one of them may be of nobody else's business.

RFC 9111 section 3.5 knows Authorization alone, and the contract of this cache adds Cookie. Many APIs take a key in a
field of their own, and proxies in front that log people in say whom they found in another; an app answers these
differently without a word in Vary, so they count as credentials too.
"""

from __future__ import annotations

from proxy.http.messages import HeaderList, RawHeaders

CREDENTIALS = frozenset(
    (
        b"authorization",
        b"cookie",
        b"x-api-key",
        b"api-key",
        b"x-auth-token",
        b"x-access-token",
        b"remote-user",
        b"x-forwarded-user",
        b"x-forwarded-email",
        b"x-forwarded-client-cert",
        b"x-auth-request-user",
        b"x-auth-request-email",
        b"x-goog-iap-jwt-assertion",
        b"cf-access-jwt-assertion",
        b"x-amzn-oidc-data",
        b"x-ms-client-principal",
    )
)
"""Names in lower case."""


def find_credentials(headers: RawHeaders) -> HeaderList:
    """The fields of a request that are credentials, their names in lower case, in an order of their own."""
    found = [(lower, value) for name, value in headers if (lower := name.lower()) in CREDENTIALS]
    found.sort()
    return found
