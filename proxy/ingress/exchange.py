"""The record of one request and its answer: what every step of the pipeline reads and writes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from multidict import CIMultiDictProxy

from proxy.ingress.dropped_headers import DROPPED_FROM_RESPONSES
from proxy.policy.schema.route import DEFAULT_ROUTE, Route

if TYPE_CHECKING:
    from proxy.errors import Refusal
    from proxy.ingress.admission.address_share import AddressShare
    from proxy.ingress.admission.controller import Permit
    from proxy.ingress.client_address import Client
    from proxy.ingress.ports import UserBudgets
    from proxy.ingress.ratelimit.limiter import RateDecision

HeaderList = list[tuple[bytes, bytes]]
RawHeaders = tuple[tuple[bytes, bytes], ...]

ENDLESS = float("inf")
STATUS_CLIENT_GONE = 499  # nginx's word for a request whose client left before the answer's head


class Body(Protocol):
    """A request's body as it comes in; reading it is what lets more of it come."""

    @property
    def total_bytes(self) -> int: ...  # that came so far, read or not
    def is_eof(self) -> bool: ...
    def at_eof(self) -> bool: ...
    def read_nowait(self, n: int = -1) -> bytes: ...
    async def readany(self) -> bytes: ...
    def exception(self) -> BaseException | None: ...


class HeldResources:
    """What few requests have of their client's places and shares, until they end."""

    __slots__ = ("address", "continue_sent", "has_stream", "share")

    def __init__(self) -> None:
        self.address: str | None = None  # of its client's address, where a proxy is between
        self.share: AddressShare | None = None  # while its body still comes
        self.continue_sent = False  # it was told to go on with its body (100)
        self.has_stream = False  # its answer has a place among its user's streams


class Exchange:
    """One request and what became of it. Times are the loop's clock, in seconds."""

    __slots__ = (
        "aborted",
        "app_seconds",
        "body",
        "budgets",
        "bytes_in",
        "bytes_out",
        "calls",
        "chunked",
        "client",
        "cost",
        "dropped_from_response",
        "headers",
        "held",
        "http10",
        "max_body",
        "memory_before",
        "method",
        "origin",
        "overhead_seconds",
        "path",
        "peer",
        "permit",
        "rate_decision",
        "raw_headers",
        "reached_app",
        "received_at",
        "refused",
        "request_id",
        "response_started",
        "route",
        "should_close",
        "status",
        "target",
        "tier",
        "token",
        "trace_id",
        "upgrade",
        "user",
        "waited_seconds",
    )

    client: Client

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
    ) -> None:
        self.method = method
        self.target = target  # as sent; bytes that are not UTF-8 are surrogates
        self.path = path_from_target(target)
        self.headers = headers  # case-insensitive
        self.raw_headers = raw_headers
        self.body = body
        self.peer = peer
        self.received_at = received
        self.http10 = http10
        self.chunked = chunked
        self.should_close = should_close  # the client's wish, or its protocol's
        self.upgrade = upgrade  # the protocol asked for, where it may be passed on
        self.origin = headers.get("Origin")
        # set on the way
        self.request_id = ""
        self.trace_id: str | None = None
        self.token = ""
        self.user = ""
        self.tier = ""
        self.route: Route = DEFAULT_ROUTE
        self.max_body: int | None = None
        self.rate_decision: RateDecision | None = None
        self.permit: Permit | None = None
        self.held: HeldResources | None = None
        self.refused: Refusal | None = None
        self.status = 0
        self.aborted = False  # broken off, by the client or by the app
        self.reached_app = False  # the app has it, or a part of it
        self.response_started = False  # the head of an answer is on its way to the client
        self.bytes_in = 0
        self.bytes_out = 0
        self.waited_seconds = 0.0  # time spent neither by us nor by the app: queues, and an app that restarts
        self.app_seconds = 0.0  # the request's last byte sent to the answer's first byte received
        self.overhead_seconds = 0.0  # time spent in the gateway itself
        self.memory_before = 0
        self.calls = 0  # calls out that were made for it
        self.cost: int | None = None  # of those that have a price, in nano-dollars
        self.dropped_from_response = (
            DROPPED_FROM_RESPONSES  # fields of the app's answer that do not reach the client, in lower case
        )
        self.budgets: UserBudgets | None = None  # where a cap rests on its user

    def time_left(self, now: float) -> float | None:
        """Seconds until this route's `total`, or before the answer began its `timeout`, where calls out are to
        end with it (`when_abandoned: cancel`); else None."""
        route = self.route
        if route.when_abandoned != "cancel":
            return None
        ends = [self.received_at + route.total] if route.total is not None else []
        if route.timeout is not None and not self.response_started:
            ends.append(self.received_at + self.waited_seconds + route.timeout)
        return max(0.0, min(ends) - now) if ends else ENDLESS

    def hold_resources(self) -> HeldResources:
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
        """Whether nobody waits for the app's answer any more: the client left, or we refused the request meanwhile."""
        return self.status in (STATUS_CLIENT_GONE, 504) or self.aborted or self._refused_after_start

    @property
    def _refused_after_start(self) -> bool:
        """By us, while the app worked on it; what the app broke off itself is no matter of ours."""
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

    A `#` has no place in a target; servers that take it for a part of the path are as many as those that cut there,
    so it stays, and `pattern.readings` reads both.
    """
    if not target.startswith("/") and (authority := _AUTHORITY.match(target)) is not None:
        target = target[authority.end() :]
        if not target.startswith("/"):
            target = "/" + target
    return target.partition("?")[0] or "/"
