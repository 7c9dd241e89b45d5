"""The life of a request, from its head to its line in the log.

`RequestPipeline.handle` is that life, in one function. Each step is a plain function of the exchange that returns, or
raises one of `errors.py`. Accounting happens once, whatever the outcome is.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.hop_by_hop import HOP_BY_HOP
from proxy.http.request_errors import bad_request, body_too_large
from proxy.http.retry_after import round_retry_after
from proxy.ingress.accounting import RequestAccounting
from proxy.ingress.admission.controller import AdmissionController
from proxy.ingress.background import BackgroundRequests
from proxy.ingress.cache.switch import ResponseCacheSwitch
from proxy.ingress.client_address import TrustedPeers, client_network
from proxy.ingress.connection_limits import PER_ADDRESS, ConnectionLimits
from proxy.ingress.detached_client import DetachedClient
from proxy.ingress.dropped_headers import DROPPED_FROM_RESPONSES
from proxy.ingress.error_response import render_refusal, write_refusal
from proxy.ingress.exchange import STATUS_CLIENT_GONE, Exchange, HeldResources
from proxy.ingress.headers import check_framing, is_preflight
from proxy.ingress.identity import Identifier
from proxy.ingress.own_endpoints import OwnEndpoints
from proxy.ingress.ports import UserBudgets
from proxy.ingress.ratelimit.limiter import RateDecision, RateLimiter, log_key
from proxy.ingress.ratelimit.shared_limiter import SharedRateLimiter
from proxy.ingress.relay import Relay, ResponseCut
from proxy.ingress.request_body import BufferedBody
from proxy.ingress.request_facts import RequestFacts
from proxy.ingress.route_timeouts import within_total
from proxy.ingress.routing import RouteTable
from proxy.ingress.stream_limits import StreamLimits
from proxy.observe.emit import EmitEvent
from proxy.observe.request_ids import IdGenerator, find_request_id, parse_traceparent
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.schema import InjectedFault, Policy, Route
from proxy.store.interface import SharedStore, WaitBudget
from proxy.tasks.record import TaskResponse

if TYPE_CHECKING:
    from proxy.ingress.route_filters import RouteFilters

NO_HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
HOST_PATTERN = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")  # RFC 3986 section 3.2.2, an empty one included


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What the policy says about requests, compiled. A reload replaces the object as a whole."""

    routes: RouteTable
    identifier: Identifier
    trusted_peers: TrustedPeers
    max_body: int | None  # bytes
    body_buffer: int  # bytes of a body that are read before its request is admitted
    faults: Mapping[str, tuple[InjectedFault, ...]]  # by route name, for staging
    dropped_from_responses: frozenset[bytes]  # fields of the app's responses that end at the gateway
    filters: Mapping[str, RouteFilters]  # by route name: what a route does to fields and bodies
    probe_paths: frozenset[str]  # paths of the app's own health checks, never shed

    def route_of_task(self, name: str, method: str, path: str) -> Route:
        """The route under which a task was accepted; if the policy has none of that name any more, the one that fits
        it now."""
        return self.routes.named(name) or self.routes.match(method, path)

    @classmethod
    def from_policy(cls, policy: Policy, *, on_render: bool) -> RequestRules:
        """Raises OutriggerError if the policy cannot be compiled."""
        liveness = policy.app.liveness
        probes = (policy.app.ready.path, None if liveness is None else liveness.path)
        return cls(
            RouteTable(policy.routes),
            Identifier(policy.identity),
            TrustedPeers(policy.listen.trusted_proxies, on_render=on_render),
            policy.listen.max_body,
            policy.listen.body.buffer,
            {
                route.name: hits
                for route in policy.routes
                if (hits := tuple(fault for fault in policy.faults if fault.route == route.name))
            },
            HOP_BY_HOP if policy.listen.call_fields else DROPPED_FROM_RESPONSES,
            _compile_filters(policy.routes),
            frozenset(path for path in probes if path is not None),
        )


def _compile_filters(routes: tuple[Route, ...]) -> Mapping[str, RouteFilters]:
    if not any(route.compress != "off" or route.headers.request or route.headers.response for route in routes):
        return {}
    from proxy.ingress.route_filters import compile_filters  # with it comes what compresses

    return compile_filters(routes)


