"""One answer that is kept: its head, its body in one coding or several, and what RFC 9111 computes from them.

A body that is long and text is kept compressed (gzip), and undone when a client wants it plain. On a route that
compresses, the coding that a client was sent is kept as it was sent, so that it is made once; another one that is asked
for later is kept beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from proxy.http.messages import HeaderList
from proxy.ingress.cache.cache_control import ResponseDirectives, parse_http_date
from proxy.ingress.cache.freshness import TTL_STATUSES, freshness_lifetime, initial_age, may_serve_stale
from proxy.ingress.message_head import field_value, without_fields
from proxy.policy.schema import RouteCache

ENTRY_OVERHEAD = 1900  # bytes that an entry costs beside its body and fields, measured with tracemalloc
FIELD_OVERHEAD = 150  # the same for each of its fields
PLAIN = "identity"  # the coding that is none (RFC 9110 section 8.4.1)

# Fields of one exchange, which whoever gets the answer later must not see. Fields of the connection are dropped when
# an answer is written.
_NEVER_KEPT = frozenset(
    (b"x-request-id", b"x-correlation-id", b"ratelimit", b"ratelimit-policy", b"x-cost-used-today", b"age", b"trailer")
)
_NEVER_KEPT_PREFIX = b"x-ratelimit-"
# What a 304 does not change: the body that is kept stays, and with it what describes it (RFC 9111 section 3.2).
# A cookie is for whoever asked.
_NOT_CONFIRMED = frozenset(
    (
        b"content-length",
        b"content-encoding",
        b"content-type",
        b"content-range",
        b"etag",
        b"set-cookie",
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
    )
)


@dataclass(slots=True)
class StoredResponse:
    """An answer that is kept. Times are Unix seconds.

    - `key`: the digest of the request that it answers, but for what Vary names; `host` and `path`: what empties it.
    - `vary`: the names in its Vary and the values of its own request, None where the request lacked the field.
    - `bodies`: the body by coding, empty if only its head was asked for; `is_text`: it is worth compressing.
    - `received_at`: when it came, or was last confirmed; `initial_age`: its age then, in seconds.
    - `lifetime`: seconds for which it says that it is fresh, None if it says nothing.
    - `size`: bytes of memory that it takes; `largest_body`: those of its longest form.
    - `readers`: clients that it is being written to, for whom `counted_bytes` are counted as ahead of them.
    - `heads`: beginnings of heads of whole answers as they are written, by coding and by which fields are dropped.
    """

    key: bytes
    host: str
    path: str
    status: int
    reason: bytes
    headers: HeaderList
    vary: tuple[tuple[str, str | None], ...]
    bodies: dict[str, bytes]
    received_at: float
    initial_age: float
    lifetime: float | None
    directives: ResponseDirectives
    is_text: bool = False
    length: int = 0  # bytes of the plain body
    size: int = field(default=0, init=False)
    largest_body: int = field(default=0, init=False)
    readers: int = field(default=0, init=False)
    counted_bytes: int = field(default=0, init=False)
    heads: dict[tuple[str, frozenset[bytes]], bytes] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.measure()

    def measure(self) -> None:
        fields = sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in self.headers)
        self.largest_body = max([len(body) for body in self.bodies.values()], default=0)
        self.size = ENTRY_OVERHEAD + fields + len(self.path) + sum(len(body) for body in self.bodies.values())

    @property
    def etag(self) -> bytes | None:
        return field_value(self.headers, b"etag")

    @property
    def last_modified(self) -> bytes | None:
        return field_value(self.headers, b"last-modified")

    @property
    def has_validator(self) -> bool:
        return any(name.lower() in (b"etag", b"last-modified") for name, _ in self.headers)

    def age(self, now: float) -> float:
        """Seconds since the app made or confirmed it."""
        return self.initial_age + max(0.0, now - self.received_at)

    def time_left(self, policy: RouteCache, now: float) -> float:
        """Seconds for which it is still fresh; not above 0 if it is stale, or must be asked about at each use."""
        if self.directives.no_cache:
            return 0.0
        lifetime = self.lifetime
        if lifetime is None:
            lifetime = policy.ttl if self.status in TTL_STATUSES else 0.0
        return lifetime - self.age(now)

    def may_revalidate_behind(self, policy: RouteCache, now: float) -> bool:
        """Whether it may be given stale now while it is asked about (RFC 5861 section 3)."""
        own = self.directives.stale_while_revalidate
        allowed = policy.stale_while_revalidate if own is None else float(own)
        return allowed > 0 and -self.time_left(policy, now) < allowed and may_serve_stale(self.directives, own)

    def may_stand_in(self, policy: RouteCache, now: float) -> bool:
        """Whether it may be given stale now in place of an error (RFC 5861 section 4)."""
        own = self.directives.stale_if_error
        allowed = policy.stale_if_error if own is None else float(own)
        return allowed > 0 and -self.time_left(policy, now) < allowed and may_serve_stale(self.directives, own)

    def usable_for(self, policy: RouteCache, now: float) -> float:
        """Seconds for which keeping it can be of any use: fresh, stale or to ask the app about."""
        stale = max(
            policy.stale_while_revalidate,
            policy.stale_if_error,
            self.directives.stale_while_revalidate or 0.0,
            self.directives.stale_if_error or 0.0,
        )
        # With a validator a stale one still spares the app its body.
        return max(0.0, self.time_left(policy, now)) + max(stale, MAX_STALE_SECONDS if self.has_validator else 0.0)

    def confirm(self, headers: HeaderList, requested_at: float, now: float) -> None:
        """The app has answered 304: take over its fields, and begin a new life (RFC 9111 sections 3.2 and 4.3.4)."""
        newer = [pair for pair in kept_fields(headers) if pair[0].lower() not in _NOT_CONFIRMED]
        replaced = frozenset(name.lower() for name, _ in newer)
        self.headers = [*without_fields(self.headers, replaced), *newer]
        date = parse_http_date(field_value(self.headers, b"date"), now) or now
        self.directives = ResponseDirectives.from_headers(self.headers)
        self.lifetime = freshness_lifetime(self.directives, self.headers, date, now)
        # The Age of what was stored is over; that of the 304 counts.
        self.initial_age = initial_age(headers, date, requested_at, now)
        self.received_at = now
        self.heads.clear()
        self.measure()

    # ── for a store outside ──────────────────────────────────────────────────────────────────

    def to_bytes(self) -> bytes:
        """For a store that other instances read: the length of a head in JSON, the head, one body."""
        coding = next(iter(self.bodies))
        head = {
            "status": self.status,
            "reason": self.reason.decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers],
            "vary": self.vary,
            "coding": coding,
            "received_at": self.received_at,
            "initial_age": self.initial_age,
            "is_text": self.is_text,
            "length": self.length,
        }
        packed = json.dumps(head, separators=(",", ":")).encode()
        return b"%d\n%s%s" % (len(packed), packed, self.bodies[coding])

    @classmethod
    def from_bytes(cls, data: bytes, key: bytes, host: str, path: str) -> StoredResponse:
        """Raises ValueError if it is none, or of another version."""
        length, _, rest = data.partition(b"\n")
        try:
            head = json.loads(rest[: int(length)])
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"]]
            date = parse_http_date(field_value(headers, b"date"), head["received_at"]) or head["received_at"]
            directives = ResponseDirectives.from_headers(headers)
            return cls(
                key,
                host,
                path,
                head["status"],
                head["reason"].encode("latin-1"),
                headers,
                tuple((name, value) for name, value in head["vary"]),
                {head["coding"]: rest[int(length) :]},
                head["received_at"],
                head["initial_age"],
                freshness_lifetime(directives, headers, date, head["received_at"]),
                directives,
                head["is_text"],
                head["length"],
            )
        except (KeyError, TypeError, AttributeError, UnicodeError) as error:
            raise ValueError(f"not an answer that is kept: {error}") from None


def may_be_of_use(
    policy: RouteCache, status: int, directives: ResponseDirectives, headers: HeaderList, lifetime: float | None
) -> bool:
    """Whether an answer could be given again at all: fresh, stale, or confirmed by the app."""
    if lifetime is None:
        lifetime = policy.ttl if status in TTL_STATUSES else 0.0
    stale = (directives.stale_while_revalidate, directives.stale_if_error)
    return (
        lifetime > 0
        or policy.stale_while_revalidate > 0
        or policy.stale_if_error > 0
        or any(stale)
        or any(name.lower() in (b"etag", b"last-modified") for name, _ in headers)
    )


MAX_STALE_SECONDS = 86400.0  # for which a stale answer is worth keeping in a store, to ask the app about it


def kept_fields(headers: HeaderList) -> HeaderList:
    """The fields of an answer without those of the one exchange that brought it."""
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in _NEVER_KEPT and not lower.startswith(_NEVER_KEPT_PREFIX)
    ]
