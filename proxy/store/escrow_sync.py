"""The slices of one instance: told and renewed in the background, and waited for only by a call that has none.

Every TICK_SECONDS (LARGE_TICK_SECONDS) what changed goes to the store in batches, so that what was settled and what is
open is there within a second. A call whose slice is used up asks at once; calls that wait for the same window ask with
one update. Nobody else is held up: while a batch is on its way another may follow, for other windows.

While the store is away nobody waits for it: a try in the background every AWAY_TICK_SECONDS tells when it is back, and
until then `store.on_error` says what calls may do:

| on_error | a call may spend                                      |
|----------|-------------------------------------------------------|
| share    | what was set aside before, while its lease lasts      |
| local    | up to the whole cap, as far as this instance knows it |
| deny     | nothing                                               |

For the loop's thread alone. Money is in whole nano-dollars (1e-9 $), times are a monotonic clock's seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from proxy.errors import OutriggerError
from proxy.store.escrow import EscrowWindow, WindowCounts
from proxy.store.money import MoneyStore, MoneyUnavailable, Seed, Sender, SyncAnswer, WindowName, WindowUpdate
from proxy.util.background_tasks import BackgroundTasks

TICK_SECONDS = 0.4  # between batches
LARGE_TICK_SECONDS = 0.7  # while more windows are in use than one batch has: telling one costs 10 µs
TIGHT_TICK_SECONDS = 0.1  # while a cap is nearly spent
AWAY_TICK_SECONDS = 0.7  # between tries while the store is away
MAX_BATCH = 100  # windows in one update
MAX_UNDER_WAY = 4  # batches
SEED_SECONDS = 1.0  # that a call waits for the ledger's word on a window
SEED_RETRY_SECONDS = 2.0  # for which a ledger that did not answer is not asked again
# Seconds before a call asks again for what others have set aside: doubled each time; the last, in which it is answered.
FIRST_PAUSE, MAX_PAUSE, LAST_PAUSE = 0.01, 0.05, 0.02
PRUNE_SECONDS = 60.0  # between looks for windows that have ended
CLOSE_SECONDS = 2.0  # that the end of an instance waits until its slices are given back

OnError = Literal["share", "local", "deny"]


class SliceRefused(OutriggerError):
    """No slice was to be had: the cap has no room for it. `window` says which."""

    def __init__(self, window: EscrowWindow, *, away: bool = False) -> None:
        super().__init__("what this instance has set aside is used up, and the store is away" if away else "no room")
        self.window = window
        self.away = away


class SeedSource(Protocol):
    """What the ledger has of a window. `shares` is whether it has the calls of all instances."""

    shares: bool

    async def read_seed(self, name: WindowName, without: frozenset[str]) -> Seed:
        """Raises MoneyUnavailable."""
        ...


class Escrow:
    """The windows of one instance.

    `timeout` is how long a call waits for the store in all; `ratio` the size of a slice in millionths of what is left;
    `on_error` what holds while the store is away. A reload may change all three. `away_because` is None while the store
    answers. `on_wait` is told how often a call could not have what it asked for without the store (for the metric).
    """

    def __init__(
        self,
        store: MoneyStore,
        instance: str,
        *,
        clock: Callable[[], float],
        now: Callable[[], float] = time.time,
        seeds: SeedSource | None = None,
        timeout: float = 0.25,
        ratio: int = 20_000,
        on_error: OnError = "share",
        on_fallback: Callable[[], None] = lambda: None,
        on_change: Callable[[str | None], None] = lambda why: None,
    ) -> None:
        self._store = store
        self._instance = instance
        self._clock = clock
        self._now = now
        self._seeds = seeds
        self.timeout = timeout
        self.ratio = ratio
        self.on_error: OnError = on_error
        self._on_fallback = on_fallback
        self._on_change = on_change
        self.windows: dict[str, EscrowWindow] = {}
        self.away_because: str | None = None
        self._active: dict[EscrowWindow, None] = {}  # used lately, or not settled
        self._urgent: dict[EscrowWindow, None] = {}  # of those, what the next batch is about
        self._number = 0
        self._acknowledged = 0
        self._epoch = 0
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False  # a batch leaves at the end of this turn
        self._seed_pauses_until = float("-inf")
        self._seeding: dict[EscrowWindow, asyncio.Task[None]] = {}
        self._pruned_at = clock()
        self._has_forgotten = False  # a window that has not ended: its sums are in the store alone
        self._closing = False
        self._tasks = BackgroundTasks()

    def __repr__(self) -> str:
        away = f", away: {self.away_because}" if self.away_because is not None else ""
        return f"<Escrow {len(self.windows)} windows, {len(self._active)} active{away}>"

    @property
    def decides_locally(self) -> bool:
        """Whether caps hold by what this instance knows alone."""
        return self.away_because is not None and self.on_error == "local"

    @property
    def refuses(self) -> bool:
        """Whether no call may be made."""
        return self.away_because is not None and self.on_error == "deny"

    @property
    def shares_ledger(self) -> bool:
        return self._seeds is not None and self._seeds.shares

    # ── what calls do ────────────────────────────────────────────────────────────────────────

    def find_window(self, name: WindowName) -> EscrowWindow | None:
        """The window of this name, if there is one."""
        return self.windows.get(name.key())

    def open_window(self, name: WindowName, counts: WindowCounts, limit: int | None) -> EscrowWindow:
        """The window of this name, counted from now on by `counts`."""
        window = EscrowWindow(name, counts, limit, self._clock())
        self.windows[window.key] = window
        return window

    def forget_window(self, window: EscrowWindow) -> None:
        self.windows.pop(window.key, None)
        self._active.pop(window, None)
        self._urgent.pop(window, None)
        self._has_forgotten = self._has_forgotten or window.name.end > self._now()

    def note_use(self, windows: Iterable[EscrowWindow], amount: int) -> None:
        """A call reserved this much in these windows."""
        now, active = self._clock(), self._active
        for window in windows:
            active[window] = None
            if window.note_use(amount, now) and self.away_because is None:
                self._ask_soon(window)
        if self._timer is None:
            self._start_timer()

    def touch_all(self, windows: Iterable[EscrowWindow]) -> None:
        """Something was settled or released in these windows: the store is to know, within a second."""
        active = self._active
        for window in windows:
            active[window] = None
            # While a cap is nearly spent, others may lack what was released here.
            if window.is_tight and self.away_because is None:
                self._ask_soon(window)
        if self._timer is None:
            self._start_timer()

    def count_fallback(self) -> None:
        """Count a decision that was made by what this instance knows alone."""
        self._on_fallback()

    def deadline(self) -> float:
        """Until when a call may wait that begins to wait now."""
        return self._clock() + self.timeout

    def is_settled(self, window: EscrowWindow) -> bool:
        """Whether the store knows all of it, and nothing is set aside."""
        return window.is_settled(self._clock())

    def touch(self, window: EscrowWindow) -> None:
        """Something of this window changed: the store is to know, within a second."""
        self._active[window] = None
        if (window.is_low or window.is_tight) and not window.is_on_its_way and self.away_because is None:
            self._ask_soon(window)
        if self._timer is None:
            self._start_timer()

    def covers_all(self, windows: Iterable[EscrowWindow], amount: int) -> bool:
        """Whether a call of this much needs to ask for none of these windows."""
        now = self._clock()
        for window in windows:
            if not window.covers(amount, now):
                return False
        return not self.refuses

    def covers(self, window: EscrowWindow, amount: int) -> bool:
        return window.covers(amount, self._clock()) and not self.refuses

    async def acquire(self, windows: Iterable[EscrowWindow], amount: int, deadline: float) -> float:
        """Wait until there is a slice for this much in all of these windows; then it is worth to try again.

        `deadline` is by the clock; waiting for the ledger moves it, and the newer one is returned. Raises SliceRefused
        if a cap has no room, or there is no slice and the store is away; MoneyUnavailable with `on_error: deny`.
        """
        asked = list(windows)
        for window in asked:
            window.acquiring.append(amount)
        try:
            return await self._acquire_all(asked, amount, deadline)
        finally:
            for window in asked:
                window.acquiring.remove(amount)
                self.touch(window)

    async def _acquire_all(self, asked: Sequence[EscrowWindow], amount: int, deadline: float) -> float:
        pause = FIRST_PAUSE
        while lacking := [window for window in asked if not self.covers(window, amount)]:
            left = deadline - self._clock()
            if self.away_because is not None:
                self._refuse_without_store(lacking[0])
                return deadline
            if left <= 0:
                raise SliceRefused(lacking[0])
            if not await self._ask(lacking, amount, left):
                # What is left after several answers says nothing of the store.
                if self.away_because is None and left < self.timeout / 2:
                    raise SliceRefused(lacking[0])
                self._refuse_without_store(lacking[0])
                return deadline
            deadline += await self._wait_for_seeds(lacking)
            if self._must_wait(lacking, amount):
                # Others have it set aside and give it back, or the store is recovering.
                left = deadline - self._clock()
                if left <= LAST_PAUSE:
                    raise SliceRefused(lacking[0])
                await asyncio.sleep(min(pause, left - LAST_PAUSE))
                pause = min(2 * pause, MAX_PAUSE)
        return deadline

    async def refresh(self, windows: Iterable[EscrowWindow], patience: float) -> bool:
        """Hear what others spent in these windows; whether that is known now."""
        if self.away_because is not None:
            return False
        asked = list(windows)
        found = await self._ask(asked, 0, patience)
        unseeded = [window for window in asked if window.known is not None and not window.goes_unseeded]
        if found and unseeded:
            await self._wait_for_seeds(unseeded)
            found = await self._ask(unseeded, 0, patience)
        return found

    def ask_beside(self, window: EscrowWindow) -> None:
        """Hear of it in the background, what others spent among it."""
        if not window.is_on_its_way and not window.is_waited_for and self.away_because is None:
            window.wait(0, asyncio.get_running_loop().create_future())
            self._ask_soon(window)

    def is_fresh(self, window: EscrowWindow) -> bool:
        """Whether what others spent is known as of the last seconds."""
        return window.is_heard and self._clock() - window.heard_at < 2.0

    # ── operators ────────────────────────────────────────────────────────────────────────────

    async def forgive(self, windows: Sequence[EscrowWindow], today: EscrowWindow) -> dict[str, int]:
        """Take today's spend of one user off their caps on all instances: nano-dollars by period.

        Raises MoneyUnavailable.
        """
        await self.refresh(windows, SEED_SECONDS)
        keys = sorted(window.key for window in windows)
        taken = dict(zip(keys, await self._store.forgive(keys, today.key), strict=True))
        await self.refresh(windows, SEED_SECONDS)
        return {window.name.period: taken[window.key] for window in windows}

    async def claim(self, name: str, seconds: float) -> bool:
        """Whether no instance has claimed this name so far. Raises MoneyUnavailable."""
        return await self._store.claim(name, seconds)

    def note_return(self) -> None:
        """The store is there again: hear whether it lost what even quiet windows had told."""
        if self.windows and not self._closing:
            asyncio.get_running_loop().call_later(TIGHT_TICK_SECONDS, self._send_due_now)

    def _send_due_now(self) -> None:
        self._send_due(is_tick=True)
        if self._timer is None:
            self._start_timer()

    async def close(self) -> None:
        """Give everything back that is set aside; what is open is told for the last time."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._seeding.values():
            task.cancel()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._under_way:
                    await asyncio.sleep(0.01)
                now = self._clock()
                left = [each for each in self.windows.values() if each.is_heard and not each.is_settled(now)]
                for at in range(0, len(left), MAX_BATCH):
                    await self._send(sorted(left[at : at + MAX_BATCH], key=lambda each: each.key))
        except TimeoutError:
            pass
        await self._tasks.close()

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def _must_wait(self, windows: Sequence[EscrowWindow], amount: int) -> bool:
        """Whether there is nothing to do now but to ask again later. Raises SliceRefused if that would not help."""
        must_wait = False
        for window in windows:
            if self.covers(window, amount) or (window.known is not None and not window.goes_unseeded):
                continue
            if window.is_recovering:
                must_wait = True
            elif amount > window.room + window.held_elsewhere:
                raise SliceRefused(window)
            elif amount > window.room:
                must_wait = True
        return must_wait

    async def _wait_for_seeds(self, windows: Iterable[EscrowWindow]) -> float:
        """Wait for the ledger where the store asks for its word; how many seconds that took."""
        began = self._clock()
        for window in windows:
            if window.known is not None and not window.goes_unseeded and not window.is_recovering:
                task = self._start_seeding(window)
                if task is not None:
                    await asyncio.wait((task,), timeout=SEED_SECONDS)
        return self._clock() - began

    def _refuse_without_store(self, window: EscrowWindow) -> None:
        """What becomes of a call that has no slice while the store does not answer: nothing with `local`.

        Raises SliceRefused, or MoneyUnavailable with `deny`.
        """
        # If it answers too late nobody else waits for it, until an answer comes.
        self._set_away("it does not answer in time")
        self._on_fallback()
        if self.on_error == "deny":
            raise MoneyUnavailable(self.away_because or "")
        if self.on_error == "share":
            raise SliceRefused(window, away=True)

    async def _ask(self, windows: Iterable[EscrowWindow], amount: int, patience: float) -> bool:
        """Whether the store answered for all of these within so many seconds."""
        loop = asyncio.get_running_loop()
        futures = []
        for window in windows:
            future: asyncio.Future[bool] = loop.create_future()
            window.wait(amount, future)
            self._ask_soon(window)
            futures.append(future)
        try:
            async with asyncio.timeout(max(0.0, patience)):
                return all([await future for future in futures])
        except TimeoutError:
            return False
        finally:
            for future in futures:
                future.cancel()

    def _ask_soon(self, window: EscrowWindow) -> None:
        """Send a batch at the end of this turn of the loop, with what else is asked for in it."""
        self._active[window] = None
        self._urgent[window] = None
        self._send_soon()

    def _send_soon(self) -> None:
        if not self._asked and not self._closing:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._send_asked)

    def _send_asked(self) -> None:
        self._asked = False
        self._send_due(is_tick=False)
        if self._timer is None:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._closing:
            return
        seconds = TICK_SECONDS
        if self.away_because is not None:
            seconds = AWAY_TICK_SECONDS
        elif any(window.is_tight for window in self._active):
            seconds = TIGHT_TICK_SECONDS
        elif len(self._active) > MAX_BATCH:
            seconds = LARGE_TICK_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock()
        for window in [each for each in self._active if each.is_heard and each.is_settled(now)]:
            del self._active[window]
        self._send_due(is_tick=True)
        if now - self._pruned_at > PRUNE_SECONDS:
            self._prune()
        # Once nothing is set aside and everything is told, nothing is sent any more.
        if self._active or self.away_because is not None:
            self._start_timer()

    def _send_due(self, *, is_tick: bool) -> None:
        if self._closing or self._under_way >= (1 if self.away_because is not None else MAX_UNDER_WAY):
            return
        now = self._clock()
        # Not all of them at each asking: with hundreds of users, the look alone would cost more than the call.
        candidates, self._urgent = (self._active if is_tick else self._urgent), {}
        # A window whose seed is being read waits for it, or for its time-out.
        due = [
            each
            for each in candidates
            if not each.is_on_its_way and (each.is_waited_for or (each not in self._seeding and each.needs_update(now)))
        ]
        if not is_tick and not due:
            return
        # Without anything to tell, it is asked for news: whether others lack what is set aside here.
        batches = [due[at : at + MAX_BATCH] for at in range(0, len(due), MAX_BATCH)] or [[]]
        free = MAX_UNDER_WAY - self._under_way
        for each in due[free * MAX_BATCH :]:
            self._urgent[each] = None  # when a batch has come back
        for batch in batches[:free]:
            self._tasks.start(self._send(sorted(batch, key=lambda each: each.key)))

    async def _send(self, windows: Sequence[EscrowWindow]) -> None:
        """Send one batch, and take the answer."""
        self._under_way += 1
        self._number += 1
        sender = Sender(
            self._instance,
            self._number,
            self._acknowledged,
            self._epoch,
            self.ratio,
            self._seeds is not None,
            self.shares_ledger,
        )
        sent_at = self._clock()
        made = [window.make_update(sent_at, closing=self._closing) for window in windows]
        answered = False
        try:
            answer = await self._store.sync(sender, [update for update, _ in made])
            self._take_answer(sender, windows, [update for update, _ in made], answer, sent_at)
            answered = True
        except MoneyUnavailable as error:
            self._set_away(str(error))
        finally:
            self._under_way -= 1
            for window in windows:
                if not answered:
                    window.fail()
            for _, futures in made:
                for future in futures:
                    if not future.done():
                        future.set_result(answered)
        # Who came while this was on its way, for the same windows.
        for window in windows:
            if window.is_waited_for:
                self._urgent[window] = None
        if self._urgent:
            self._send_soon()

    def _take_answer(
        self,
        sender: Sender,
        windows: Sequence[EscrowWindow],
        updates: Sequence[WindowUpdate],
        answer: SyncAnswer,
        sent_at: float,
    ) -> None:
        self._acknowledged = max(self._acknowledged, sender.number)
        if self.away_because is not None:
            self.away_because = None
            self._on_change(None)
        if answer.epoch != self._epoch:
            if self._epoch:
                # It may have forgotten anything: every sum is told again, that of windows that are quiet as well.
                for window in self.windows.values():
                    window.forget_told()
                    if window.is_heard:
                        self._active[window] = None
            self._epoch = answer.epoch
        for window, update, state in zip(windows, updates, answer.windows, strict=True):
            if state is None:
                window.fail()
                continue
            window.apply(update, state, sent_at, recovering=answer.recovering)
            if state.known is not None and not answer.recovering and not self._closing:
                self._start_seeding(window)
        now = self._clock()
        for word in answer.news:
            found = self.windows.get(word[1:])
            if found is None:
                continue
            if word[0] == "w":
                if found.free > 0:
                    found.recall(now)
                    self._active[found] = None
            elif found not in windows:
                found.forget_told()
                self._active[found] = None

    def _set_away(self, why: str) -> None:
        if self.away_because is None:
            self.away_because = why
            self._on_change(why)
            if self._timer is None:
                self._start_timer()

    # ── what the ledger has ──────────────────────────────────────────────────────────────────

    def _start_seeding(self, window: EscrowWindow) -> asyncio.Task[None] | None:
        task = self._seeding.get(window)
        if task is None and self._seeds is not None and window.known is not None:
            if self._clock() < self._seed_pauses_until:
                window.goes_unseeded = True
                return None
            # This instance has its own sums in memory, even if the store has none of them yet.
            without = window.known if self._has_forgotten else window.known | {self._instance}
            task = asyncio.get_running_loop().create_task(self._seed(window, self._seeds, without))
            self._seeding[window] = task
            task.add_done_callback(lambda _: self._seeding.pop(window, None))
        return task

    async def _seed(self, window: EscrowWindow, seeds: SeedSource, without: frozenset[str]) -> None:
        try:
            async with asyncio.timeout(SEED_SECONDS):
                window.seed = await seeds.read_seed(window.name, without)
            window.goes_unseeded = False
        except (MoneyUnavailable, TimeoutError):
            # Calls go on without it, as they do without a shared store while the ledger is away.
            self._seed_pauses_until = self._clock() + SEED_RETRY_SECONDS
            window.goes_unseeded = True
        self._ask_soon(window)

    def _prune(self) -> None:
        """Let go of windows that ended and of which the store knows everything."""
        self._pruned_at, now, wall = self._clock(), self._clock(), self._now()
        for window in list(self.windows.values()):
            if window.name.end < wall and window.is_settled(now):
                self.forget_window(window)
