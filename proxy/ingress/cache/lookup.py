"""What one request has to do with the cache of its route, from its look-up to its end.

The pipeline makes it (`ResponseCache.look_up`); the relay asks it three things: how the request to the app differs from
the client's, whether the app's answer is to be replaced by one that is kept, and to take the body of one that may be
kept on its way to the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.http.messages import HeaderList
from proxy.http.problem import http_date
from proxy.ingress.cache.cache_control import ResponseDirectives, parse_http_date
from proxy.ingress.cache.conditions import CONDITIONS, is_not_modified
from proxy.ingress.cache.fills import Fill, Outcome
from proxy.ingress.cache.freshness import freshness_lifetime, initial_age, is_storable
from proxy.ingress.cache.stored_response import PLAIN, StoredResponse, kept_fields, may_be_of_use
from proxy.ingress.compression.compressed_response import ResponseSink, is_compressible
from proxy.ingress.message_head import EditedHead, RequestHead, ResponseHead, field_value, without_fields

if TYPE_CHECKING:
    from proxy.ingress.cache.route_cache import RouteCacheState

STANDS_IN_FOR = frozenset((500, 502, 503, 504))  # RFC 5861 section 4, and no connection or a time-out
_PART_OF_ANOTHER = frozenset((b"range", b"if-range"))
_LENGTH, _DATE = frozenset((b"content-length",)), frozenset((b"date",))

VaryReader = Callable[[bytes], tuple[tuple[str, str | None], ...] | None]


class KeptResponse:
    """An answer out of the cache, what Cache-Status says of it (RFC 9211) behind the cache's own name, and fields that
    this client alone gets."""

    __slots__ = ("entry", "more_fields", "status")

    def __init__(self, entry: StoredResponse, status: bytes, more_fields: HeaderList | None = None) -> None:
        self.entry = entry
        self.status = status
        self.more_fields = more_fields or []


class CacheLookup:
    """One request's look-up, and what comes of it.

    - `status`: what Cache-Status says of the answer, behind the cache's own name; `result`: how it is counted.
    - `entry`: an answer that is stale, to be confirmed by the app or to stand in for an error; None if there is none.
    - `fill`: the entry that this request fills for itself and others, None if it does so for nobody.
    - `may_store`: its answer may be kept. `stands_in_at_once`: a stale answer is there, so nobody waits for the app.
    """

    __slots__ = (
        "_ahead_bytes",
        "_asked_at",
        "_asks_about_entry",
        "_candidate",
        "_drops_range",
        "_read_vary",
        "_requested_at",
        "_state",
        "_x",
        "entry",
        "fill",
        "fill_key",
        "has_credentials",
        "host",
        "key",
        "may_store",
        "path",
        "result",
        "status",
    )

    def __init__(
        self,
        state: RouteCacheState,
        x: RequestHead,
        *,
        key: bytes,
        fill_key: bytes,
        host: str,
        path: str,
        read_vary: VaryReader,
        has_credentials: bool,
        may_store: bool,
        drops_range: bool = False,
    ) -> None:
        self._state = state
        self._x = x
        self._read_vary = read_vary
        self._requested_at = state.wall_clock()
        self._asked_at = state.clock()
        self._asks_about_entry = False
        self._ahead_bytes = 0
        self._drops_range = drops_range
        self._candidate: StoredResponse | None = None  # the answer that is kept if all of it comes
        self.key = key
        self.fill_key = fill_key
        self.host = host
        self.path = path
        self.has_credentials = has_credentials
        self.may_store = may_store
        self.entry: StoredResponse | None = None
        self.fill: Fill | None = None
        self.status = b"fwd=bypass"
        self.result = "bypass"

    @property
    def stands_in_at_once(self) -> bool:
        """Whether a stale answer can take the place of an error, so that an app that is away is not waited for."""
        return self.entry is not None and self.entry.may_stand_in(self._state.policy, self._state.wall_clock())

    # ── the request ──────────────────────────────────────────────────────────────────────────

    def edit_request(self) -> tuple[frozenset[bytes], HeaderList]:
        """The names of request fields that do not reach the app, and the fields in their place.

        Who fills an entry asks for a whole answer: the client's own conditions are judged here when it has come. A
        stale entry is asked about by its validators (RFC 9111 section 4.3.1).
        """
        self._requested_at, self._asked_at = self._state.wall_clock(), self._state.clock()
        # Where nothing is kept, a client that has a copy is better served by the app's own 304.
        fills = self.may_store and (self.entry is not None or not self._state.fills.is_unkept(self.fill_key))
        names = CONDITIONS if fills else frozenset[bytes]()
        if self._drops_range:
            names = names | _PART_OF_ANOTHER
        entry, fields = self.entry, HeaderList()
        self._asks_about_entry = self.may_store and entry is not None and entry.has_validator
        if self._asks_about_entry and entry is not None:
            if (tag := entry.etag) is not None:
                fields.append((b"If-None-Match", tag))
            if (date := entry.last_modified) is not None:
                fields.append((b"If-Modified-Since", date))
        return names, fields

    # ── the answer ───────────────────────────────────────────────────────────────────────────

    def receive_head(self, head: ResponseHead) -> KeptResponse | None:
        """The head of the app's answer has come. An answer that is kept, to be given in its place; else None."""
        state, entry, now = self._state, self.entry, self._state.wall_clock()
        if entry is not None and head.status == 304 and self._asks_about_entry:
            return self._confirm(entry, head, now)
        if entry is not None and head.status in STANDS_IN_FOR and entry.may_stand_in(state.policy, now):
            return self.stand_in(entry, head.status)
        # What the app says now holds, whether it may be kept or not; but for errors, which say nothing of the answer,
        # and for a head alone.
        if entry is not None and head.status < 500 and self._x.method == "GET":
            state.remove(entry)
        candidate = self._candidate = self._make_candidate(head, now) if self.may_store else None
        if candidate is not None:
            self.status += b"; stored"
        if candidate is not None and candidate.time_left(state.policy, now) > 0:
            state.fills.note_kept(self.fill_key)
        else:
            # Nobody can use it without asking the app again: nothing is gained by waiting for it, now or next time.
            if self.may_store and head.status < 500:
                state.fills.note_unkept(self.fill_key)
            self.give_up()
        return None

    def _confirm(self, entry: StoredResponse, head: ResponseHead, now: float) -> KeptResponse:
        entry.confirm(head.headers, self._requested_at, now)
        self.result, self.status = "revalidated", b"fwd=stale; fwd-status=304"
        is_fresh = entry.time_left(self._state.policy, now) > 0
        if self._is_storable(entry.status, entry.directives, entry.headers) and not self._is_discarded:
            self._state.put(entry, self._asked_at)
        else:
            self._state.remove(entry)
        if self.fill is not None:
            # One that must be asked about each time is asked about by each of them.
            self._state.fills.end(self.fill, Outcome.LOOK_AGAIN if is_fresh else Outcome.GO_ON)
            self.fill = None
        # A cookie is this client's own.
        cookies = [pair for pair in head.headers if pair[0].lower() == b"set-cookie"]
        return KeptResponse(entry, self.status, cookies)

    def stand_in(self, entry: StoredResponse, status: int | None) -> KeptResponse:
        """Give a stale answer in place of an error. `status` is what the app said, None if it said nothing."""
        said = b"" if status is None else b"; fwd-status=%d" % status
        self.result, self.status = "stale", b"fwd=stale" + said + b"; detail=stale-if-error"
        if self.fill is not None:
            self._state.fills.end(self.fill, Outcome.STAND_IN)
            self.fill = None
        return KeptResponse(entry, self.status)

    def _is_storable(self, status: int, directives: ResponseDirectives, headers: HeaderList) -> bool:
        scope = self._state.policy.scope
        return is_storable(scope, status, directives, headers, credentials=self.has_credentials)

    def _make_candidate(self, head: ResponseHead, now: float) -> StoredResponse | None:
        """The answer with this head, still without its body, if it is to be kept when all of it has come."""
        state = self._state
        directives = ResponseDirectives.from_headers(head.headers)
        vary = self._read_vary(field_value(head.headers, b"vary") or b"")
        if vary is None or self._is_discarded or not self._is_storable(head.status, directives, head.headers):
            return None
        # The usual case of an answer that is not kept, told before an entry is made of it.
        date = parse_http_date(field_value(head.headers, b"date"), now)
        lifetime = freshness_lifetime(directives, head.headers, now if date is None else date, now)
        if not may_be_of_use(state.policy, head.status, directives, head.headers, lifetime):
            return None
        headers = kept_fields(head.headers)
        if self._x.method != "HEAD":
            headers = without_fields(headers, _LENGTH)
        if date is None:
            # A recipient with a clock dates what comes undated (RFC 9110 section 6.6.1).
            date = now
            headers = [*without_fields(headers, _DATE), (b"Date", http_date(int(now)).strip())]
        entry = StoredResponse(
            self.key,
            self.host,
            self.path,
            head.status,
            head.reason,
            headers,
            vary,
            {},
            now,
            initial_age(head.headers, date, self._requested_at, now),
            lifetime,
            directives,
            is_text=is_compressible(head, head.content_length),
        )
        return entry if entry.usable_for(state.policy, now) > 0 else None

    def edit_head(self, head: ResponseHead) -> ResponseHead:
        """The head as this client gets it: 304 if it asked about a copy that is this very answer."""
        if (
            self._candidate is not None
            and head.status == 200
            and is_not_modified(self._x, head.headers, self._state.wall_clock())
        ):
            return NotModifiedHead(head)
        return head

    def record(self, sink: ResponseSink, coding: str | None) -> ResponseSink:
        """What the body passes through on its way to `sink`, in `coding`."""
        return ResponseRecorder(self, sink, coding or PLAIN) if self._candidate is not None else sink

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    @property
    def max_entry(self) -> int:
        return self._state.memory.max_entry

    @property
    def _is_discarded(self) -> bool:
        """Whether its URI was emptied since it was asked for."""
        return self._state.was_emptied_since(self._asked_at, self.host, self.path)

    def store(self, coding: str, body: bytes) -> None:
        """The whole answer has come: keep it, and let those who wait find it."""
        entry, self._candidate = self._candidate, None
        kept = False
        if entry is not None and not self._is_discarded:
            if self._x.method != "HEAD":
                entry.bodies = {coding: body}
                entry.length = len(body) if coding == PLAIN else 0
            entry.measure()
            kept = self._state.put(entry, self._asked_at)
        if self.fill is not None:
            self._state.fills.end(self.fill, Outcome.LOOK_AGAIN if kept else Outcome.GO_ON)
            self.fill = None

    def may_run_ahead(self, size: int) -> bool:
        """Whether so many bytes more may be kept in memory for a client that does not keep up; they count until the
        request is over."""
        if self._state.ahead_bytes + size > self._state.policy.max:
            return False
        self._state.ahead_bytes += size
        self._ahead_bytes += size
        return True

    def give_up(self) -> None:
        """Nobody need wait for it: it is not kept, or of no use to others."""
        if self.fill is not None:
            self._state.fills.end(self.fill, Outcome.GO_ON)
            self.fill = None

    def close(self, *, answered: bool) -> None:
        """The request is over. `answered`: the app was asked, and failed in a way that others would meet too."""
        self._state.ahead_bytes -= self._ahead_bytes
        self._ahead_bytes = 0
        if self.fill is not None:
            if answered:
                self._state.fills.end(self.fill, Outcome.GO_ON)
            else:
                self._state.fills.abandon(self.fill)
            self.fill = None


