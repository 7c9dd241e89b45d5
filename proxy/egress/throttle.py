"""How fast an upstream is called: requests, tokens and calls at once, by the policy and by its own word.

aiolimiter's leaky buckets pace. Such a bucket of N admits N at once and N more while they leak, so nearly 2N
in its first period; ours hold a tenth of the rate and leak the rest, which never admits more than N in any
period: B + (N - B + 1) - 1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from proxy.egress.provider_limits import ProviderLimits
from proxy.errors import OutriggerError
from proxy.policy import schema
from proxy.policy.values import Rate
from proxy.store.leases import Lease, Measure
from proxy.store.rates import SentCount, SharedRates
from proxy.util.fair_queue import FairQueue

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

MAX_WAITING = 1000
UPSTREAM_PAUSE = "the upstream asked for a pause (Retry-After)"


class ThrottleRefusal(OutriggerError):
    """No permit was to be had within `pace.wait`. `reason` says why, `retry_after` when to come again, in seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = max(1.0, retry_after)


class ThrottlePermit:
    """The permit of a call under way. `release` belongs in a `finally`, and may be called again to no effect."""

    __slots__ = ("_throttle", "_tokens")

    def __init__(self, throttle: Throttle, tokens: int) -> None:
        self._throttle: Throttle | None = throttle
        self._tokens = tokens

    def release(self, tokens: int | None) -> None:
        """The call is over; `tokens` is what it really took, None if that is not known."""
        throttle, self._throttle = self._throttle, None
        if throttle is not None:
            throttle.release(tokens - self._tokens if tokens is not None else 0)