class RequestPipeline:
    """Everything that a request meets, in order. `rules` may be replaced at any time."""

    def __init__(
        self,
        rules: RequestRules,
        *,
        own_endpoints: OwnEndpoints,
        limiter: RateLimiter,
        admission: AdmissionController,
        relay: Relay,
        caching: ResponseCacheSwitch,
        accounting: RequestAccounting,
        requests: RequestRegistry,
        emit: EmitEvent,
        clock: Callable[[], float],
        background: BackgroundRequests,
        budgets: UserBudgets | None = None,
        blocked: Container[str] = (),
        connection_limits: ConnectionLimits | None = None,
        store: SharedStore | None = None,
    ) -> None:
        self._clock = clock
        self._store = store if store is not None and store.is_shared else None
        self._shared_limiter = (
            SharedRateLimiter(self._store, limiter, clock=clock, emit=emit) if self._store is not None else None
        )
        self._ids = IdGenerator()
        self.rules = rules
        self._own_endpoints = own_endpoints
        self._limiter = limiter
        self._admission = admission
        self._relay = relay
        self._caching = caching
        self._stream_limits = relay.stream_limits = StreamLimits(self._note_shadow_refusal)
        self._accounting = accounting
        self._requests = requests
        self._background = background
        self._budgets = budgets
        self._blocked = blocked
        self._connection_limits = connection_limits
        self._emit = emit

    async def handle(self, connection: ClientConnection, x: Exchange) -> bool:
        """Serve one request. True if its connection may serve another one.

        1. Name it: request id, trace, token; and the client behind the peer.
        2. Answer it here if it is for one of the gateway's own endpoints.
        3. Check what no route may loosen: framing and Host.
        4. Identify the user and the tier, and find the route. From here on the request is counted. One that is to run
           later goes the way of `_accept_task` now.
        5. Refuse early, the cheapest check first: connections of its address, blocked user, size, spending cap, rate,
           open streams.
        6. Look for an answer that is kept, if its route keeps any; wait if somebody else is asking for the same.
        7. Read its body, or a buffer of it, so that a slow sender does not hold a place at the app.
        8. Admit it: wait for a place at its route and at the app.
        9. Relay it to the app, and the response to the client; one that may be kept is stored on its way.
        10. Release and account for it, whatever happened.

        The steps stand in one function so that their order can be read. One that most requests skip is a branch, which
        costs 0.01 µs, where asking a coroutine of its own costs 0.25.
        """
        # A reload may replace the rules while this request waits: its client and its route come from one set.
        rules = self.rules
        facts = x.facts
        if facts is None or facts.rules is not rules or facts.peer != x.peer:
            x.facts, facts = None, self._read_head(x, rules)
        own_id, x.token = self._ids.new_pair()
        x.request_id, x.trace_id = facts.request_id or own_id, facts.trace_id
        x.client = facts.client
        x.dropped_from_response = rules.dropped_from_responses
        counted = token_sent = False
        try:
            if facts.is_own:
                return await self._own_endpoints.handle(connection, x)
            if facts.route is None:  # else the same head came before
                check_framing(x, x.headers.get("Transfer-Encoding"))
                self._check_host(x)
                self._identify(x, facts, rules)
            assert facts.route is not None
            x.user, x.tier, x.route, x.filters = facts.user, facts.tier, facts.route, facts.filters
            # `counted` says that both have begun: what begins here must end in the `finally`, once.
            self._accounting.begin(x)
            self._requests.begin(x.token, x)
            counted = True
            if self._connection_limits is not None and self._connection_limits.per_address is not None:
                self._check_address(self._connection_limits, connection, x)
            self._check_blocked(x)
            if x.route.background.mode != "off" and self._background.wants(x):
                return await self._accept_task(connection, x, facts, self._background)
            self._check_size(x)
            if facts.has_cap:
                await self._check_budget(x)
            # Counted here, and refunded below if a later step refuses the request.
            if facts.limits is not None and not is_preflight(x):
                if self._shared_limiter is None:
                    self._apply_rate(x, self._limiter.decide(*facts.limits))
                else:
                    await self._check_shared_rate(self._shared_limiter, x)
            if x.route.streams is not None:
                self._stream_limits.refuse_early(x)
            if x.route.cache is not None and (cache := self._caching.cache) is not None:
                kept = await cache.look_up(x, facts.forwarding)
                if kept is not None:
                    return await cache.write(connection, x, kept)
            if x.body is not EMPTY_PAYLOAD and not x.body.is_eof() and self._admission.may_queue(x.route):
                await self._await_body(connection, x)
            # The usual case, that there is room, costs no coroutine and no timer.
            x.permit = self._admission.try_admit(x.route, exempt=x.path in rules.probe_paths)
            if x.permit is None:
                await self._await_place(x)
            self._note_place(x)
            if rules.faults:
                await self._inject_faults(rules.faults.get(x.route.name, ()))
            token_sent = True
            return await self._relay.forward(connection, x, facts.forwarding)
        except Refusal as refusal:
            cache = self._caching.cache
            if cache is not None and (kept := cache.find_stand_in(x, refusal)) is not None:
                return await cache.write(connection, x, kept)
            # A request that the app never saw does not count against its user's rate.
            if x.rate_decision is not None and not x.reached_app:
                self._refund_rate(x, x.rate_decision)
            return write_refusal(connection, x, refusal)
        except ResponseCut as cut:
            # The status line has gone out: closing the connection is the only way left to tell the client.
            x.aborted = True
            self._emit("request.cut", str(cut), level="warning", request_id=x.request_id, route=x.route.name)
            return False
        except (asyncio.CancelledError, ConnectionError):
            # The client left: its connection's task is cancelled, or a write to it failed. Nobody reads an answer.
            x.aborted = True
            if not x.response_started:
                x.status = STATUS_CLIENT_GONE
            raise
        except Exception as error:  # the outermost seam: a bug costs one request, not the process
            return self._answer_internal_error(connection, x, error)
        finally:
            # No await from here on: a second cancellation could interrupt it, and leak a place for good. Places are
            # released before accounting, so that a failure there cannot keep one either.
            if x.permit is not None:
                x.permit.release()
            if x.held is not None:
                self._release_held(x, x.held)
            if x.lookup is not None and self._caching.cache is not None:
                self._caching.cache.end(x)
            if counted:
                if not x.route.enforce:
                    self._check_size_in_shadow(x)
                # Whatever still works for the request is cancelled if its route says so (`when_abandoned: cancel`).
                abandoned = x.route.when_abandoned == "cancel" and x.is_abandoned
                self._requests.end(x.token, abandoned=abandoned, token_sent=token_sent)
                self._accounting.end(x)
            elif not facts.is_own:
                self._accounting.end_unrouted(x)

    async def run_task(self, x: Exchange, background: Route, max_result: int) -> TaskResponse:
        """One try of a task: the way of a request from its place at the app on, without a client. `x.user` and
        `x.tier` are of the request as it was accepted, and its limits were counted then.

        Raises Refusal (`blocked`, or the relay's own), PeerUnreachable and ResultTooLarge.
        """
        rules = self.rules
        x.token = self._ids.new_token()
        x.client = rules.trusted_peers.resolve_client(x.peer, x.joined_header)
        x.dropped_from_response = rules.dropped_from_responses
        x.route = background
        x.filters = rules.filters.get(background.name)
        token_sent = False
        self._accounting.begin(x)
        self._requests.begin(x.token, x)
        try:
            self._check_blocked(x)
            x.permit = await self._admission.admit_task(x.user)
            # Its time begins now: `background.timeout` is the app's, however long it had to wait for a place.
            x.received_at = self._clock()
            if rules.faults:
                await self._inject_faults(rules.faults.get(x.route.name, ()))
            token_sent = True
            forwarding = rules.trusted_peers.forwarding_headers(x.client, x.peer)
            return await self._relay.collect_response(x, forwarding, max_result)
        except Refusal as refusal:
            x.status, x.refused = refusal.status, refusal
            raise
        except asyncio.CancelledError:
            x.aborted, x.status = True, STATUS_CLIENT_GONE
            raise
        finally:
            # No await from here on, as in `handle`.
            if x.permit is not None:
                x.permit.release()
            abandoned = x.route.when_abandoned == "cancel" and x.is_abandoned
            self._requests.end(x.token, abandoned=abandoned, token_sent=token_sent)
            self._accounting.end_task(x)

    def _release_held(self, x: Exchange, held: HeldResources) -> None:
        if held.has_stream:
            self._stream_limits.release(x)
        if held.share is not None:
            held.share.release()
        if held.address is not None and self._connection_limits is not None:
            self._connection_limits.release(held.address)

    def overload_response(self, refusal: Refusal) -> bytes:
        """A whole response for a client whose request is never read."""
        return render_refusal(refusal, self._ids.new_token())

    def refuse_unreadable(self, connection: ClientConnection, refusal: Refusal) -> None:
        """Answer input that could not be read as a request."""
        x = Exchange("GET", "", NO_HEADERS, (), EMPTY_PAYLOAD, peer=connection.peer, received=0.0, should_close=True)
        x.request_id = self._ids.new_token()
        write_refusal(connection, x, refusal)
        self._accounting.log_unreadable(x, refusal)

    async def _accept_task(
        self, connection: ClientConnection, x: Exchange, facts: RequestFacts, background: BackgroundRequests
    ) -> bool:
        """Keep a request that is to run later, and answer 202. True if its connection may serve another one.

        Limits count now, and not when it runs; a key that has a task already counts against none. Raises Refusal.
        """
        self._check_size(x)
        accepted = await background.read(connection, x)
        known = await background.find_known(x, accepted)
        if known is not None:
            return background.write_view(connection, x, known)
        if facts.has_cap:
            await self._check_budget(x)
        if facts.limits is not None and not is_preflight(x):
            if self._shared_limiter is None:
                self._apply_rate(x, self._limiter.decide(*facts.limits))
            else:
                await self._check_shared_rate(self._shared_limiter, x)
        task, existed = await background.submit(x, accepted)
        if existed:
            # Another request with the same key was quicker by a moment: this one counts against nothing.
            if x.rate_decision is not None:
                self._refund_rate(x, x.rate_decision)
                x.rate_decision = None
            return background.write_view(connection, x, task)
        return await background.answer(connection, x, accepted, task)

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _read_head(self, x: Exchange, rules: RequestRules) -> RequestFacts:
        headers = x.headers
        stated = headers.get("X-Request-Id"), headers.get("X-Correlation-Id")
        parent = headers.get("traceparent")
        return RequestFacts(
            rules,
            x.peer,
            x.path,
            rules.trusted_peers.resolve_client(x.peer, x.joined_header),
            is_own=self._own_endpoints.claims(x.path),
            request_id=find_request_id(*stated) if stated != (None, None) else "",
            trace_id=parse_traceparent(parent) if parent is not None else None,
        )

    def _identify(self, x: Exchange, facts: RequestFacts, rules: RequestRules) -> None:
        """Whose request it is, and its route. They hold for the next request with the same head, if time does not
        change them."""
        identified = rules.identifier.identify(x)
        facts.user, facts.tier = identified.user, identified.tier
        facts.route = rules.routes.match(x.method, x.path)
        if rules.filters:
            facts.filters = rules.filters.get(facts.route.name)
        limits = self._limiter.limits_for(facts.route, facts.tier) if facts.route.rate_limit else None
        if limits is not None:
            facts.limits = limits, log_key(facts.route, facts.user)
        facts.has_cap = self._budgets is not None and self._budgets.has_cap(facts.user, facts.tier)
        facts.forwarding = rules.trusted_peers.forwarding_headers(x.client, x.peer)
        if not rules.identifier.depends_on_time(x):
            x.facts = facts

    def _check_host(self, x: Exchange) -> None:
        host = x.headers.get("Host")
        if host is not None and not HOST_PATTERN.fullmatch(host):
            raise bad_request("The Host field is not a host and port (RFC 9110 section 7.2).")

    def _check_address(self, limits: ConnectionLimits, connection: ClientConnection, x: Exchange) -> None:
        """Count one place for each connection of a client, or for each of its requests if it comes through a proxy.

        The listener counted the connection by its peer. If the peer turns out to be a proxy, its place is given back,
        and each request counts by the client that it names.
        """
        if x.path in self.rules.probe_paths:
            return
        peer, client = client_network(x.peer), client_network(x.client.ip)
        if client != peer:
            connection.behind_proxy = True
            if connection.counted_address is not None:
                limits.release(connection.counted_address)
                connection.counted_address = None
        if connection.counted_address is not None or (connection.behind_proxy and client == peer):
            return
        if not limits.acquire(client):
            raise limits.refusal(PER_ADDRESS)
        if connection.behind_proxy:
            x.hold_resources().address = client
        else:
            connection.counted_address = client

    def _check_blocked(self, x: Exchange) -> None:
        if x.user in self._blocked and not is_preflight(x):
            raise Refusal("blocked", 403, "Blocked", "An operator of this service has blocked this user.")

    def _check_size(self, x: Exchange) -> None:
        limit, own = self.rules.max_body, x.route.max_body
        if own is not None:
            if x.route.enforce:
                limit = own
            elif limit is not None:
                limit = max(own, limit)  # shadow mode refuses nothing that the route's own limit would let pass
        x.max_body = limit
        if limit is not None and _body_size(x) > limit:
            raise body_too_large(limit)

    def _check_size_in_shadow(self, x: Exchange) -> None:
        """Called at the end, when the size is known however the body was framed."""
        own = x.route.max_body
        if own is not None and _body_size(x) > own:
            self._note_shadow_refusal(x, "body-too-large", f"its body is larger than {own} bytes (max_body)")

    async def _check_budget(self, x: Exchange) -> None:
        budgets = x.budgets = self._budgets
        assert budgets is not None
        # Also for routes that need no budget: the response states what the user has spent today.
        is_needed = x.route.requires_budget and not is_preflight(x)
        if not budgets.is_loaded(x.user, x.tier, fresh=is_needed):
            await budgets.load_user(x.user, x.tier)
        if not is_needed:
            return
        exhausted = budgets.exhausted_cap(x.user, x.tier)
        if exhausted is None:
            return
        text, seconds = exhausted
        if x.route.enforce:
            raise Refusal("cost-cap", 402, "Spending cap reached", f"Of {text}.", retry_after=seconds)
        self._note_shadow_refusal(x, "cost-cap", f"of {text}", event="cap.shadow")

    async def _check_shared_rate(self, shared: SharedRateLimiter, x: Exchange) -> None:
        began = self._clock()
        try:
            decision = await shared.check(x.route, x.tier, x.user, self.store_budget(x))
        finally:
            x.waited_seconds += self._clock() - began
        self._apply_rate(x, decision)

    def _apply_rate(self, x: Exchange, decision: RateDecision | None) -> None:
        x.rate_decision = decision
        if decision is None:
            return
        refused = not decision.allowed
        self._accounting.count_rate_limit(x, refused)
        if not refused:
            return
        used_up = f"the limit of this route ({x.route.name}) is used up"
        if not x.route.enforce:
            self._note_shadow_refusal(x, "rate-limited", used_up)
            return
        detail = f"T{used_up[1:]}; come again in {round_retry_after(decision.retry_after)} s."
        raise Refusal("rate-limited", 429, "Too many requests", detail, retry_after=decision.retry_after)

    def _refund_rate(self, x: Exchange, decision: RateDecision) -> None:
        limiter = self._limiter if self._shared_limiter is None else self._shared_limiter
        limiter.refund(x.route, x.user, decision)

    def store_budget(self, x: Exchange) -> WaitBudget:
        """What is left of the time that this request may wait for the store in all (`store.timeout`)."""
        if x.store_budget is None:
            x.store_budget = WaitBudget(self._store.policy.timeout if self._store is not None else 0.0)
        return x.store_budget

    async def _await_body(self, connection: ClientConnection, x: Exchange) -> None:
        """Read the body, or as much of it as `listen.body.buffer` allows, before the request takes a place at the app.

        A body that is longer than the buffer also needs a share of its address's places, since it may hold one for as
        long as its sender likes.
        """
        if not self.rules.body_buffer:
            return
        if not x.http10 and not x.body.total_bytes and "100-continue" in (x.headers.get("Expect") or "").lower():
            # The client waits for this, and the gateway for the body: without it neither would move.
            connection.write_continue(b"HTTP/1.1 100 Continue\r\n\r\n")
            x.hold_resources().continue_sent = True
        began = self._clock()
        body = x.body = BufferedBody(x.body)
        try:
            async with within_total(x):
                await body.fill(self.rules.body_buffer, x.max_body)
                if not body.is_eof():
                    share = await self._admission.acquire_share(x.route, client_network(x.client.ip))
                    x.hold_resources().share = share
        finally:
            x.waited_seconds += self._clock() - began

    @property
    def open_streams(self) -> Mapping[str, int]:
        """Open streams by route, of the routes that limit them."""
        return self._stream_limits.open_by_route()

    async def _await_place(self, x: Exchange) -> None:
        began = self._clock()
        try:
            async with within_total(x):
                x.permit = await self._admission.admit(x.route, x.tier, x.user)
        finally:
            x.waited_seconds += self._clock() - began

    def _note_place(self, x: Exchange) -> None:
        permit = x.permit
        if permit is not None and permit.route_name:  # a health probe has none, and is not counted
            self._accounting.record_concurrency(x.route.name, permit.route_in_flight)
        if not x.route.enforce and self._admission.is_overfull(x.route.name):
            self._note_shadow_refusal(
                x, "overloaded", "this route has its fill of requests (concurrency), and its queue is full"
            )

    def keeps_path(self, path: str) -> bool:
        """Whether answers to GET of this path are kept."""
        return self.rules.routes.match("GET", path).cache is not None

    async def refresh(self, x: Exchange, forwarding: Iterable[tuple[bytes, bytes]]) -> None:
        """Ask the app for a stale answer while nobody waits for it; not if it has no place for that now."""
        x.request_id, x.token = self._ids.new_token(), self._ids.new_token()
        self._requests.begin(x.token, x)
        try:
            x.permit = self._admission.try_admit(x.route)
            if x.permit is not None:
                await self._relay.forward(DetachedClient(), x, forwarding)
        except (Refusal, ResponseCut):
            pass  # the stale one is still there, and the next request tries again
        finally:
            if x.permit is not None:
                x.permit.release()
            if x.held is not None:
                self._release_held(x, x.held)
            self._requests.end(x.token, abandoned=False, token_sent=True)

    def _note_shadow_refusal(self, x: Exchange, name: str, why: str, *, event: str = "shadow") -> None:
        """Count and log a refusal that a route in shadow mode (`enforce: false`) does not make."""
        self._accounting.count_shadow_refusal(x, name)
        text = f"Would be refused ({name}): {why}."
        self._emit(event, text, request_id=x.request_id, route=x.route.name, user=x.user, refused=name)

    async def _inject_faults(self, faults: Iterable[InjectedFault]) -> None:
        """Apply the policy's `faults` to this request, each by its share of requests. Raises Refusal."""
        for fault in faults:
            if random.random() >= fault.share:  # noqa: S311 (no secret)
                continue
            if fault.delay is not None:
                await asyncio.sleep(fault.delay)
            if fault.status is not None:
                detail = "This answer was made up by a fault of the policy (faults)."
                raise Refusal("injected-fault", fault.status, "Injected fault", detail)

    def _answer_internal_error(self, connection: ClientConnection, x: Exchange, error: Exception) -> bool:
        self._emit("fault", f"{type(error).__name__}: {error}", level="error", request_id=x.request_id)
        if x.response_started:
            connection.abort_response(framed=True)
            return False
        detail = "The gateway met a fault of its own; the log has it under this request_id."
        return write_refusal(connection, x, Refusal("fault", 500, "Internal server error", detail, close=True))


def _body_size(x: Exchange) -> int:
    """Bytes of the body: as announced, or as many as have come if that is more."""
    return max(int(x.headers.get("Content-Length") or 0), x.body.total_bytes)