class NotModifiedHead(EditedHead):
    """304 in place of an answer that the client has already (RFC 9110 section 15.4.5)."""

    __slots__ = ()

    def __init__(self, source: ResponseHead) -> None:
        super().__init__(source, without_fields(source.headers, _DESCRIBE_BODY))
        self.status = 304
        self.reason = b"Not Modified"
        self.content_length = None
        self.bodyless = True


_DESCRIBE_BODY = frozenset(
    (b"content-length", b"content-encoding", b"content-type", b"content-language", b"transfer-encoding", b"trailer")
)


class ResponseRecorder:
    """A `ResponseSink` that keeps what passes through it, for the cache.

    While it does, the client's own pace counts for nothing: others may wait for this answer, and a client that does
    not read must not keep it from them. So the app is read as fast as it writes, up to the size of one entry, and
    all clients of the route together up to its `max`. Past it the answer is not kept, and the app goes at the client's
    pace as always.
    """

    def __init__(self, lookup: CacheLookup, sink: ResponseSink, coding: str) -> None:
        self._lookup = lookup
        self._sink = sink
        self._coding = coding
        self._pieces: list[bytes] | None = []
        self._size = 0

    def write_body(self, data: bytes) -> bool:
        flows = self._sink.write_body(data)
        if self._pieces is None:
            return flows
        self._size += len(data)
        # It is too large, or memory has its fill of what other clients have not read yet.
        if self._size > self._lookup.max_entry or not (flows or self._lookup.may_run_ahead(len(data))):
            self._pieces = None
            self._lookup.give_up()
            return flows
        self._pieces.append(data)
        return True

    def flush(self) -> bool:
        return self._sink.flush() or self._pieces is not None

    def finish(self) -> None:
        if self._pieces is not None:
            self._lookup.store(self._coding, b"".join(self._pieces))
            self._pieces = None
        self._sink.finish()
