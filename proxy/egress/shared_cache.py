"""The second tier of the calls' cache, behind the memory of each instance: in the store that instances share.

How it is asked, filled by one for all, and emptied is in proxy/store/shared_answers.py. Here is what an answer of a
call is. Its key is the digest of cache.py, so neither question, user nor key can be read in the store.

    calls:a:KEY    the answer
    calls:e:WHAT   when an operator emptied an upstream's answers
    calls:f:KEY    the instance that makes the call at present, if calls are shared (`coalesce`)

A call waits for the store `store.timeout` at most in all, half of it here, since a slice of a cap may be needed later;
and for another instance's call FILL_PATIENCE at most. One that streams does not wait for another instance, whose answer
it would get only when that is whole.

While the store is away each instance keeps its own answers, also when it is back: they cost money. Only what an
operator emptied meanwhile is forgotten then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from proxy.egress.cache import CachedResponse
from proxy.store.interface import SharedStore, WaitBudget
from proxy.store.shared_answers import SharedAnswers
from proxy.util.json_bytes import json_bytes

if TYPE_CHECKING:
    from proxy.egress.call import Call
    from proxy.egress.upstream import Upstream

KIND = "calls"
FILL_PATIENCE = 60.0  # seconds
WAIT_SHARE = 0.5  # of `store.timeout`


class SharedCallCache:
    """`upstreams` are those of the policy in force, by name; `clock` is the loop's."""

    def __init__(self, store: SharedStore, upstreams: Mapping[str, Upstream], clock: Callable[[], float]) -> None:
        self._store = store
        self._upstreams = upstreams
        self._clock = clock
        self._emptied: dict[str, int] = {}  # upstream → until when all is known that was emptied, by the store's clock
        self.answers = SharedAnswers(store, KIND, on_emptied=self._hear_emptied, on_return=self._catch_up)

    def close(self) -> None:
        """End the writes behind."""
        self.answers.close()

    async def find(self, call: Call, key: bytes, *, fills: bool = False) -> tuple[CachedResponse | None, bool]:
        """The answer that another instance has kept, which is kept here too from now on; and whether this call is the
        one that others wait for: then `end_fill` must follow. `fills`: calls are shared.

        One that is stale is kept here as well, for a call that fails, and is not returned.
        """
        cache = call.upstream.cache

        def read(data: bytes) -> CachedResponse | None:
            cache.put(key, self._unpack(data))
            return cache.get(key)

        budget = WaitBudget(self._store.policy.timeout * WAIT_SHARE)
        allowed = budget.left
        try:
            return await self.answers.find(
                key.hex(),
                emptied=((call.upstream.name,),),
                read=read,
                fill=key.hex() if fills else None,
                patience=0.0 if call.ask.stream else FILL_PATIENCE,
                renews=True,
                budget=budget,
            )
        finally:
            call.store_seconds += allowed - budget.left

    def put(self, upstream: Upstream, key: bytes, entry: CachedResponse, *, asked_at: float) -> None:
        """Write an answer behind, of a call that began at `asked_at`."""
        policy = upstream.policy.cache
        self.answers.put(
            key.hex(),
            self._pack(entry),
            asked_at=asked_at,
            ttl=policy.ttl + policy.stale_if_error,
            zone=upstream.name,
            max_bytes=policy.max,
            is_text=_is_text(entry),
        )

    def end_fill(self, key: bytes, *, kept: bool) -> None:
        """The call that others wait for is over."""
        self.answers.end_fill(key.hex(), kept=kept)

    def empty(self, upstream: str) -> None:
        """Tell the store and the others that this upstream's answers were emptied."""
        self._emptied[upstream] = self._store.to_store_time(self._clock())
        self.answers.empty((upstream,))

    def _hear_emptied(self, what: list[Any]) -> None:
        upstream = self._upstreams.get(str(what[0])) if what else None
        if upstream is not None:
            upstream.cache.empty()
            self._emptied[upstream.name] = self._store.to_store_time(self._clock())

    async def _catch_up(self) -> None:
        for name, upstream in list(self._upstreams.items()):
            at = await self.answers.last_emptied((name,))
            if at > self._emptied.get(name, 0):
                upstream.cache.empty()
                self._emptied[name] = at

    def _pack(self, entry: CachedResponse) -> bytes:
        head = {
            "status": entry.status,
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in entry.headers],
            "stored": self._store.to_store_time(entry.stored),
        }
        return json_bytes(head) + b"\n" + entry.body

    def _unpack(self, data: bytes) -> CachedResponse:
        """Raises ValueError if it is none, or of another version."""
        text, _, body = data.partition(b"\n")
        now = self._clock()
        try:
            head = json.loads(text)
            headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"])
            age = max(0.0, (self._store.to_store_time(now) - head["stored"]) / 1e6)
            return CachedResponse(int(head["status"]), headers, body, now - age)
        except (KeyError, TypeError, AttributeError, UnicodeError) as error:
            raise ValueError(f"not an answer that is kept: {error}") from None


def _is_text(entry: CachedResponse) -> bool:
    """Whether it is worth compressing: text, and not compressed by the vendor."""
    found = {name.lower(): value.lower() for name, value in entry.headers}
    kind = found.get(b"content-type", b"")
    return b"content-encoding" not in found and kind.startswith((b"text/", b"application/json"))
