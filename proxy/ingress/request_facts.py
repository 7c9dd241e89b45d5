"""What the head of a request says under the rules in force: whose it is, where it goes, what the app gets of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.policy.schema import Route

if TYPE_CHECKING:
    from proxy.ingress.client_address import Client
    from proxy.ingress.ratelimit.limiter import TierLimits
    from proxy.ingress.route_filters import RouteFilters


class RequestFacts:
    """Found once for heads that come again byte by byte (`proxy/http/known_heads.py`). None of it depends on the time;
    limits, ids and the log are each request's own.

    - `rules`, `peer`: those that it was found for. A reload, or the same head from another peer, makes it void.
    - `path`, `client`, `is_own` (for one of the gateway's own endpoints), `trace_id`;
    - `request_id`: the client's own, empty if each request gets one.

    Once it was identified, else `route` is None:
    - `user`, `tier`, `route`, `filters`: as the exchange has them;
    - `limits`: of its rate, with the key that its user is counted by; None if it has none;
    - `has_cap`: whether any cap on spending applies to its user;
    - `forwarding`: what the app is told of the client;
    - `app_head`: the head that the app gets, down to the ids; None if it is another one each time.
    """

    __slots__ = (
        "app_head",
        "client",
        "filters",
        "forwarding",
        "has_cap",
        "is_own",
        "limits",
        "path",
        "peer",
        "request_id",
        "route",
        "rules",
        "tier",
        "trace_id",
        "user",
    )

    def __init__(
        self,
        rules: object,
        peer: str,
        path: str,
        client: Client,
        *,
        is_own: bool,
        request_id: str,
        trace_id: str | None,
    ) -> None:
        self.rules = rules
        self.peer = peer
        self.path = path
        self.client = client
        self.is_own = is_own
        self.request_id = request_id
        self.trace_id = trace_id
        self.user = ""
        self.tier = ""
        self.route: Route | None = None
        self.filters: RouteFilters | None = None
        self.limits: tuple[TierLimits, str | bytes] | None = None
        self.has_cap = False
        self.forwarding: tuple[tuple[bytes, bytes], ...] = ()
        self.app_head: bytes | None = None
