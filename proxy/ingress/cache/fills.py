"""One request at a time fills an entry; the others wait for it (request coalescing; nginx's `proxy_cache_lock`).

    state     event                                              next state; those who wait
    filling   the head says that it is not kept                  over; all go on to the app at once
    filling   the whole answer is kept                           over; all look again, and find it
    filling   the app failed, and a stale answer may stand in    over; all look again, and take that
    filling   the answer breaks off, or the client leaves        filling: the longest waiting takes over

A key whose answers turn out not to be kept is remembered for a while (Varnish's hit-for-miss): the next requests for it
do not wait for each other only to learn that again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum

UNKEPT_SECONDS = 60.0  # for which a key is known as one whose answers are not kept
MAX_UNKEPT = 10_000  # keys that are known so


class Outcome(Enum):
    """What somebody who waited does now."""

    LOOK_AGAIN = "look again"
    STAND_IN = "look again, and take a stale answer rather than ask the app"
    GO_ON = "ask the app, without waiting for anybody"
    TAKE_OVER = "ask the app for all the others"


class Fill:
    """An entry that somebody fills, and those who wait for it. `is_shared`: other instances wait for it too."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.is_shared = False
        self._waiters: deque[asyncio.Future[Outcome]] = deque()

    def join(self) -> asyncio.Future[Outcome]:
        """A place among those who wait for it."""
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def leave(self, waiter: asyncio.Future[Outcome]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def release(self, outcome: Outcome) -> None:
        """Tell all who wait."""
        while self._waiters:
            self._tell(outcome)

    def hand_over(self) -> bool:
        """Let the one that has waited for longest take over. False if nobody waits."""
        return any(self._tell(Outcome.TAKE_OVER) for _ in range(len(self._waiters)))

    def _tell(self, outcome: Outcome) -> bool:
        waiter = self._waiters.popleft()
        if waiter.done():
            return False
        waiter.set_result(outcome)
        return True


class Fills:
    """The fills of one route under way, and the keys whose answers are not kept.

    `on_shared_end` is called with the key of a fill that other instances wait for when it is over, and whether its
    answer is kept.
    """

    def __init__(self, clock: Callable[[], float], on_shared_end: Callable[[bytes, bool], None] | None = None) -> None:
        self._clock = clock
        self._on_shared_end = on_shared_end
        self._fills: dict[bytes, Fill] = {}
        self._unkept: OrderedDict[bytes, float] = OrderedDict()  # until when, on the clock

    def __len__(self) -> int:
        return len(self._fills)

    def get(self, key: bytes) -> Fill | None:
        return self._fills.get(key)

    def begin(self, key: bytes) -> Fill:
        fill = self._fills[key] = Fill(key)
        return fill

    async def wait(self, fill: Fill) -> Outcome:
        """Wait for what becomes of a fill."""
        waiter = fill.join()
        try:
            return await waiter
        except asyncio.CancelledError:
            # It was just given the duty, and leaves: somebody else gets it.
            if waiter.done() and not waiter.cancelled() and waiter.result() is Outcome.TAKE_OVER:
                self.abandon(fill)
            raise
        finally:
            fill.leave(waiter)

    def end(self, fill: Fill, outcome: Outcome) -> None:
        """It is over: whoever waits does as `outcome` says, and the next request begins anew."""
        if self._fills.get(fill.key) is fill:
            del self._fills[fill.key]
        if fill.is_shared and self._on_shared_end is not None:
            self._on_shared_end(fill.key, outcome is Outcome.LOOK_AGAIN)
        fill.release(outcome)

    def abandon(self, fill: Fill) -> None:
        """It broke off: somebody who waits takes over, or else it is over."""
        if not fill.hand_over():
            self.end(fill, Outcome.GO_ON)

    def is_unkept(self, key: bytes) -> bool:
        """Whether answers under this key were not kept when last seen."""
        until = self._unkept.get(key)
        return until is not None and until > self._clock()

    def note_unkept(self, key: bytes) -> None:
        self._unkept.pop(key, None)
        self._unkept[key] = self._clock() + UNKEPT_SECONDS
        if len(self._unkept) > MAX_UNKEPT:
            self._unkept.popitem(last=False)

    def note_kept(self, key: bytes) -> None:
        self._unkept.pop(key, None)
