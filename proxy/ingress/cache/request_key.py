"""Under which key an answer is kept: what a request asks for, and of whom (RFC 9111 sections 2 and 4.1).

The key is a digest, so that neither names nor secrets stay in memory: of the route, the host and the target byte for
byte, what a trusted proxy says of scheme and host (an app makes links and redirects of them), and in the scope of a
user the user and the credentials (Authorization, Cookie and their like). What Vary names beside it is compared by
value, as the app got it.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from proxy.http.messages import HeaderList
from proxy.ingress.exchange import Exchange
from proxy.policy.schema import RouteCache

VERSION = ""  # of the API that a request is for; there are none so far
# A field that has another value with each request: an answer that varies by it answers nobody else.
_OF_ONE_REQUEST = frozenset(
    (b"x-request-id", b"x-correlation-id", b"x-outrigger-request", b"traceparent", b"tracestate", b"via", b"*")
)
_COMMA = re.compile(r"[ \t]*,[ \t]*")

ForwardingFields = tuple[tuple[bytes, bytes], ...]
Varying = tuple[tuple[str, str | None], ...]


def request_key(x: Exchange, policy: RouteCache, method: str, credentials: HeaderList) -> bytes:
    """The digest for a request by this method. `credentials` are those that it has."""
    said = [
        x.route.name,
        VERSION,
        method,
        x.headers.get("Host") or "",
        x.target,
        x.client.proto or "",
        x.client.host or "",
    ]
    if policy.scope == "user":
        said.append(x.user)
        said += [f"{name!r}:{value!r}" for name, value in credentials]
    # Lengths go in as well, or two requests could run together into the same bytes.
    text = "".join([f"{len(part)}:{part}" for part in said])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).digest()


def read_varying(x: Exchange, vary: bytes, forwarding: ForwardingFields) -> Varying | None:
    """The fields that a Vary names, with the values that the app got of this request; None if no other request can
    have the same.

    Values are compared with the spaces around commas taken out; nothing else of them is known to mean the same.
    """
    names = {name.strip().lower() for name in vary.split(b",")} - {b""}
    if not names:
        return ()
    if not names.isdisjoint(_OF_ONE_REQUEST):
        return None
    # What the gateway states itself is compared as stated, what it drops or the policy sets is the same for all.
    stated = {name.lower(): value.decode("latin-1") for name, value in forwarding}
    hidden = x.client.dropped_fields
    if x.filters is not None and x.filters.request is not None:
        hidden = hidden | x.filters.request.names
    found = []
    for name in sorted(names):
        text = name.decode("latin-1")
        value = stated.get(name)
        if value is None and name not in hidden:
            value = x.joined_header(text)
        found.append((text, None if value is None else _COMMA.sub(",", value.strip())))
    return tuple(found)
