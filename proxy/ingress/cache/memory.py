"""Kept answers in memory: those of one route, bounded by bytes.

Several answers may stand under one key, one for each set of values of the fields that their Vary names (RFC 9111
section 4.1). When room is needed, those that came or were confirmed first leave first: in a cache of answers with
lifetimes they are those that are stale soonest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from proxy.ingress.cache.stored_response import StoredResponse

MAX_VARIANTS = 32  # answers under one key


class RouteMemory:
    """The answers of one route. `max_bytes` bounds them together; one may take a quarter of it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self._by_key: dict[bytes, list[StoredResponse]] = {}
        self._by_path: dict[str, set[bytes]] = {}
        self._by_age: OrderedDict[int, StoredResponse] = OrderedDict()  # by the entry's id()

    def __len__(self) -> int:
        return len(self._by_age)

    def __repr__(self) -> str:
        return f"<RouteMemory {len(self)} answers, {self.size} of {self.max_bytes} bytes>"

    @property
    def max_entry(self) -> int:
        return self.max_bytes // 4

    def variants(self, key: bytes) -> Sequence[StoredResponse]:
        """The answers under a key, the newest first."""
        found = self._by_key.get(key)
        return found[::-1] if found else ()

    def put(self, entry: StoredResponse) -> bool:
        """Keep an answer in place of an older one to the same request. False if it is too large."""
        self.remove(entry)
        variants = self._by_key.setdefault(entry.key, [])
        for other in [one for one in variants if one.vary == entry.vary]:
            self.remove(other)
        if entry.size > self.max_entry:
            self._forget_key_if_empty(entry)
            return False
        variants = self._by_key.setdefault(entry.key, [])
        if len(variants) >= MAX_VARIANTS:
            self.remove(variants[0])
        self._by_key.setdefault(entry.key, []).append(entry)
        self._by_path.setdefault(entry.path, set()).add(entry.key)
        self._by_age[id(entry)] = entry
        self.size += entry.size
        self._evict()
        return True

    def resize(self, entry: StoredResponse) -> None:
        """An answer that is kept got another coding: count it anew."""
        if id(entry) in self._by_age:
            before = entry.size
            entry.measure()
            self.size += entry.size - before
            self._evict()

    def remove(self, entry: StoredResponse) -> None:
        if self._by_age.pop(id(entry), None) is None:
            return
        self.size -= entry.size
        self._by_key[entry.key].remove(entry)
        self._forget_key_if_empty(entry)

    def _forget_key_if_empty(self, entry: StoredResponse) -> None:
        if self._by_key.get(entry.key):
            return
        self._by_key.pop(entry.key, None)
        keys = self._by_path.get(entry.path)
        if keys is not None:
            keys.discard(entry.key)
            if not keys:
                del self._by_path[entry.path]

    def remove_path(self, path: str, host: str | None = None) -> int:
        """Empty a path, whatever the query, the variant and the user; of every host if none is given. How many there
        were."""
        found = [entry for key in self._by_path.get(path, ()) for entry in self._by_key[key]]
        gone = [entry for entry in found if host is None or entry.host == host]
        for entry in gone:
            self.remove(entry)
        return len(gone)

    def clear(self) -> int:
        """Empty it; how many answers there were."""
        count = len(self._by_age)
        self._by_key.clear()
        self._by_path.clear()
        self._by_age.clear()
        self.size = 0
        return count

    def set_max(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        for entry in [one for one in self._by_age.values() if one.size > self.max_entry]:
            self.remove(entry)
        self._evict()

    def sweep(self, is_useless: Callable[[StoredResponse], bool]) -> None:
        """Remove what can never be used again."""
        for entry in [one for one in self._by_age.values() if is_useless(one)]:
            self.remove(entry)

    def _evict(self) -> None:
        for entry in self._oldest_first():
            if self.size <= self.max_bytes:
                return
            self.remove(entry)

    def _oldest_first(self) -> Iterator[StoredResponse]:
        while self._by_age:
            yield next(iter(self._by_age.values()))
