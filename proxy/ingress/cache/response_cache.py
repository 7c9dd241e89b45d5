"""The caches of all routes: looking up, storing by the way (`lookup.py`), emptying, and what a reload changes.

look up      fresh → given. Stale, and may be given while it is asked about → given, and the app is asked behind.
             Else the first request for it asks the app and fills the entry; the others wait for that (`fills.py`).
confirm      a stale entry with a validator is asked about; 304 makes it fresh again (RFC 9111 section 4.3).
stand in     a stale entry is given in place of an error (RFC 5861 section 4).
empty        a method that writes, and succeeded, empties its path in every route (RFC 9111 section 4.4); so does
             an operator's `purge`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp.streams import EMPTY_PAYLOAD

from proxy.errors import Refusal
from proxy.ingress.cache.credentials import find_credentials
from proxy.ingress.cache.fills import Outcome
from proxy.ingress.cache.kept_response import LARGE, KeptResponseWriter, compress_large_body
from proxy.ingress.cache.lookup import STANDS_IN_FOR, CacheLookup, KeptResponse, VaryReader
from proxy.ingress.cache.request_key import ForwardingFields, read_varying, request_key
from proxy.ingress.cache.route_cache import RouteCacheState
from proxy.ingress.cache.stored_response import PLAIN, StoredResponse
from proxy.ingress.compression.encoders import Encoders
from proxy.ingress.detached_client import ResponseClient
from proxy.ingress.exchange import Exchange
from proxy.ingress.message_head import ResponseHead, field_value
from proxy.ingress.route_timeouts import within_total
from proxy.observe.metrics import Metrics
from proxy.policy.schema import Route
from proxy.store.interface import WaitBudget
from proxy.util.background_tasks import BackgroundTasks

MAX_UNCOUNTED = 64 * 1024  # bytes of an answer that is sent at once, whether its client reads or not

Refresh = Callable[[Exchange, ForwardingFields], Awaitable[None]]


class SharedTier(Protocol):
    """A second tier that other instances read too. None of these raises, or waits longer than the store's timeout."""

    async def get(
        self,
        key: bytes,
        fill_key: bytes,
        *,
        route: str,
        host: str,
        path: str,
        read_varying: VaryReader,
        budget: WaitBudget,
    ) -> tuple[StoredResponse | None, bool]:
        """What another instance has kept, and whether this one fills it for all; then `end_fill` must follow."""

    def put(self, entry: StoredResponse, *, route: str, max_bytes: int, asked_at: float, ttl: float) -> None: ...
    def end_fill(self, fill_key: bytes, *, kept: bool) -> None: ...
    def empty(self, route: str | None, path: str | None, host: str | None) -> None:
        """Tell the others; None stands for every route, path, host."""

    def close(self) -> None: ...