class Throttle:
    """Grants permits for calls of one upstream, in fair turns by user.

    Attributes:
        policy: `pace` of the policy in force.
        limits: what the upstream itself said of its limits.
        on_pause: hears what the upstream asked for (seconds, model, whether of every model); None if nobody shares.

    `clock` is monotonic, `now` the wall clock, both in seconds.
    """

    def __init__(
        self, policy: schema.Pace, *, clock: Callable[[], float], now: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._in_flight = 0
        self._debt = 0.0  # tokens taken beyond the estimates; below zero a credit
        self._server: asyncio.Task[None] | None = None
        self._being_served: _Waiter | None = None  # whose rates are being paid
        self._changed = asyncio.Event()  # somebody came or went, or there is room
        self._lease: Lease | None = None  # of `concurrency`, if instances share it
        self._sent: SentCount | None = None  # told to the others, if a rate is shared
        self._rates: SharedRates | None = None
        self._elsewhere = Elsewhere(clock)
        self._requests: AsyncLimiter | None = None
        self._tokens: AsyncLimiter | None = None
        self.limits = ProviderLimits(clock, now)
        self.on_pause: Callable[[float, str | None, bool], None] | None = None
        self.policy = schema.Pace()
        self.reconfigure(policy)

    def __repr__(self) -> str:
        return f"<Pace {self._in_flight} in flight, {len(self._queue)} waiting, {self.limits!r}>"

    def reconfigure(self, policy: schema.Pace) -> None:
        """Take another policy; a rate that did not change keeps its count."""
        old, self.policy = self.policy, policy
        if policy.requests != old.requests:
            self._requests = _make_bucket(policy.requests)
        if policy.tokens != old.tokens:
            self._tokens = _make_bucket(policy.tokens)
        if self._lease is not None and policy.concurrency is not None:
            self._lease.total = policy.concurrency
        self._changed.set()

    def share(self, rates: SharedRates, name: str, open_lease: OpenLease) -> None:
        """Pace this upstream together with other instances, under its name, by what the policy has of it now.

        Called again after a reload.
        """
        self._rates = rates
        paces = self.policy.requests is not None or self.policy.tokens is not None
        if paces:
            self._sent = rates.follow(name, self._note_elsewhere)
        elif self._sent is not None:
            rates.forget(name)
            self._sent = None
        if self.policy.concurrency is not None and self._lease is None:
            self._lease = open_lease(
                f"pace:{name}",
                self.policy.concurrency,
                measure=lambda: (self._in_flight, self._in_flight + len(self._queue)),
                on_change=self._changed.set,
            )
            self._lease.start()

    def pause(self, seconds: float, model: str | None, *, every_model: bool) -> None:
        """The vendor asked for a pause: of calls of this model, or of all of them."""
        if every_model:
            self.limits.pause_all(seconds)
        else:
            self.limits.pause_model(seconds, model)

    def tell_pause(self, seconds: float, model: str | None, *, every_model: bool) -> None:
        """The same, as an answer to a call of this instance said: the other instances hear of it."""
        self.pause(seconds, model, every_model=every_model)
        if self.on_pause is not None:
            self.on_pause(seconds, model, every_model)

    async def give_back(self) -> None:
        """Give back what others may use."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.close()

    def try_acquire(self, user: str, tokens: int, model: str | None) -> ThrottlePermit | None:
        """A permit, if there is one now and nobody waits; None if `acquire` would wait or refuse."""
        # A rate is acquired by the serving task alone, or whoever comes would overtake those who wait.
        if self._queue or self._is_serving or self._requests is not None or self._tokens is not None or self._is_full:
            return None
        now = self._clock()
        if now < self.limits.paused_until(model) or now < self.limits.exhausted_until(model, tokens):
            return None
        return self._grant(tokens)

    async def acquire(self, user: str, tokens: int, model: str | None) -> ThrottlePermit:
        """A permit, in turn. Raises ThrottleRefusal if there is none within `pace.wait`."""
        wait, now = self.policy.wait, self._clock()
        held = self.limits.paused_until(model) - now
        # Waiting would end the same way, only later.
        if held > wait:
            raise ThrottleRefusal(UPSTREAM_PAUSE, held)
        if len(self._queue) >= MAX_WAITING:
            raise ThrottleRefusal("too many wait already", wait)
        waiter = _Waiter(user, tokens, model, asyncio.get_running_loop().create_future(), now)
        self._queue.append(user, waiter)
        self._changed.set()
        self._start_server()
        try:
            async with asyncio.timeout(wait):
                return await waiter.permit
        except TimeoutError:
            self._remove_waiter(waiter)
            raise ThrottleRefusal(self._refusal_reason(model), self._expected_wait(waiter)) from None
        except asyncio.CancelledError:
            self._remove_waiter(waiter)
            raise

    def release(self, more: int) -> None:
        """Count a call as over; `more` tokens than estimated were taken, or fewer if it is below zero."""
        self._in_flight -= 1
        if self._tokens is not None:
            # A credit is no larger than one burst, or calls that took less than estimated would add up to a flood.
            self._debt = max(self._debt + more, -self._tokens.max_rate)
        self._changed.set()

    def close(self) -> None:
        """Refuse those who wait, and stop serving."""
        if self._server is not None:
            self._server.cancel()
            self._server = None
        waiting: list[_Waiter] = [*self._queue]
        if self._being_served is not None:
            waiting.insert(0, self._being_served)
        self._being_served, self._queue = None, FairQueue()
        # Nobody serves them any more, so they are refused at once.
        for waiter in waiting:
            if not waiter.permit.done():
                waiter.permit.set_exception(ThrottleRefusal("this upstream was taken out of the policy", 1.0))

    # ── serving in turn ──────────────────────────────────────────────────────────────────────

    @property
    def _is_serving(self) -> bool:
        return self._server is not None

    @property
    def _is_full(self) -> bool:
        most = self.policy.concurrency
        if most is None:
            return False
        lease = self._lease
        if lease is not None and self._in_flight >= lease.limit:
            lease.hasten()
            return True
        return self._in_flight >= most

    def _note_elsewhere(self, requests: int, tokens: int) -> None:
        """Other instances have sent this much: it is taken out of the buckets here before the next call."""
        self._elsewhere.add("requests", requests, self.policy.requests)
        self._elsewhere.add("tokens", tokens, self.policy.tokens)

    def _grant(self, tokens: int) -> ThrottlePermit:
        self._in_flight += 1
        return ThrottlePermit(self, tokens)

    def _remove_waiter(self, waiter: _Waiter) -> None:
        """Forget one that waits no longer; a permit that it was granted at that very moment goes back."""
        self._queue.remove(waiter.user, waiter)
        permit = waiter.permit
        if not permit.done():
            permit.cancel()
        elif not permit.cancelled() and permit.exception() is None:
            permit.result().release(None)
        self._changed.set()

    def _start_server(self) -> None:
        if self._server is None:
            self._server = asyncio.get_running_loop().create_task(self._serve_waiters())

    async def _serve_waiters(self) -> None:
        """Grant permits while anybody waits: in one task, so that nobody overtakes. Only those who wait for a model
        that is held back are overtaken, by those who ask for another."""
        try:
            while self._queue:
                # Cleared before looking, so that no change is missed between looking and waiting.
                self._changed.clear()
                waiter = None if self._is_full else self._queue.pop_next(self._may_go)
                if waiter is None:
                    await self._wait_for_change(None if self._is_full else self._seconds_to_next())
                    continue
                # Once only: one who goes back to wait for the end of a pause has paid already.
                if not waiter.rates_acquired:
                    self._being_served = waiter
                    await self._acquire_rates(waiter)
                    self._being_served, waiter.rates_acquired = None, True
                if waiter.permit.done():
                    continue
                if self._may_go(waiter):
                    waiter.permit.set_result(self._grant(waiter.tokens))
                else:
                    # The upstream asked for a pause meanwhile; it keeps its turn.
                    self._queue.append_left(waiter.user, waiter)
        finally:
            # It ends when nobody waits; the next who does starts another.
            self._server = None

    async def _acquire_rates(self, waiter: _Waiter) -> None:
        """Wait until the policy's rates have room for it."""
        if self._requests is not None:
            await self._pay(self._requests, 1.0 + self._elsewhere.take("requests", self.policy.requests), waiter)
        if self._tokens is not None and not waiter.permit.done():
            asked = waiter.tokens + self._elsewhere.take("tokens", self.policy.tokens)
            owed, self._debt = max(0.0, asked + self._debt), min(0.0, asked + self._debt)
            await self._pay(self._tokens, owed, waiter)
        sent = self._sent
        if sent is not None and not waiter.permit.done():
            sent.requests += 1
            sent.tokens += waiter.tokens
            if self._rates is not None and not self._rates.is_up:
                self._rates.count_fallback()

    async def _pay(self, bucket: AsyncLimiter, owed: float, waiter: _Waiter) -> None:
        # A bucket admits no more than its burst at once.
        while owed > 0 and not waiter.permit.done():
            piece = min(owed, bucket.max_rate)
            await _acquire_unless_gone(bucket, piece, waiter)
            owed -= piece

    def _ready_at(self, waiter: _Waiter) -> float:
        """The moment at which the upstream is ready for this one. What was learnt delays by `wait` at most, since
        it may be wrong; what it asked for (Retry-After) holds."""
        # A tenth of the wait is left, so that a lesson that was wrong still ends in a permit, not in a refusal.
        learnt = self.limits.exhausted_until(waiter.model, waiter.tokens)
        return max(self.limits.paused_until(waiter.model), min(learnt, waiter.since + self.policy.wait * 0.9))

    def _may_go(self, waiter: _Waiter) -> bool:
        return self._ready_at(waiter) <= self._clock()

    def _seconds_to_next(self) -> float:
        """Seconds until the first of those who wait may go."""
        return max(0.0, min(map(self._ready_at, self._queue), default=0.0) - self._clock())

    async def _wait_for_change(self, seconds: float | None) -> None:
        """Wait until something changed, or for so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _refusal_reason(self, model: str | None) -> str:
        if self._clock() < self.limits.paused_until(model):
            return UPSTREAM_PAUSE
        return "too many calls at once" if self._is_full else "its rate is used up"

    def _expected_wait(self, waiter: _Waiter) -> float:
        """Seconds until a permit may be had, roughly: by the rates, and by how many wait before it."""
        before = self._queue.count_ahead(waiter.user) + 1
        waits = [self.limits.paused_until(waiter.model) - self._clock(), 1.0]
        if self.policy.requests is not None:
            waits.append(before * self.policy.requests.period / self.policy.requests.count)
        if self.policy.tokens is not None:
            waits.append(waiter.tokens * self.policy.tokens.period / self.policy.tokens.count)
        return max(waits)


class OpenLease(Protocol):
    """Makes a lease of this instance's: `thing` names what is shared, `total` is how many there are."""

    def __call__(self, thing: str, total: int, *, measure: Measure, on_change: Callable[[], None]) -> Lease: ...


class Elsewhere:
    """What other instances have sent and this one has not yet taken out of its buckets; it leaks as a bucket does.

    Without the leak, an instance that was quiet for an hour would pay for what the others sent in it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}  # how much, and when that was so

    def add(self, what: str, amount: int, rate: Rate | None) -> None:
        if rate is not None and amount:
            self._levels[what] = self.take(what, rate) + amount, self._clock()

    def take(self, what: str, rate: Rate | None) -> float:
        """How much there is; it is the taker's now."""
        level, at = self._levels.pop(what, (0.0, 0.0))
        if rate is None or not level:
            return 0.0
        return max(0.0, level - (self._clock() - at) * rate.count / rate.period)


class _Waiter:
    """A call that waits. `since` is when it came; `rates_acquired` says whether the policy's rates had room for it."""

    __slots__ = ("model", "permit", "rates_acquired", "since", "tokens", "user")

    def __init__(
        self, user: str, tokens: int, model: str | None, permit: asyncio.Future[ThrottlePermit], since: float
    ) -> None:
        self.user = user
        self.tokens = tokens
        self.model = model
        self.permit = permit
        self.since = since
        self.rates_acquired = False


async def _acquire_unless_gone(bucket: AsyncLimiter, amount: float, waiter: _Waiter) -> None:
    """Acquire from the bucket, or nothing if the waiter leaves first: it must not take the turn of others."""
    taking = asyncio.ensure_future(bucket.acquire(amount))
    try:
        await asyncio.wait((taking, waiter.permit), return_when=asyncio.FIRST_COMPLETED)
    finally:
        # The bucket is only charged when this is done, so cancelling it takes nothing.
        taking.cancel()


def _make_bucket(rate: Rate | None) -> AsyncLimiter | None:
    if rate is None:
        return None
    from aiolimiter import AsyncLimiter  # it asks for its own version at import: 20 ms and 0.7 MiB

    burst = max(1, rate.count // 10)
    leak = (rate.count - burst + 1) / rate.period
    return AsyncLimiter(burst, burst / leak)
