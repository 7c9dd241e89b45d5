"""Answers that instances keep for each other, behind the memory of each: those of routes, and those of calls.

A hit in memory never asks the store. A miss asks it once, in one round trip: for the answer, for what emptied it, and
for the right to fill it. What memory keeps is written behind, without anybody waiting.

    KIND:a:KEY    the answer, or the names of what it varies by: then the answer is under another key
    KIND:e:WHAT   when something was emptied that answers belong to
    KIND:f:KEY    the instance that fills it at present
    KIND:z:ZONE   how much of the store the answers of a cache take (cache_zones.py)

An answer counts only if it was asked for after whatever emptied it. The two times are of the store's clock as each
instance knows it, which may be late by the way there; so the time of an answer is set back by CLOCK_MARGIN. What is
fetched within that second may be a miss elsewhere, but none is given that is older than what emptied it.

While the store is away each instance keeps its own answers. What is emptied meanwhile is told when it is back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

from proxy.store.cache_zones import NOTE, zone_keys
from proxy.store.interface import MAX_VALUE_BYTES, SharedStore, StoreAway, WaitBudget
from proxy.util.background_tasks import BackgroundTasks
from proxy.util.compression_steps import compress, decompress

CLOCK_MARGIN = 1_000_000  # microseconds
KEEP_SECONDS = 86_400.0  # the longest that an answer stays in the store, however long it is fresh
FILL_SECONDS = 5.0  # for which the right to fill holds unless it is renewed
RETRY_SECONDS = 0.5  # between two looks at what another instance fills, in case its word is lost
MIN_BUDGET = 0.005  # seconds; with less left of a request's time for the store it is not asked
BEHIND_SECONDS = 2.0  # that a write behind may take
MAX_BEHIND = 200  # writes behind at once; an answer that finds no place stays in memory alone
MAX_UNTOLD = 1000  # what was emptied that the store has not heard of yet
LARGE = 64 * 1024  # bytes of an answer that is compressed if it is text
MAX_PLAIN = 16 * MAX_VALUE_BYTES  # that a compressed answer may come to
VARIES = b"V"  # begins the names that an answer varies by, where an answer begins with a digit

Answer = TypeVar("Answer")
What = Sequence[str | None]  # that is emptied: a list of names, by which each kind of answer knows its own


class SharedAnswers:
    """The answers of one kind. `on_emptied` is called with what another instance emptied; `on_return` is awaited when
    the store is there, the first time or again."""

    def __init__(
        self,
        store: SharedStore,
        kind: str,
        *,
        on_emptied: Callable[[list[Any]], object],
        on_return: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        self._store = store
        self._kind = kind
        self._on_emptied = on_emptied
        self._on_return = on_return
        self._behind = BackgroundTasks()
        self._writes: set[asyncio.Task[None]] = set()  # of answers
        self._awaited: dict[str, asyncio.Future[bool]] = {}  # fills of others; whether the answer is kept
        self._renewals: dict[str, asyncio.TimerHandle] = {}  # of fills of this instance
        self._untold: OrderedDict[str, int] = OrderedDict()  # key and time of what was emptied
        store.subscribe(kind, self._hear)
        store.on_return(self._catch_up)

    def __repr__(self) -> str:
        return f"<SharedAnswers {self._kind}: {len(self._behind)} writes behind, {len(self._untold)} untold>"

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was to be written behind is written, or was given up."""
        return not self._behind

    def close(self) -> None:
        """End the writes behind."""
        for timer in self._renewals.values():
            timer.cancel()
        self._renewals.clear()
        self._behind.cancel()

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    async def find(
        self,
        key: str,
        *,
        emptied: Sequence[What],
        read: Callable[[bytes], Answer | None],
        budget: WaitBudget,
        vary: Callable[[bytes], str | None] = lambda names: None,
        fill: str | None = None,
        patience: float = FILL_SECONDS,
        renews: bool = False,
    ) -> tuple[Answer | None, bool]:
        """What another instance has kept under a key, and whether this one fills it for all: then `end_fill` must
        follow.

        `emptied`: what has to be older than the answer. `read` makes an answer of the bytes that were put, None if it
        is of no use; ValueError says that another version wrote them. `vary`: the key under which an answer stands
        that varies by these names.

        `fill` names what is filled; if another instance does so just now, this waits for it, `patience` seconds at most
        (0: not at all). None: nobody fills it for all. `renews`: the right is held until `end_fill`, however long.
        """
        if budget.left < MIN_BUDGET:
            self._store.count_fallback("cache")
            return None, False
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        try:
            while True:
                ended = self._awaited.setdefault(fill, loop.create_future()) if fill is not None else None
                answer, is_ours = await self._look(key, emptied, read, vary, fill, budget)
                if fill is None or ended is None:
                    return answer, False
                if answer is not None and is_ours:
                    self._run_behind(self._give_back(fill, None))
                if answer is not None or is_ours:
                    if is_ours and answer is None and renews:
                        self._renew_later(fill)
                    return answer, is_ours and answer is None
                left = until - loop.time()
                # Another's word that it is not kept, or no word for long: this instance asks for itself.
                if left <= 0 or not await _wait_kept(ended, min(RETRY_SECONDS, left)):
                    return None, False
        except StoreAway:
            self._store.count_fallback("cache")
            return None, False
        except asyncio.CancelledError:
            # The right may have been given on the way: nobody is to wait for it to end by itself.
            if fill is not None:
                self._run_behind(self._give_back(fill, None))
            raise
        finally:
            if fill is not None:
                self._awaited.pop(fill, None)

    async def _look(
        self,
        key: str,
        emptied: Sequence[What],
        read: Callable[[bytes], Answer | None],
        vary: Callable[[bytes], str | None],
        fill: str | None,
        budget: WaitBudget,
    ) -> tuple[Answer | None, bool]:
        """The answer, and whether the right to fill it is this instance's now. Raises StoreAway."""
        store = self._store
        # All of these go out together, and come back in one round trip.
        found, is_ours, times = await asyncio.gather(
            store.get(self._key("a", key), budget),
            self._take_right(fill, budget),
            asyncio.gather(*(store.get(self._emptied_key(what), budget) for what in emptied)),
        )
        after = max((int(time) for time in times if time), default=0)
        if found is not None and found.startswith(VARIES):
            other = vary(found[len(VARIES) :])
            found = await store.get(self._key("a", other), budget) if other is not None else None
        return await _read_value(found, after, read), is_ours

    async def _take_right(self, fill: str | None, budget: WaitBudget) -> bool:
        if fill is None:
            return False
        return await self._store.add(self._key("f", fill), self._store.instance_id.encode(), FILL_SECONDS, budget)

    async def last_emptied(self, what: What) -> int:
        """When this was emptied, by the store's clock in microseconds; 0 if it was not. Raises StoreAway."""
        return int(await self._store.get(self._emptied_key(what)) or 0)

    # ── writing behind ───────────────────────────────────────────────────────────────────────

    def put(
        self,
        key: str,
        answer: bytes,
        *,
        asked_at: float,
        ttl: float,
        zone: str,
        max_bytes: int,
        is_text: bool,
        names: tuple[str, bytes] | None = None,
    ) -> None:
        """Write an answer behind. `asked_at` is the loop's time at which it was asked for, `ttl` the seconds for which
        it is of use, `max_bytes` what all of its `zone` may take. `names`: the key under which stands what it varies
        by, and that."""
        if not self._store.is_up or len(self._behind) >= MAX_BEHIND or ttl <= 0:
            return
        at = self._store.to_store_time(asked_at) - CLOCK_MARGIN
        write = self._write(key, answer, at, min(ttl, KEEP_SECONDS), (zone, max_bytes), is_text, names)
        task = self._run_behind(write)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(
        self,
        key: str,
        answer: bytes,
        at: int,
        ttl: float,
        zone: tuple[str, int],
        is_text: bool,
        names: tuple[str, bytes] | None,
    ) -> None:
        value = b"%d %s" % (at, answer)
        if is_text and LARGE < len(answer) <= MAX_PLAIN:
            # An instance of a version before this reads no number there, and so takes it for a miss.
            value = b"%dz %s" % (at, await compress(answer))
        if len(value) > min(MAX_VALUE_BYTES, zone[1]):
            return
        store, budget = self._store, WaitBudget(BEHIND_SECONDS)
        name = self._key("a", key)
        writes = [store.set(name, value, ttl, budget)]
        if names is not None:
            writes.append(store.set(self._key("a", names[0]), VARIES + names[1], ttl, budget))
        # First what makes room, then what takes it: the store is never fuller than it may be but for what is under way.
        note = (name, str(len(value)), str(round(ttl * 1000)), str(zone[1]))
        gone, *_ = await asyncio.gather(
            store.execute(NOTE, zone_keys(self._key("z", zone[0])), note, budget),
            *writes,
        )
        if gone:
            await store.delete(*gone)

    def end_fill(self, fill: str, *, kept: bool) -> None:
        """This instance has filled what it had the right to, or will not: the others go on."""
        timer = self._renewals.pop(fill, None)
        if timer is not None:
            timer.cancel()
        self._run_behind(self._give_back(fill, kept, tuple(self._writes)))

    async def _give_back(self, fill: str, kept: bool | None, writes: Sequence[asyncio.Task[None]] = ()) -> None:
        """Let others fill it. `kept` is what they hear of it; None: nothing, since nobody waits."""
        if writes:
            # Behind what was put a moment ago: who looks after this word finds the answer.
            await asyncio.wait(writes)
        await self._store.delete_if(self._key("f", fill), self._store.instance_id.encode())
        if kept is not None:
            self._store.publish(self._kind, {"filled": fill, "kept": kept})

    def _renew_later(self, fill: str) -> None:
        loop = asyncio.get_running_loop()
        self._renewals[fill] = loop.call_later(FILL_SECONDS / 2, self._renew, fill)

    def _renew(self, fill: str) -> None:
        mine = self._store.instance_id.encode()
        self._run_behind(self._store.set(self._key("f", fill), mine, FILL_SECONDS, WaitBudget(BEHIND_SECONDS)))
        self._renew_later(fill)

    def empty(self, what: What) -> None:
        """Tell the store and the others that this was emptied."""
        key, now = self._emptied_key(what), self._store.to_store_time(asyncio.get_running_loop().time())
        self._untold.pop(key, None)
        self._untold[key] = now
        if len(self._untold) > MAX_UNTOLD:
            self._untold.popitem(last=False)
        self._store.publish(self._kind, {"emptied": list(what)})
        self._run_behind(self._tell(key, now))

    async def _tell(self, key: str, at: int) -> None:
        # Longer than any answer stays.
        await self._store.set(key, b"%d" % at, KEEP_SECONDS + 60.0, WaitBudget(BEHIND_SECONDS))
        if self._untold.get(key) == at:
            del self._untold[key]

    def _run_behind(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._behind.start(_ignore_absence(work))

    def _key(self, what: str, name: str) -> str:
        return f"{self._kind}:{what}:{name}"

    def _emptied_key(self, what: What) -> str:
        # Paths are as long as clients like, and keys are not.
        text = "".join("-" if part is None else f"{len(part)}:{part}" for part in what)
        return self._key("e", digest_of(text))

    # ── what others say ──────────────────────────────────────────────────────────────────────

    def _hear(self, message: Mapping[str, Any]) -> None:
        emptied = message.get("emptied")
        if isinstance(emptied, list):
            self._on_emptied(emptied)
        waiting = self._awaited.get(str(message.get("filled")))
        if waiting is not None and not waiting.done():
            waiting.set_result(bool(message.get("kept")))

    async def _catch_up(self) -> None:
        """The store is there, or there again: it hears what was emptied, and memory what others emptied."""
        await self._on_return()
        for key, at in list(self._untold.items()):
            await self._tell(key, at)


def digest_of(text: str) -> str:
    """A name of any length as a part of a key."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


async def _read_value(data: bytes | None, after: int, read: Callable[[bytes], Answer | None]) -> Answer | None:
    """The answer in a value, if it was asked for after `after` (microseconds)."""
    if data is None or data.startswith(VARIES):
        return None
    asked_at, _, rest = data.partition(b" ")
    is_compressed = asked_at.endswith(b"z")
    try:
        if int(asked_at.removesuffix(b"z")) <= after:
            return None
        return read(await decompress(rest, MAX_PLAIN) if is_compressed else rest)
    except ValueError:
        return None  # of another version of this program


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