class ResponseCache:
    """The caches of the routes that have one. `clock` is the loop's, `wall_clock` returns Unix time.

    `refresh` asks the app for a stale answer while nobody waits; the pipeline sets it. `tier` is set if instances share
    a store, and `make_budget` gives what a request may still wait for it. `keeps_path` says whether answers to GET of a
    path are kept.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._routes: dict[str, RouteCacheState] = {}
        self._sources: dict[str, Route] = {}  # the routes that the states were made from
        self._writer = KeptResponseWriter(Encoders(), self._recount)
        self._tasks = BackgroundTasks()
        self.refresh: Refresh | None = None
        self.tier: SharedTier | None = None
        self.keeps_path: Callable[[str], bool] = lambda path: True
        self.make_budget: Callable[[Exchange], WaitBudget] | None = None

    def __repr__(self) -> str:
        return f"<ResponseCache {', '.join(f'{name}: {state.memory!r}' for name, state in self._routes.items())}>"

    @property
    def is_used(self) -> bool:
        """Whether any route keeps answers."""
        return bool(self._routes)

    def apply(self, routes: tuple[Route, ...]) -> None:
        """Take over the routes of a policy. What a route has kept stays, unless it was made under other rules."""
        kept = {route.name: route for route in routes if route.cache is not None}
        for name in [name for name in self._routes if name not in kept]:
            del self._routes[name], self._sources[name]
        if any(route.compress == "auto" for route in kept.values()):
            self._writer.encoders = Encoders.load()
        for name, route in kept.items():
            assert route.cache is not None
            before = self._sources.get(name)
            state = self._routes.get(name)
            # Fields, codings and keys of what was kept are those of the old rules.
            if state is None or before is None or _rules(before) != _rules(route):
                self._routes[name] = RouteCacheState(
                    route,
                    route.cache,
                    clock=self._clock,
                    wall_clock=self._wall_clock,
                    on_put=self._on_put,
                    on_shared_end=self._on_shared_end,
                )
            else:
                state.policy = route.cache
                state.memory.set_max(route.cache.max)
            self._sources[name] = route
            for result in ("hit", "miss", "stale", "revalidated", "bypass"):
                self._metrics.http_cache_total.labels(name, result)

    def close(self) -> None:
        """End what goes on while nobody waits."""
        self._tasks.cancel()
        if self.tier is not None:
            self.tier.close()

    # ── a request ────────────────────────────────────────────────────────────────────────────

    async def look_up(self, x: Exchange, forwarding: ForwardingFields) -> KeptResponse | None:
        """The answer to a request, if one is kept that may be given; None if the app is to be asked.

        If somebody else is asking the app for the same, this waits, within the route's `total`. `end` must follow.
        """
        state = self._routes.get(x.route.name)
        if state is None or x.upgrade is not None:
            return None
        lookup = x.lookup = self._begin(state, x, forwarding)
        if x.method not in ("GET", "HEAD"):
            lookup.status, lookup.may_store = b"fwd=method", False
            return None
        # Conditions on what the app has are the app's to judge; so is a body, which no key knows.
        if not x.body.is_eof() or x.body.total_bytes or "If-Match" in x.headers or "If-Unmodified-Since" in x.headers:
            lookup.may_store = False
            return None
        outcome = None
        while True:
            kept = self._find(state, x, lookup, forwarding, stands_in=outcome is Outcome.STAND_IN)
            if kept is not None:
                return kept
            goes_on = outcome in (Outcome.GO_ON, Outcome.STAND_IN) or not lookup.may_store
            if goes_on or x.method == "HEAD" or state.fills.is_unkept(lookup.fill_key):
                return None
            fill = state.fills.get(lookup.fill_key)
            if fill is None:
                lookup.fill = state.fills.begin(lookup.fill_key)
                return await self._find_shared(state, x, lookup, forwarding)
            began = self._clock()
            try:
                async with within_total(x):
                    outcome = await state.fills.wait(fill)
            finally:
                x.waited_seconds += self._clock() - began
            if outcome is Outcome.TAKE_OVER:
                lookup.fill = fill
                return None

    def _begin(self, state: RouteCacheState, x: Exchange, forwarding: ForwardingFields) -> CacheLookup:
        credentials = find_credentials(x.raw_headers)
        key = request_key(x, state.policy, x.method, credentials)
        lookup = CacheLookup(
            state,
            x,
            key=key,
            fill_key=key,
            host=x.headers.get("Host") or "",
            path=x.path,
            read_vary=partial(read_varying, x, forwarding=forwarding),
            # A part is no answer to anybody else, and a client may ask for nothing of it to be kept.
            has_credentials=bool(credentials),
            may_store="Range" not in x.headers and not _asks_not_to_store(x),
        )
        if state.policy.scope == "public" and lookup.has_credentials:
            # What comes of it is for all only if the app says so: nobody without credentials waits for that.
            lookup.fill_key = key + b"credentials"
        return lookup

    def _find(
        self, state: RouteCacheState, x: Exchange, lookup: CacheLookup, forwarding: ForwardingFields, *, stands_in: bool
    ) -> KeptResponse | None:
        """What is kept in memory for this request, if it may be given. Else `lookup` has what there is of it."""
        variants = state.memory.variants(lookup.key)
        if x.method == "HEAD":
            whole = request_key(x, state.policy, "GET", find_credentials(x.raw_headers))
            variants = [*state.memory.variants(whole), *variants]
        now = self._wall_clock()
        lookup.result, lookup.entry = "miss", None
        lookup.status = b"fwd=vary-miss" if variants else b"fwd=uri-miss"
        for entry in variants:
            if not _is_for(state, x, entry, lookup, forwarding):
                continue
            if entry.largest_body > MAX_UNCOUNTED and state.ahead_bytes > state.policy.max and not entry.readers:
                # Memory has its fill of answers that clients do not read: this one goes at the client's own pace.
                lookup.result, lookup.status, lookup.may_store = "bypass", b"fwd=bypass", False
                return None
            left = entry.time_left(state.policy, now)
            if left > 0:
                lookup.result, lookup.status = "hit", b"hit"
                return KeptResponse(entry, b"hit")
            lookup.entry, lookup.status = entry, b"fwd=stale"
            behind = entry.may_revalidate_behind(state.policy, now)
            if behind or (stands_in and entry.may_stand_in(state.policy, now)):
                if behind and state.fills.get(lookup.fill_key) is None:
                    self._refresh_behind(state, x, lookup, entry, forwarding)
                lookup.result, lookup.status = "stale", b"hit; ttl=%d" % left
                return KeptResponse(entry, lookup.status)
            return None
        return None

    async def _find_shared(
        self, state: RouteCacheState, x: Exchange, lookup: CacheLookup, forwarding: ForwardingFields
    ) -> KeptResponse | None:
        """What another instance has kept for this request; it is kept here too from now on."""
        if self.tier is None or self.make_budget is None or lookup.fill is None:
            return None
        began = self._clock()
        try:
            entry, lookup.fill.is_shared = await self.tier.get(
                lookup.key,
                lookup.fill_key,
                route=state.name,
                host=lookup.host,
                path=lookup.path,
                read_varying=partial(read_varying, x, forwarding=forwarding),
                budget=self.make_budget(x),
            )
        finally:
            x.waited_seconds += self._clock() - began
        if entry is None or not _is_for(state, x, entry, lookup, forwarding) or not state.memory.put(entry):
            return None
        kept = self._find(state, x, lookup, forwarding, stands_in=False)
        if kept is not None and lookup.fill is not None:
            state.fills.end(lookup.fill, Outcome.LOOK_AGAIN)
            lookup.fill = None
        return kept

    def _refresh_behind(
        self,
        state: RouteCacheState,
        x: Exchange,
        lookup: CacheLookup,
        entry: StoredResponse,
        forwarding: ForwardingFields,
    ) -> None:
        """Ask the app about a stale answer while nobody waits for it (RFC 5861 section 3)."""
        if self.refresh is None:
            return
        behind = Exchange("GET", x.target, x.headers, x.raw_headers, EMPTY_PAYLOAD, peer=x.peer, received=self._clock())
        behind.client, behind.user, behind.tier, behind.route, behind.filters = (
            x.client,
            x.user,
            x.tier,
            x.route,
            x.filters,
        )
        other = behind.lookup = CacheLookup(
            state,
            behind,
            key=entry.key,
            fill_key=lookup.fill_key,
            host=lookup.host,
            path=lookup.path,
            read_vary=partial(read_varying, behind, forwarding=forwarding),
            has_credentials=lookup.has_credentials,
            may_store=True,
            drops_range=True,
        )
        other.entry, other.status, other.result = entry, b"fwd=stale", "miss"
        other.fill = state.fills.begin(lookup.fill_key)
        self._tasks.start(self._refresh(behind, forwarding))

    async def _refresh(self, behind: Exchange, forwarding: ForwardingFields) -> None:
        assert self.refresh is not None
        try:
            await self.refresh(behind, forwarding)
        finally:
            if behind.lookup is not None:
                behind.lookup.close(answered=True)

    async def write(self, connection: ResponseClient, x: Exchange, kept: KeptResponse) -> bool:
        """Answer with what is kept. True if the client's connection may serve another request."""
        state, size = self._routes.get(x.route.name), kept.entry.largest_body
        if state is None or size <= MAX_UNCOUNTED:
            return await self._writer.write(connection, x, kept, self._wall_clock())
        # Until the last client has read it, it is in memory, even if it is none of the route's answers any more.
        kept.entry.readers += 1
        if kept.entry.readers == 1:
            kept.entry.counted_bytes = size
            state.ahead_bytes += size
        try:
            return await self._writer.write(connection, x, kept, self._wall_clock())
        finally:
            kept.entry.readers -= 1
            if not kept.entry.readers:
                state.ahead_bytes -= kept.entry.counted_bytes

    def find_stand_in(self, x: Exchange, refusal: Refusal) -> KeptResponse | None:
        """A stale answer in place of this refusal, made while the app was asked; None if there is none."""
        lookup = x.lookup
        if lookup is None or lookup.entry is None or refusal.status not in STANDS_IN_FOR or x.response_started:
            return None
        return lookup.stand_in(lookup.entry, None) if lookup.stands_in_at_once else None

    def end(self, x: Exchange) -> None:
        """The request is over, whatever became of it: count it, and let others go on that wait for it."""
        lookup = x.lookup
        if lookup is None:
            return
        self._metrics.http_cache_total.labels(x.route.name, lookup.result).inc()
        # An app that is away, full or late is so for all who wait, and they need not learn it one by one. One that
        # broke off, or a client that left, says nothing about the next try.
        refused = x.refused is not None and not (x.reached_app and x.refused.name == "app-unreachable")
        lookup.close(answered=refused and not x.aborted)

    # ── emptying ─────────────────────────────────────────────────────────────────────────────

    def empty_after_write(self, x: Exchange, head: ResponseHead) -> None:
        """The app's answer to a method that writes has begun: if it succeeded, what is kept of its URI may be wrong.

        So may be what Location and Content-Location name, if it is on the same host (RFC 9111 section 4.4).
        """
        if not 200 <= head.status < 400:
            return
        host = x.headers.get("Host") or ""
        paths = {x.path}
        for name in (b"location", b"content-location"):
            value = field_value(head.headers, name)
            if value is not None:
                parts = urlsplit(value.decode("latin-1"))
                if parts.path.startswith("/") and parts.netloc in ("", host):
                    paths.add(parts.path)
        for path in paths:
            # Most of what is written was never kept: nobody need be told of it.
            if not self.keeps_path(path):
                continue
            self.empty(None, path, host)
            if self.tier is not None:
                self.tier.empty(None, path, host)

    def empty(self, route: str | None, path: str | None, host: str | None = None) -> int:
        """Forget what is kept in memory; None stands for every route, path, host. How many answers there were."""
        states = self._routes.values() if route is None else [s for s in (self._routes.get(route),) if s is not None]
        return sum(state.empty(path, host) for state in states)

    def purge(self, route: str, path: str | None) -> int:
        """Forget a route's answers here and everywhere, or those of one path: every query, variant, user and host. How
        many there were here."""
        count = self.empty(route, path)
        if self.tier is not None:
            self.tier.empty(route, path, None)
        return count

    def can_decode(self, coding: str) -> bool:
        """Whether a body in this coding can be undone here."""
        return coding == PLAIN or coding in self._writer.encoders.decoders

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """By route: how many answers are kept, and their bytes."""
        return {name: (len(state.memory), state.memory.size) for name, state in self._routes.items()}

    def sweep(self) -> None:
        """Remove what is of no use any more."""
        now = self._wall_clock()
        for state in self._routes.values():
            state.memory.sweep(lambda entry, state=state: entry.usable_for(state.policy, now) <= 0)  # type: ignore[misc]

    # ── what is kept ─────────────────────────────────────────────────────────────────────────

    def _on_put(self, state: RouteCacheState, entry: StoredResponse, asked_at: float) -> None:
        now = self._wall_clock()
        # One that must be asked about at each use is of no use to an instance that has not asked.
        if self.tier is not None and entry.time_left(state.policy, now) > 0:
            ttl = entry.usable_for(state.policy, now)
            self.tier.put(entry, route=state.name, max_bytes=state.policy.max, asked_at=asked_at, ttl=ttl)
        if entry.is_text and len(entry.bodies.get(PLAIN, b"")) > LARGE:
            self._tasks.start(self._compress(entry))

    def _on_shared_end(self, fill_key: bytes, kept: bool) -> None:
        if self.tier is not None:
            self.tier.end_fill(fill_key, kept=kept)

    async def _compress(self, entry: StoredResponse) -> None:
        if await compress_large_body(entry):
            self._recount(entry)

    def _recount(self, entry: StoredResponse) -> None:
        for state in self._routes.values():
            state.memory.resize(entry)


def _rules(route: Route) -> tuple[object, ...]:
    assert route.cache is not None
    return (route.cache.scope, route.headers, route.compress)


def _asks_not_to_store(x: Exchange) -> bool:
    """RFC 9111 section 5.2.1.5; no other directive of a client is obeyed."""
    said = x.joined_header("Cache-Control")
    return said is not None and "no-store" in said.lower()


def _is_for(
    state: RouteCacheState, x: Exchange, entry: StoredResponse, lookup: CacheLookup, forwarding: ForwardingFields
) -> bool:
    """Whether a kept answer answers this request, as to its Vary and to whom it may be given."""
    if state.policy.scope == "public" and lookup.has_credentials and not entry.directives.public:
        return False
    if not entry.vary:
        return True
    names = ",".join(name for name, _ in entry.vary).encode("latin-1")
    return read_varying(x, names, forwarding) == entry.vary
