"""Which fields of a client never reach the app: those of the connection, the gateway's own, and what only a proxy may
say.

The app's peer is the gateway now, on loopback, which many servers trust: gunicorn lets such a peer set SCRIPT_NAME, and
with it the path by which the app routes; frameworks and their middleware take addresses, schemes, hosts and users from
X-Forwarded-* and the like. So a client's own words in these fields end here, unless it is a proxy that is believed
(`listen.trusted_proxies`), and then as far as that kind of proxy is known to write them itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Literal

from proxy.http.hop_by_hop import HOP_BY_HOP

# The gateway vouches for these, and states them anew.
STATED_BY_GATEWAY = (
    b"x-outrigger-request",
    b"x-outrigger-task",
    b"x-outrigger-attempt",
    b"x-request-id",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"forwarded",
)
# What else proxies, load balancers and CDNs tell an app of its client, by the names that servers and frameworks read.
STATED_BY_PROXIES = (
    b"x-forwarded-by",
    b"x-forwarded-client-cert",
    b"x-forwarded-email",
    b"x-forwarded-groups",
    b"x-forwarded-path",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"x-forwarded-protocol",
    b"x-forwarded-scheme",
    b"x-forwarded-server",
    b"x-forwarded-ssl",
    b"x-forwarded-uri",
    b"x-forwarded-url",
    b"x-forwarded-user",
    b"x-original-forwarded-for",
    b"client-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-envoy-external-address",
    b"x-real-ip",
    b"x-scheme",
    b"x-script-name",
    b"x-ssl",
    b"x-url-scheme",
    b"cf-connecting-ip",
    b"cf-connecting-ipv6",
    b"fastly-client-ip",
    b"fly-client-ip",
    b"front-end-https",
    b"true-client-ip",
)
# gunicorn's `forwarder_headers`, which it takes from a loopback peer (docs.gunicorn.org, settings).
READ_BY_GUNICORN = (b"script_name", b"path_info")
# Render's edge writes these itself, whatever its client sent; the other names pass through it as they came.
STATED_BY_RENDER = (b"cf-connecting-ip", b"cf-connecting-ipv6", b"true-client-ip")


def _spellings(names: Iterable[bytes]) -> frozenset[bytes]:
    """Each name with each of its dashes also as an underscore, since CGI-style apps cannot tell them apart."""
    found = set()
    for name in names:
        parts = name.replace(b"_", b"-").split(b"-")
        for marks in product((b"-", b"_"), repeat=len(parts) - 1):
            found.add(parts[0] + b"".join(mark + part for mark, part in zip(marks, parts[1:], strict=True)))
    return frozenset(found)


# What the app learns about its calls out. An app that passes on a vendor's response as it came would tell its users.
CALL_HEADERS = frozenset((b"x-outrigger-attempts", b"x-outrigger-cache", b"x-outrigger-cost", b"x-outrigger-fallback"))
DROPPED_FROM_RESPONSES = HOP_BY_HOP | CALL_HEADERS

Trust = Literal["nobody", "render", "private", "named"]

_ALWAYS_DROPPED = HOP_BY_HOP | _spellings(STATED_BY_GATEWAY)
DROPPED_FROM_REQUESTS: dict[Trust, frozenset[bytes]] = {
    "nobody": _ALWAYS_DROPPED | _spellings((*STATED_BY_PROXIES, *READ_BY_GUNICORN)),
    "render": _ALWAYS_DROPPED
    | _spellings(name for name in (*STATED_BY_PROXIES, *READ_BY_GUNICORN) if name not in STATED_BY_RENDER),
    # A private peer is believed by default, but not about what turns one path into another.
    "private": _ALWAYS_DROPPED | _spellings(READ_BY_GUNICORN),
    "named": _ALWAYS_DROPPED,  # by networks or number of hops: the operator vouches for them
}
"""By whose word is believed; names in lower case."""
