"""How fast an upstream is called: requests, tokens and calls at once, by the policy and by its own word.

aiolimiter's leaky buckets pace. Such a bucket of N admits N at once and N more while they leak, so nearly 2N
in its first period; ours hold a tenth of the rate and leak the rest, which never admits more than N in any
period: B + (N - B + 1) - 1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from aiolimiter import AsyncLimiter

from proxy.egress.learnt import lessons
from proxy.egress.turns import Turns
from proxy.errors import OutriggerError
from proxy.policy import outgoing
from proxy.policy.values import Rate

MOST_WAITING = 1000


class PaceRefusal(OutriggerError):
    """No place within `pace.wait`. `retry_after` is in seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = max(1.0, retry_after)


class Place:
    """A call under way. `release` belongs in a `finally`, and may be called again to no effect."""

    __slots__ = ("_pace", "_tokens")

    def __init__(self, pace: Pace, tokens: int) -> None:
        self._pace: Pace | None = pace
        self._tokens = tokens

    def release(self, tokens: int | None) -> None:
        """The call is over; `tokens` is what it really took, where that is known."""
        pace, self._pace = self._pace, None
        if pace is not None:
            pace.give(tokens - self._tokens if tokens is not None else 0)


class Pace:
    def __init__(
        self, policy: outgoing.Pace, *, clock: Callable[[], float], now: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._now = now
        self._turns: Turns[_Waiter] = Turns()
        self._in_flight = 0
        self._held_until = 0.0  # by a 429 with Retry-After
        self._learnt_until = 0.0  # by the upstream's own count of what is left
        self._tokens_left: tuple[float, float] | None = None  # how many, until when
        self._debt = 0.0  # tokens taken beyond the estimates; below zero a credit
        self._server: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._requests: AsyncLimiter | None = None
        self._tokens: AsyncLimiter | None = None
        self.policy = outgoing.Pace()
        self.reconfigure(policy)

    def __repr__(self) -> str:
        held = max(self._held_until, self._learnt_until) - self._clock()
        return (
            f"<Pace {self._in_flight} in flight, {len(self._turns)} waiting"
            f"{f', held for {held:.1f} s' if held > 0 else ''}>"
        )

    def reconfigure(self, policy: outgoing.Pace) -> None:
        old, self.policy = self.policy, policy
        if policy.requests != old.requests:
            self._requests = _bucket(policy.requests)
        if policy.tokens != old.tokens:
            self._tokens = _bucket(policy.tokens)
        self._room.set()

    def try_enter(self, user: str, tokens: int) -> Place | None:
        """A place where there is one now and nobody waits; None where `enter` would wait or refuse."""
        if self._turns or self._serving or self._requests is not None or self._tokens is not None:
            return None
        if self._clock() < max(self._held_until, self._learnt_until) or self._full or self._lacks(tokens):
            return None
        return self._place(tokens)

    async def enter(self, user: str, tokens: int) -> Place:
        """A place, in turn. Raises PaceRefusal."""
        wait = self.policy.wait
        held = self._held_until - self._clock()
        if held > wait:
            raise PaceRefusal("the upstream asked for a pause (Retry-After)", held)
        if len(self._turns) >= MOST_WAITING:
            raise PaceRefusal("too many wait already", wait)
        waiter = _Waiter(user, tokens, asyncio.get_running_loop().create_future())
        self._turns.add(user, waiter)
        self._serve()
        try:
            async with asyncio.timeout(wait):
                return await waiter.place
        except TimeoutError:
            self._gone(waiter)
            raise PaceRefusal(self._reason(), self._expected(user, tokens)) from None
        except asyncio.CancelledError:
            self._gone(waiter)
            raise

    def hold(self, seconds: float) -> None:
        """The upstream wants a pause: nobody is placed until then."""
        self._held_until = max(self._held_until, self._clock() + seconds)

    def learn(self, headers: Mapping[str, str]) -> None:
        """From an answer's header: where nothing is left, new calls wait until there is."""
        if not headers:
            return
        for kind, left, again in lessons(headers, self._now()):
            until = self._clock() + again
            if kind == "tokens":
                self._tokens_left = (left, until)
            elif left < 1:
                self._learnt_until = max(self._learnt_until, until)

    def give(self, more: int) -> None:
        self._in_flight -= 1
        if self._tokens is not None:
            self._debt = max(self._debt + more, -self._tokens.max_rate)
        self._room.set()

    def close(self) -> None:
        if self._server is not None:
            self._server.cancel()
            self._server = None
        while (waiter := self._turns.next()) is not None:
            if not waiter.place.done():
                waiter.place.set_exception(PaceRefusal("this upstream was taken out of the policy", 1.0))

    # ── serving in turn ──────────────────────────────────────────────────────────────────────

    @property
    def _serving(self) -> bool:
        return self._server is not None

    @property
    def _full(self) -> bool:
        return self.policy.concurrency is not None and self._in_flight >= self.policy.concurrency

    def _place(self, tokens: int) -> Place:
        self._in_flight += 1
        return Place(self, tokens)

    def _gone(self, waiter: _Waiter) -> None:
        """It waits no longer; a place that it was given at that very moment goes back."""
        self._turns.remove(waiter.user, waiter)
        place = waiter.place
        if not place.done():
            place.cancel()
        elif not place.cancelled() and place.exception() is None:
            place.result().release(None)
        self._room.set()

    def _serve(self) -> None:
        if self._server is None:
            self._server = asyncio.get_running_loop().create_task(self._serve_all())

    async def _serve_all(self) -> None:
        """Gives places while anybody waits: one task, so that nobody overtakes."""
        try:
            while (waiter := self._turns.next()) is not None:
                await self._until_room(waiter)
                if not waiter.place.done():
                    waiter.place.set_result(self._place(waiter.tokens))
        finally:
            self._server = None

    async def _until_room(self, waiter: _Waiter) -> None:
        while self._full and not waiter.place.done():
            self._room.clear()
            await self._room.wait()
        began = self._clock()
        while not waiter.place.done() and (pause := self._pause(waiter, began)) > 0:
            await self._nap(pause)
        if waiter.place.done():
            return
        if self._requests is not None:
            await _take(self._requests, 1.0, waiter)
        if self._tokens is not None and not waiter.place.done():
            owed, self._debt = max(0.0, waiter.tokens + self._debt), min(0.0, waiter.tokens + self._debt)
            while owed > 0 and not waiter.place.done():
                piece = min(owed, self._tokens.max_rate)
                await _take(self._tokens, piece, waiter)
                owed -= piece

    def _pause(self, waiter: _Waiter, began: float) -> float:
        """Seconds until the upstream is ready for this one. What was learnt delays by `wait` at most, since
        it may be wrong; what it asked for (Retry-After) holds."""
        now = self._clock()
        learnt = self._learnt_until
        if self._lacks(waiter.tokens) and self._tokens_left is not None:
            learnt = max(learnt, self._tokens_left[1])
        return max(self._held_until - now, min(learnt, began + self.policy.wait * 0.9) - now)

    def _lacks(self, tokens: int) -> bool:
        if self._tokens_left is None or self._clock() >= self._tokens_left[1]:
            return False
        return tokens > self._tokens_left[0]

    async def _nap(self, seconds: float) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._room.wait()
        except TimeoutError:
            pass

    def _reason(self) -> str:
        if self._clock() < self._held_until:
            return "the upstream asked for a pause (Retry-After)"
        return "too many calls at once" if self._full else "its rate is used up"

    def _expected(self, user: str, tokens: int) -> float:
        """When a place may be had, roughly: by the rates, for those who are before."""
        before = self._turns.ahead(user) + 1
        waits = [self._held_until - self._clock(), 1.0]
        if self.policy.requests is not None:
            waits.append(before * self.policy.requests.period / self.policy.requests.count)
        if self.policy.tokens is not None:
            waits.append(tokens * self.policy.tokens.period / self.policy.tokens.count)
        return max(waits)


class _Waiter:
    __slots__ = ("place", "tokens", "user")

    def __init__(self, user: str, tokens: int, place: asyncio.Future[Place]) -> None:
        self.user = user
        self.tokens = tokens
        self.place = place


async def _take(bucket: AsyncLimiter, amount: float, waiter: _Waiter) -> None:
    """Or nothing, where the waiter leaves first: who is gone takes no one else's turn."""
    taking = asyncio.ensure_future(bucket.acquire(amount))
    try:
        await asyncio.wait((taking, waiter.place), return_when=asyncio.FIRST_COMPLETED)
    finally:
        taking.cancel()


def _bucket(rate: Rate | None) -> AsyncLimiter | None:
    if rate is None:
        return None
    burst = max(1, rate.count // 10)
    leak = (rate.count - burst + 1) / rate.period
    return AsyncLimiter(burst, burst / leak)
