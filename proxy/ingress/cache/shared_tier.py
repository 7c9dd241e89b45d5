"""A second tier of kept answers, behind the memory of each instance: in the store that instances share.

A hit in memory never asks the store. A miss asks it once, in one round trip: for the answer, for what emptied its URI,
and for the right to fill it. What memory keeps is written behind, without anybody waiting.

    cache:a:KEY        the answer, or the names in its Vary: then the answer is at cache:a:KEY:VALUES
    cache:e:WHAT       when a path, a route's path or a route was emptied
    cache:f:KEY        the instance that fills it at present

An answer counts only if it was asked for after whatever emptied its URI. The two times are of the store's clock as each
instance knows it, which may be late by the way there; so the time of an answer is set back by CLOCK_MARGIN. What is
fetched within that second may be a miss elsewhere, but none is given that is older than what emptied it.

While the store is away each instance keeps its own answers. When it is back they are forgotten, since what others have
emptied meanwhile may never be heard of; those that were written are still in the store.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from hashlib import blake2b
from typing import Any

from proxy.ingress.cache.stored_response import MAX_STALE_SECONDS, StoredResponse
from proxy.store.interface import MAX_VALUE_BYTES, SharedStore, StoreAway, WaitBudget
from proxy.util.background_tasks import BackgroundTasks

TOPIC = "cache"
CLOCK_MARGIN = 1_000_000  # microseconds
KEEP_SECONDS = MAX_STALE_SECONDS  # the longest that an answer stays in the store, however long it is fresh
FILL_SECONDS = 5.0  # for which another instance is waited for; a fill that takes longer is made by each
RETRY_SECONDS = 0.5  # between two looks at what another instance fills, in case its word is lost
MIN_BUDGET = 0.005  # seconds; with less left of a request's time for the store it is not asked
BEHIND_SECONDS = 2.0  # that a write behind may take
MAX_BEHIND = 200  # writes behind at once; an answer that finds no place stays in memory alone
MAX_UNTOLD = 1000  # emptied URIs that the store has not heard of yet
VARIES = b"V"  # begins the names of a Vary, where an answer begins with a digit

ReadVarying = Callable[[bytes], tuple[tuple[str, str | None], ...] | None]
Empty = Callable[[str | None, str | None, str | None], object]


class StoreTier:
    """The second tier (`SharedTier` of response_cache.py) over a store.

    `empty` forgets what is in memory, by route, path and host. `can_decode` says whether a coding can be undone here.
    """

    def __init__(self, store: SharedStore, *, empty: Empty, can_decode: Callable[[str], bool]) -> None:
        self._store = store
        self._empty = empty
        self._can_decode = can_decode
        self._behind = BackgroundTasks()
        self._awaited: dict[str, asyncio.Future[bool]] = {}  # fills of others; whether the answer is kept
        self._untold: OrderedDict[str, int] = OrderedDict()  # key and time of what was emptied
        self._has_been_up = False
        store.subscribe(TOPIC, self._hear)
        store.on_return(self._catch_up)

    def close(self) -> None:
        """End the writes behind."""
        self._behind.cancel()

    # ── reading ──────────────────────────────────────────────────────────────────────────────

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
        name = fill_key.hex()
        loop = asyncio.get_running_loop()
        until = loop.time() + FILL_SECONDS
        if budget.left < MIN_BUDGET:
            self._store.count_fallback("cache")
            return None, False
        try:
            while True:
                ended = self._awaited.setdefault(name, loop.create_future())
                entry, is_ours = await self._look(key, name, route, host, path, read_varying, budget)
                if entry is not None and is_ours:
                    self._run_behind(self._give_back(name, None))
                if entry is not None or is_ours:
                    return entry, is_ours and entry is None
                left = until - loop.time()
                # Another's word that it is not kept, or no word for long: this instance asks for itself.
                if left <= 0 or not await _wait_kept(ended, min(RETRY_SECONDS, left)):
                    return None, False
        except StoreAway:
            self._store.count_fallback("cache")
            return None, False
        finally:
            self._awaited.pop(name, None)

    async def _look(
        self, key: bytes, name: str, route: str, host: str, path: str, read_varying: ReadVarying, budget: WaitBudget
    ) -> tuple[StoredResponse | None, bool]:
        """The answer, and whether the right to fill it is this instance's now. Raises StoreAway."""
        store = self._store
        emptied = [_emptied_key(*what) for what in ((None, path, host), (route, path, None), (route, None, None))]
        # All of these go out together, and come back in one round trip.
        is_ours, found, times = await asyncio.gather(
            store.add(f"cache:f:{name}", store.instance_id.encode(), FILL_SECONDS, budget),
            store.get(_answer_key(key), budget),
            asyncio.gather(*(store.get(one, budget) for one in emptied)),
        )
        after = max((int(time) for time in times if time), default=0)
        entry = self._read(found, after, key, host, path)
        if entry is None and found is not None and found.startswith(VARIES):
            varying = read_varying(found[1:])
            if varying is not None:
                entry = self._read(await store.get(_answer_key(key, varying), budget), after, key, host, path)
        return entry, is_ours

    def _read(self, data: bytes | None, after: int, key: bytes, host: str, path: str) -> StoredResponse | None:
        """The answer in a value, if it was asked for after `after` (microseconds)."""
        if data is None or data.startswith(VARIES):
            return None
        asked_at, _, rest = data.partition(b" ")
        try:
            if int(asked_at) <= after:
                return None
            entry = StoredResponse.from_bytes(rest, key, host, path)
        except ValueError:
            return None  # of another version of this program
        return entry if all(self._can_decode(coding) for coding in entry.bodies) else None

    # ── writing behind ───────────────────────────────────────────────────────────────────────

    def put(self, entry: StoredResponse, *, asked_at: float, ttl: float) -> None:
        """Write an answer behind. `asked_at` is the loop's time at which the app was asked, `ttl` the seconds for which
        it is of use."""
        if not entry.bodies or not self._store.is_up or len(self._behind) >= MAX_BEHIND:
            return
        at = self._store.to_store_time(asked_at) - CLOCK_MARGIN
        data = b"%d %s" % (at, entry.to_bytes())
        if len(data) <= MAX_VALUE_BYTES:
            self._run_behind(self._write(entry, data, min(ttl, KEEP_SECONDS)))

    async def _write(self, entry: StoredResponse, data: bytes, ttl: float) -> None:
        budget = WaitBudget(BEHIND_SECONDS)
        if entry.vary:
            names = ",".join(name for name, _ in entry.vary).encode("latin-1")
            await asyncio.gather(
                self._store.set(_answer_key(entry.key), VARIES + names, ttl, budget),
                self._store.set(_answer_key(entry.key, entry.vary), data, ttl, budget),
            )
        else:
            await self._store.set(_answer_key(entry.key), data, ttl, budget)

    def end_fill(self, fill_key: bytes, *, kept: bool) -> None:
        """This instance has filled what it had the right to, or will not: the others go on."""
        name = fill_key.hex()
        # Behind what was written a moment ago: who looks after this word finds the answer.
        self._run_behind(self._give_back(name, kept))

    async def _give_back(self, name: str, kept: bool | None) -> None:
        """Let others fill it. `kept` is what they hear of it; None: nothing, since nobody waits."""
        await self._store.delete_if(f"cache:f:{name}", self._store.instance_id.encode())
        if kept is not None:
            self._store.publish(TOPIC, {"filled": name, "kept": kept})

    def empty(self, route: str | None, path: str | None, host: str | None) -> None:
        """Tell the store and the others what was emptied; None stands for every route, path, host."""
        key, now = _emptied_key(route, path, host), self._store.to_store_time(asyncio.get_running_loop().time())
        self._untold.pop(key, None)
        self._untold[key] = now
        if len(self._untold) > MAX_UNTOLD:
            self._untold.popitem(last=False)
        self._store.publish(TOPIC, {"emptied": [route, path, host]})
        self._run_behind(self._tell(key, now))

    async def _tell(self, key: str, at: int) -> None:
        # Longer than any answer stays.
        await self._store.set(key, b"%d" % at, KEEP_SECONDS + 60.0, WaitBudget(BEHIND_SECONDS))
        if self._untold.get(key) == at:
            del self._untold[key]

    def _run_behind(self, work: Coroutine[None, None, None]) -> None:
        self._behind.start(_ignore_absence(work))

    # ── what others say ──────────────────────────────────────────────────────────────────────

    def _hear(self, message: Mapping[str, Any]) -> None:
        emptied = message.get("emptied")
        if isinstance(emptied, list) and len(emptied) == 3:
            self._empty(*emptied)
        waiting = self._awaited.get(str(message.get("filled")))
        if waiting is not None and not waiting.done():
            waiting.set_result(bool(message.get("kept")))

    async def _catch_up(self) -> None:
        """The store is there, or there again: it hears what was emptied, and memory forgets what others may have."""
        if self._has_been_up:
            self._empty(None, None, None)
        self._has_been_up = True
        for key, at in list(self._untold.items()):
            await self._tell(key, at)


async def _wait_kept(ended: asyncio.Future[bool], seconds: float) -> bool:
    """Whether it is worth looking again: another instance said that it is kept, or nothing for this long."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(ended)
    except TimeoutError:
        return True


async def _ignore_absence(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except StoreAway:
        pass  # the answer stays in memory; what was emptied is told when the store is back


def _answer_key(key: bytes, varying: Iterable[tuple[str, str | None]] = ()) -> str:
    values = "".join(
        f"{len(name)}:{name}{'-' if value is None else len(value)}:{value or ''}" for name, value in varying
    )
    return f"cache:a:{key.hex()}" + (f":{_digest(values)}" if values else "")


def _emptied_key(route: str | None, path: str | None, host: str | None) -> str:
    """Paths are as long as clients like, and keys are not."""
    return "cache:e:" + _digest("".join("-" if part is None else f"{len(part)}:{part}" for part in (route, path, host)))


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
