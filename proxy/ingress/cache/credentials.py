"""Request fields that show who asks. An answer to one of them may be of nobody else's business.

RFC 9111 section 3.5 knows Authorization alone, and the contract of this cache adds Cookie. Many APIs take a key in a
field of their own, and proxies in front that log people in say whom they found in another; an app answers these
differently without a word in Vary, so they count as credentials too.
"""

from __future__ import annotations

CREDENTIALS = (
    "Authorization",
    "Cookie",
    "X-Api-Key",
    "Api-Key",
    "X-Auth-Token",
    "X-Access-Token",
    "Remote-User",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Client-Cert",
    "X-Auth-Request-User",
    "X-Auth-Request-Email",
    "X-Goog-Iap-Jwt-Assertion",
    "Cf-Access-Jwt-Assertion",
    "X-Amzn-Oidc-Data",
    "X-Ms-Client-Principal",
)
