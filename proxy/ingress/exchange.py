"""The record of one request and its answer: what every step of the pipeline reads and writes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from multidict import CIMultiDictProxy

from proxy.http.messages import Body, IncomingRequest, RawHeaders
from proxy.ingress.dropped_headers import DROPPED_FROM_RESPONSES
from proxy.policy.schema import DEFAULT_ROUTE, Route

if TYPE_CHECKING:
    from proxy.errors import Refusal
    from proxy.ingress.admission.address_share import AddressShare
    from proxy.ingress.admission.controller import Permit
    from proxy.ingress.cache.lookup import CacheLookup
    from proxy.ingress.client_address import Client
    from proxy.ingress.ports import UserBudgets
    from proxy.ingress.ratelimit.limiter import RateDecision
    from proxy.ingress.request_facts import RequestFacts
    from proxy.ingress.route_filters import RouteFilters
    from proxy.store.interface import WaitBudget

ENDLESS = float("inf")
STATUS_CLIENT_GONE = 499  # as in nginx, for a request whose client left before the head of the response


class HeldResources:
    """What few requests hold until they end, apart from their permit. Made by `Exchange.hold_resources`.

    - `address`: the client's, whose connections it counts for if a proxy is in between.
    - `share`: of its address, while its body still comes.
    - `continue_sent`: the client was told to go on with its body (100).
    - `has_stream`: its response counts among its user's streams.
    """

    __slots__ = ("address", "continue_sent", "has_stream", "share")

    def __init__(self) -> None:
        self.address: str | None = None
        self.share: AddressShare | None = None
        self.continue_sent = False
        self.has_stream = False


class Exchange(IncomingRequest):
    """One request and what became of it: every step of the pipeline reads and writes this record.

    From the client, set once: what `IncomingRequest` has, `path` and `origin`.

    Set on the way:
    - `request_id`, `trace_id`, `token`, `client`, `user`, `tier`, `route`: whose it is;
    - `filters`: what its route does to fields and bodies, None if nothing;
    - `lookup`: what it has to do with the cache of its route, None if that has none;
    - `max_body`, `rate_decision`, `permit`, `held`, `budgets`: limits and what it holds of them; `store_budget`: how
      long it may still wait for the shared store, made when it is first asked;
    - `refused`, `status`, `response_started`, `reached_app` (the app has it, or a part of it), `aborted` (broken off by
      the client or by the app), `dropped_from_response` (fields of the app's response that do not reach the client);
    - `bytes_in`, `bytes_out`; `calls` out that were made for it, and their `cost` in nano-dollars, if any has a price;
    - `sent_at`: when the app began to get it, on the loop's clock;
    - `memory_before`: the app's memory when it began, in bytes;
    - `task`: the id of the task whose try it is, and the number of the try; None for a client's own request.

    Durations in seconds:
    - `waited_seconds`: spent neither by the gateway nor by the app, in queues and while the app restarts;
    - `app_seconds`: from the last byte of the request sent to the first byte of the response received;
    - `overhead_seconds`: spent in the gateway itself.
    """

    __slots__ = (
        "aborted",
        "app_seconds",
        "budgets",
        "bytes_in",
        "bytes_out",
        "calls",
        "client",
        "cost",
        "dropped_from_response",
        "filters",
        "held",
        "lookup",
        "max_body",
        "memory_before",
        "origin",
        "overhead_seconds",
        "path",
        "permit",
        "rate_decision",
        "reached_app",
        "refused",
        "request_id",
        "response_started",
        "route",
        "sent_at",
        "status",
        "store_budget",
        "task",
        "tier",
        "token",
        "trace_id",
        "user",
        "waited_seconds",
    )

    client: Client
    facts: RequestFacts | None

    def __init__(
        self,
        method: str,
        target: str,
        headers: CIMultiDictProxy[str],
        raw_headers: RawHeaders,
        body: Body,
        *,
        peer: str,
        received: float,
        http10: bool = False,
        chunked: bool = False,
        should_close: bool = False,
        upgrade: str | None = None,
        facts: RequestFacts | None = None,
    ) -> None:
        # Set here and not by the base class: a call less for each request.
        self.method = method
        self.target = target
        self.path = path_from_target(target) if facts is None else facts.path
        self.headers = headers
        self.raw_headers = raw_headers
        self.body = body
        self.peer = peer
        self.received_at = received
        self.http10 = http10
        self.chunked = chunked
        self.should_close = should_close
        self.upgrade = upgrade
        self.facts = facts
        self.origin = headers.get("Origin")
        # Set on the way.
        self.request_id = ""
        self.trace_id: str | None = None
        self.token = ""
        self.user = ""
        self.tier = ""
        self.route: Route = DEFAULT_ROUTE
        self.filters: RouteFilters | None = None
        self.lookup: CacheLookup | None = None
        self.max_body: int | None = None
        self.rate_decision: RateDecision | None = None
        self.permit: Permit | None = None
        self.held: HeldResources | None = None
        self.refused: Refusal | None = None
        self.status = 0
        self.aborted = False
        self.reached_app = False
        self.response_started = False
        self.bytes_in = 0
        self.bytes_out = 0
        self.waited_seconds = 0.0
        self.sent_at = 0.0
        self.app_seconds = 0.0
        self.overhead_seconds = 0.0
        self.memory_before = 0
        self.task: tuple[str, int] | None = None
        self.calls = 0
        self.cost: int | None = None
        self.dropped_from_response = DROPPED_FROM_RESPONSES
        self.budgets: UserBudgets | None = None
        self.store_budget: WaitBudget | None = None

    def time_left(self, now: float) -> float | None:
        """Seconds until this route's `total` or, before the response began, its `timeout`, if calls out are to end with
        the request (`when_abandoned: cancel`); infinity if neither is set. Else None.
        """
        route = self.route
        if route.when_abandoned != "cancel":
            return None
        ends = [self.received_at + route.total] if route.total is not None else []
        # `timeout` is the app's time only: waiting for a place or a restart is added to it.
        if route.timeout is not None and not self.response_started:
            ends.append(self.received_at + self.waited_seconds + route.timeout)
        return max(0.0, min(ends) - now) if ends else ENDLESS

    def hold_resources(self) -> HeldResources:
        """Made when first needed: most requests hold nothing but their permit."""
        if self.held is None:
            self.held = HeldResources()
        return self.held

    @property
    def route_name(self) -> str:
        return self.route.name

    def call_began(self) -> None:
        self.calls += 1
        if self.permit is not None:
            self.permit.call_began()

    def call_ended(self, cost: int | None) -> None:
        if cost is not None:
            self.cost = (self.cost or 0) + cost
        if self.permit is not None:
            self.permit.call_ended()

    def call_paid(self, cost: int) -> None:
        self.cost = (self.cost or 0) + cost

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the response any more: the client left, or the request was refused meanwhile."""
        return self.status in (STATUS_CLIENT_GONE, 504) or self.aborted or self._refused_after_start

    @property
    def _refused_after_start(self) -> bool:
        """By the gateway, while the app worked on it. A response that the app itself broke off (502) does not count."""
        return self.reached_app and self.refused is not None and self.status != 502

    @property
    def client_ip(self) -> str:
        return self.client.ip

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def joined_header(self, name: str) -> str | None:
        """All lines of a list-valued field as one (RFC 9110 section 5.3), or None."""
        if name not in self.headers:
            return None
        return ", ".join(self.headers.getall(name))


_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


def path_from_target(target: str) -> str:
    """The path in a request target, of origin-form or absolute-form (RFC 9112 section 3.2).

    A `#` has no place in a target. As many servers take it for a part of the path as cut the path there, so it stays,
    and `routing.path_readings` reads both.
    """
    if not target.startswith("/") and (authority := _AUTHORITY.match(target)) is not None:
        target = target[authority.end() :]
        if not target.startswith("/"):
            target = "/" + target
    return target.partition("?")[0] or "/"
