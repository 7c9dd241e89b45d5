"""Answers that may be given again: in memory, bounded by bytes, the longest unused leave first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proxy.policy import schema

ENTRY_OVERHEAD = 400  # bytes an entry costs beside what it holds


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """A whole answer, with the header fields that several callers may see; `stored` is the clock's, in seconds."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    stored: float

    @property
    def size(self) -> int:
        return ENTRY_OVERHEAD + len(self.body) + sum(len(name) + len(value) + 100 for name, value in self.headers)


class ResponseCache:
    """Answers by key, in the order of their last use. `policy.max` bounds them, in bytes."""

    def __init__(self, policy: schema.Cache, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: OrderedDict[bytes, CachedResponse] = OrderedDict()
        self._size = 0
        self._emptied_at = float("-inf")
        self.policy = policy

    def __repr__(self) -> str:
        return f"<Cache {len(self._entries)} answers, {self._size} of {self.policy.max} bytes>"

    @property
    def usage(self) -> tuple[int, int]:
        """How many answers are kept, and their bytes."""
        return len(self._entries), self._size

    def get(self, key: bytes) -> CachedResponse | None:
        """An answer that is not older than `ttl`; None if there is none."""
        return self._find(key, self.policy.ttl)

    def get_stale(self, key: bytes) -> CachedResponse | None:
        """An answer that expired no longer than `stale_if_error` ago, if at all (RFC 5861 section 4)."""
        return self._find(key, self.policy.ttl + self.policy.stale_if_error)

    def put(self, key: bytes, entry: CachedResponse, *, asked_at: float = float("inf")) -> bool:
        """Keep an answer, unless it alone would take a quarter of the room, or was asked for (`asked_at`) before all
        were forgotten. Whether it is kept."""
        self._remove(key)
        if not self.policy.ttl or entry.size > self.policy.max // 4 or asked_at <= self._emptied_at:
            return False
        self._entries[key] = entry
        self._size += entry.size
        self._evict()
        return True

    def empty(self) -> int:
        """Forget all of them, and those that are on their way; how many there were."""
        count = len(self._entries)
        self._entries.clear()
        self._size = 0
        self._emptied_at = self._clock()
        return count

    def reconfigure(self, policy: schema.Cache) -> None:
        """Take another policy; entries that no longer fit in leave at once."""
        self.policy = policy
        if not policy.ttl:
            self._entries.clear()
            self._size = 0
        self._evict()

    def _find(self, key: bytes, age: float) -> CachedResponse | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        old = self._clock() - entry.stored
        # Kept past `ttl`, since it may still be needed when the upstream fails.
        if old >= self.policy.ttl + self.policy.stale_if_error:
            self._remove(key)
            return None
        if old >= age:
            return None
        self._entries.move_to_end(key)
        return entry

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry.size

    def _evict(self) -> None:
        while self._size > self.policy.max and self._entries:
            self._remove(next(iter(self._entries)))


# Two calls are the same if everything is that could change the answer.
# These fields say who asks and how it is traced, and change no answer. All others count.
_NEUTRAL = frozenset(
    (
        "user-agent",
        "traceparent",
        "tracestate",
        "baggage",
        "x-request-id",
        "x-correlation-id",
        "idempotency-key",
        "content-length",
        "date",
        "host",
        "expect",
    )
)
_NEUTRAL_PREFIXES = ("x-stainless-", "x-outrigger-")


def cache_key(
    *, upstream: str, url: str, method: str, headers: Iterable[tuple[str, str]], body: bytes, scope: str
) -> bytes:
    """A digest; keys and cookies are in it, and cannot be had out of it. `url` is where the call goes, as it is sent,
    `headers` what goes along: so another address or account after a reload is another question. `scope` is the user,
    or empty."""
    digest = hashlib.blake2b(digest_size=24)
    parts = [upstream, method, url, scope]
    counted = [(name.lower(), value) for name, value in headers]
    for name, value in sorted(counted):
        if name not in _NEUTRAL and not name.startswith(_NEUTRAL_PREFIXES):
            parts += [name, value]
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        # Lengths go in as well, or two different questions could run together into the same bytes.
        digest.update(len(raw).to_bytes(8, "big") + raw)
    digest.update(b"\xff" * 8 + body)
    return digest.digest()
