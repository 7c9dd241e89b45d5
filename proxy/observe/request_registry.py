"""The registry of requests by their tokens: attributes a call out, or a query, to the request that it works for.

Every request has a random token, which the app gets as `X-Outrigger-Request`; what comes back with the token is that
request's work. After the end of the request its token is kept for ten minutes, for the work that it left running in
the background, and no longer: a loop that a request happened to start does not belong to it.

Most requests leave nothing running (a page, a static file). So ended requests whose token was used are kept apart from
those whose token never was: if there are too many of the latter, they push none of the others out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy.observe.ended_requests import EndedRequests, pack_request

KEEP_ENDED_SECONDS = 600.0  # seconds
MAX_UNUSED_ENDED = 15_000  # ended requests whose token was never used: 25 a second for ten minutes, 1.3 MiB
MAX_USED_ENDED = 20_000  # ended requests whose token was: 33 a second, 1.7 MiB


class Request(Protocol):
    """A request as its calls and queries know it; implemented by the ingress."""

    user: str
    tier: str
    request_id: str
    trace_id: str | None

    def time_left(self, now: float) -> float | None:
        """Seconds until its own timeouts end it, if its work is to end with it; else None."""

    @property
    def route_name(self) -> str: ...

    def call_began(self) -> None: ...

    def call_ended(self, cost: int | None) -> None:
        """A call has ended; `cost` in nano-dollars, None if it has no price."""

    def call_paid(self, cost: int) -> None:
        """Add a cost that became known only after its call had ended, since others went on reading the response."""


class Attribution:
    """The request that a call or a query is attributed to. `request` is None if it has ended; the other attributes are
    known in either case."""

    __slots__ = ("request", "request_id", "route", "tier", "token", "trace_id", "user")

    def __init__(
        self,
        token: str,
        user: str,
        tier: str,
        request_id: str,
        trace_id: str | None,
        route: str,
        request: Request | None,
    ) -> None:
        self.token = token
        self.user = user
        self.tier = tier
        self.request_id = request_id
        self.trace_id = trace_id
        self.route = route
        self.request = request


class RequestRegistry:
    """The requests in flight by their tokens, and the ended ones for ten minutes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._live: dict[str, Request] = {}
        self._used_tokens: set[str] = set()  # tokens of requests in flight that were used
        self._ended_used = EndedRequests(MAX_USED_ENDED, KEEP_ENDED_SECONDS, clock)
        self._ended_unused = EndedRequests(MAX_UNUSED_ENDED, KEEP_ENDED_SECONDS, clock)
        self._work: dict[str, set[Callable[[], object]]] = {}

    def __repr__(self) -> str:
        return f"<Requests {len(self._live)} live, {len(self._ended_used) + len(self._ended_unused)} ended>"

    def begin(self, token: str, request: Request) -> None:
        self._live[token] = request

    def end(self, token: str, *, abandoned: bool = False, token_sent: bool = True) -> None:
        """The request has ended. If `abandoned`, the work registered for it is cancelled. `token_sent`: the app may
        have its token; without that nobody can ever use it."""
        request = self._live.pop(token, None)
        if request is None:
            return  # it has ended already
        used = token in self._used_tokens
        if used:
            self._used_tokens.discard(token)
        if used or token_sent:
            ended_requests = self._ended_used if used else self._ended_unused
            ended_requests.add(token, pack_request(request, self._clock()))
        if not self._work:
            return
        # Taken out before it is cancelled: each piece of work takes itself out when it ends.
        work = self._work.pop(token, None)
        if abandoned and work is not None:
            for cancel in work:
                cancel()

    def find(self, token: str | None) -> Attribution | None:
        if token is None:
            return None
        live = self._live.get(token)
        if live is not None:
            self._used_tokens.add(token)
            return Attribution(token, live.user, live.tier, live.request_id, live.trace_id, live.route_name, live)
        ended = self._ended_used.find(token)
        if ended is None:
            # Its token is used for the first time: from now on it is kept with those that left something running.
            ended = self._ended_unused.find(token)
            if ended is None:
                return None
            self._ended_unused.discard(token)
            self._ended_used.add(token, ended.packed)
        user, tier, route, request_id, trace_id = ended.unpack()
        return Attribution(token, user, tier, request_id, trace_id, route, None)

    def register_work(self, token: str, cancel: Callable[[], object]) -> Callable[[], None]:
        """Register work for a request in flight: `cancel` is called if that is abandoned. Returns a function to call
        when the work is done."""
        if token not in self._live:
            return _do_nothing
        work = self._work.setdefault(token, set())
        work.add(cancel)

        def done() -> None:
            work.discard(cancel)
            # After the end of the request its set is no longer in the registry.
            if not work and self._work.get(token) is work:
                del self._work[token]

        return done


def _do_nothing() -> None:
    pass
