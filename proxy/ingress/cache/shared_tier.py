"""A second tier of kept answers, behind the memory of each instance: in the store that instances share.

How it is asked, filled by one for all, and emptied is in proxy/store/shared_answers.py. Here is what an answer of a
route is: what it varies by, and what empties it.

    cache:a:KEY           the answer, or the names in its Vary: then the answer is at cache:a:KEY:VALUES
    cache:e:WHAT          when a path, a route's path or a route was emptied

While the store is away each instance keeps its own answers. When it is back they are forgotten, since what others have
emptied meanwhile may never be heard of; those that were written are still in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from proxy.ingress.cache.stored_response import PLAIN, StoredResponse
from proxy.store.interface import SharedStore, WaitBudget
from proxy.store.shared_answers import SharedAnswers, digest_of

KIND = "cache"

ReadVarying = Callable[[bytes], tuple[tuple[str, str | None], ...] | None]
Empty = Callable[[str | None, str | None, str | None], object]


class StoreTier:
    """The second tier (`SharedTier` of response_cache.py) over a store.

    `empty` forgets what is in memory, by route, path and host. `can_decode` says whether a coding can be undone here.
    """

    def __init__(self, store: SharedStore, *, empty: Empty, can_decode: Callable[[str], bool]) -> None:
        self._empty = empty
        self._can_decode = can_decode
        self._has_been_up = False
        self.answers = SharedAnswers(store, KIND, on_emptied=self._hear_emptied, on_return=self._forget_memory)

    def close(self) -> None:
        """End the writes behind."""
        self.answers.close()

    async def get(
        self,
        key: bytes,
        fill_key: bytes,
        *,
        route: str,
        host: str,
        path: str,
        read_varying: ReadVarying,
        budget: WaitBudget,
    ) -> tuple[StoredResponse | None, bool]:
        """What another instance has kept under a key, and whether this one fills it for all: then `end_fill` must
        follow. If another one fills it just now, this waits for that.
        """

        def read(data: bytes) -> StoredResponse | None:
            entry = StoredResponse.from_bytes(data, key, host, path)
            return entry if all(self._can_decode(coding) for coding in entry.bodies) else None

        def vary(names: bytes) -> str | None:
            varying = read_varying(names)
            return None if varying is None else _answer_key(key, varying)

        return await self.answers.find(
            _answer_key(key),
            emptied=((None, path, host), (route, path, None), (route, None, None)),
            read=read,
            vary=vary,
            fill=fill_key.hex(),
            budget=budget,
        )

    def put(self, entry: StoredResponse, *, route: str, max_bytes: int, asked_at: float, ttl: float) -> None:
        """Write an answer behind. `asked_at` is the loop's time at which the app was asked, `ttl` the seconds for which
        it is of use, `max_bytes` what all answers of the route may take in the store."""
        if not entry.bodies:
            return
        names = None
        if entry.vary:
            names = (_answer_key(entry.key), ",".join(name for name, _ in entry.vary).encode("latin-1"))
        self.answers.put(
            _answer_key(entry.key, entry.vary),
            entry.to_bytes(),
            asked_at=asked_at,
            ttl=ttl,
            zone=route,
            max_bytes=max_bytes,
            is_text=entry.is_text and PLAIN in entry.bodies,
            names=names,
        )

    def end_fill(self, fill_key: bytes, *, kept: bool) -> None:
        """This instance has filled what it had the right to, or will not: the others go on."""
        self.answers.end_fill(fill_key.hex(), kept=kept)

    def empty(self, route: str | None, path: str | None, host: str | None) -> None:
        """Tell the store and the others what was emptied; None stands for every route, path, host."""
        self.answers.empty((route, path, host))

    def _hear_emptied(self, what: list[Any]) -> None:
        if len(what) == 3:
            self._empty(*what)

    async def _forget_memory(self) -> None:
        """The store is there, or there again: memory forgets what others may have emptied meanwhile."""
        if self._has_been_up:
            self._empty(None, None, None)
        self._has_been_up = True


def _answer_key(key: bytes, varying: Iterable[tuple[str, str | None]] = ()) -> str:
    values = "".join(
        f"{len(name)}:{name}{'-' if value is None else len(value)}:{value or ''}" for name, value in varying
    )
    return key.hex() + (f":{digest_of(values)}" if values else "")
