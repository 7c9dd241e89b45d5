"""Rate limits over all instances: decided in the shared store, or here while it is away.

Up to three places decide, in this order:

1. A refusal that the store gave less than a second ago still holds: it is repeated without asking.
2. The store, in one round trip (`store/limits.py`).
3. While the store is away, this instance alone, by `store.on_error`: with its part of each limit (`share`), with the
   whole limit (`local`), or not at all (`deny`). The local log has whatever this instance admitted, by the store or
   without it, so a part is less what was admitted here in the window before.

What was admitted without the store is written to it when it is back, before it decides again, and so is what nobody
knows of (a time-out): each request has an id, under which it counts once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count

from proxy.errors import Refusal
from proxy.ingress.ratelimit.limiter import RateDecision, RateLimiter, TierLimits
from proxy.observe.emit import EmitEvent
from proxy.policy.schema import Route
from proxy.store.interface import SharedStore, StoreAway, WaitBudget, hash_user
from proxy.store.limits import ADMIT, RECORD, RECORD_GROUPS, REFUND
from proxy.util.background_tasks import BackgroundTasks

# Longer, and a request that another instance takes back (refused after it was counted) would free a place that nobody
# here notices; shorter, and a client that hammers at a full limit would cost a round trip each time.
MAX_DENIAL_SECONDS = 1.0
MAX_DENIALS = 10_000  # refusals that are remembered, about 300 bytes each
MAX_UNWRITTEN = 50_000  # requests that wait to be written to the store, about 150 bytes each
RECORDS_AT_ONCE = 200  # users whose requests are written in one go
RETRY_AFTER = 1.0  # seconds, of a refusal because the store is away


class StoreLimits:
    """The limits of a tier on a route, as the store is asked about them."""

    __slots__ = ("args", "exact", "longest_us", "periods_us", "positions", "rates", "steps", "suffixes")

    def __init__(self, limits: TierLimits) -> None:
        # By period, so that instances whose policies have another order lock rows in the same one.
        by_period = sorted(range(len(limits.coarse)), key=lambda place: limits.coarse[place][1])
        coarse = [limits.coarse[place] for place in by_period]
        self.exact = len(limits.exact)
        self.rates = [*limits.exact, *coarse]
        self.periods_us = [_microseconds(period) for _, period in coarse]
        self.steps = [quota // 100 for quota, _ in coarse]
        self.longest_us = max((_microseconds(period) for _, period in limits.exact), default=0)
        names: list[str] = []
        for period_us in self.periods_us:
            # Two limits of one period have a log each.
            names.append(f":{period_us}" + "+" * sum(name.rstrip("+") == f":{period_us}" for name in names))
        self.suffixes = [suffix for name in names for suffix in (name, f"{name}:s")]
        self.args = [str(self.exact)]
        for quota, period in limits.exact:
            self.args += (str(quota), str(_microseconds(period)))
        for (quota, _), period_us, step in zip(coarse, self.periods_us, self.steps, strict=True):
            self.args += (str(quota), str(period_us), str(step))
        ranks = {place: rank for rank, place in enumerate(by_period)}
        # Where in a reply each limit of the policy stands.
        self.positions = [
            place if place < self.exact else self.exact + ranks[place - self.exact] for place in limits.order
        ]

    def keys(self, key: str) -> list[str]:
        large = [key + suffix for suffix in self.suffixes]
        return [key, *large] if self.exact else large

    def standings(self, told: Sequence[int], *, allowed: bool) -> list[tuple[int, float]]:
        """(remaining, seconds to reset) of each limit in the policy's order, from (requests before this one, µs) of
        each."""
        found = []
        for place, (quota, period) in enumerate(self.rates):
            used, own = told[2 * place], told[2 * place + 1] / 1e6
            if allowed:
                found.append((max(0, quota - used - 1), own if used else period))
            else:
                found.append((max(0, quota - used), own))
        return [found[place] for place in self.positions]


class Ticket:
    """What is to be known of an admitted request if it is taken back. `store_time` is None if this instance admitted it
    without the store."""

    __slots__ = ("id", "key", "limits", "store_time")

    def __init__(self, key: str, id: str, limits: StoreLimits, store_time: int | None) -> None:
        self.key = key
        self.id = id
        self.limits = limits
        self.store_time = store_time


class _Denial:
    """A refusal of the store's that holds for a while. `at` is when it was asked for, `until` when it does not hold any
    more, or another of the limits has more left than it had."""

    __slots__ = ("at", "limits", "standings", "until", "wait")

    def __init__(self, limits: TierLimits, standings: list[tuple[int, float]], wait: float, at: float) -> None:
        self.limits = limits
        self.standings = standings
        self.wait = wait
        self.at = at
        self.until = at + min(MAX_DENIAL_SECONDS, wait, *(reset for _, reset in standings if reset > 0.0))

    def repeat(self, now: float) -> RateDecision:
        passed = now - self.at
        standings = [(remaining, max(0.0, reset - passed)) for remaining, reset in self.standings]
        return RateDecision(
            self.limits.headers, standings, retry_after=self.wait - passed, enforced=self.limits.enforced, at=now
        )


class _Unwritten:
    """Requests of one user on one route that the store has to learn of: added, by id with the time on this instance's
    clock, and removed."""

    __slots__ = ("added", "limits", "removed")

    def __init__(self, limits: StoreLimits) -> None:
        self.limits = limits
        self.added: dict[str, float] = {}
        self.removed: set[str] = set()

    def __len__(self) -> int:
        return len(self.added) + len(self.removed)


class SharedRateLimiter:
    """The limits of all instances. `local` is this instance's own limiter, whose log has what was admitted here."""

    def __init__(self, store: SharedStore, local: RateLimiter, *, clock: Callable[[], float], emit: EmitEvent) -> None:
        self._store = store
        self._local = local
        self._clock = clock
        self._emit = emit
        self._name = store.instance_id[:8]
        self._serial = count()
        self._compiled: OrderedDict[int, tuple[TierLimits, StoreLimits]] = OrderedDict()
        self._denials: OrderedDict[str, _Denial] = OrderedDict()
        self._unwritten: OrderedDict[str, _Unwritten] = OrderedDict()
        self._waiting = 0  # requests in it
        self._dropped = False
        self._tasks = BackgroundTasks()
        store.on_return(self._write_back)

    def __repr__(self) -> str:
        return f"<SharedRateLimiter {self._store!r}, {self._waiting} unwritten>"

    async def check(self, route: Route, tier: str, user: str, budget: WaitBudget) -> RateDecision | None:
        """Decide on a request, and count it if it is admitted. None: no limit applies. Raises Refusal (503) while the
        store is away, if the policy says so."""
        limits = self._local.limits_for(route, tier)
        if limits is None:
            return None
        asked = self._limits_in_store(limits)
        key = f"limit:{hash_user(route.name, user)}"
        now = self._clock()
        denial = self._denials.get(key)
        if denial is not None:
            if denial.limits is limits and now < denial.until:
                return denial.repeat(now)
            del self._denials[key]
        id = f"{self._name}.{next(self._serial):x}"
        try:
            reply = await self._store.execute(ADMIT, asked.keys(key), (id, *asked.args), budget)
        except StoreAway as away:
            return self._decide_alone(route, tier, user, Ticket(key, id, asked, None), limits, away)
        if self._unwritten and not len(self._tasks):
            self._tasks.start(self._write_rest())
        store_time, wait_us = reply[0], reply[1]
        standings = asked.standings(reply[2:], allowed=not wait_us)
        if wait_us:
            # The store decided after `now`, so from `now` on it cannot hold for longer than it said.
            self._denials[key] = _Denial(limits, standings, wait_us / 1e6, now)
            if len(self._denials) > MAX_DENIALS:
                self._denials.popitem(last=False)
            return RateDecision(limits.headers, standings, retry_after=wait_us / 1e6, enforced=limits.enforced, at=now)
        counted = self._local.count(route, tier, user)
        decision = RateDecision(limits.headers, standings, retry_after=0.0, enforced=limits.enforced, at=counted)
        decision.ticket = Ticket(key, id, asked, store_time)
        return decision

    def refund(self, route: Route, user: str, decision: RateDecision) -> None:
        """Uncount a request that was admitted here, and refused elsewhere before the app saw it."""
        self._local.refund(route, user, decision)
        ticket = decision.ticket
        if ticket is None or not decision.allowed:
            return
        self._denials.pop(ticket.key, None)
        if ticket.store_time is None:
            self._forget(ticket)
        else:
            self._tasks.start(self._refund(ticket))

    async def close(self) -> None:
        await self._tasks.close()

    # ── without the store ────────────────────────────────────────────────────────────────────

    def _decide_alone(
        self, route: Route, tier: str, user: str, ticket: Ticket, limits: TierLimits, away: StoreAway
    ) -> RateDecision | None:
        self._store.count_fallback("limit")
        on_error = self._store.policy.on_error
        if on_error == "deny" and limits.enforced:
            self._forget(ticket)
            detail = f"The store that instances share is away, and limits cannot be told without it ({away})."
            raise Refusal("store-unavailable", 503, "Store unavailable", detail, retry_after=RETRY_AFTER)
        parts = self._store.instances if on_error == "share" else 1
        decision = self._local.check(route, tier, user, parts=parts)
        if decision is None or not decision.allowed:
            self._forget(ticket)
            return decision
        decision.ticket = ticket
        self._unwritten_of(ticket).added[ticket.id] = decision.decided_at
        self._bound_unwritten(1)
        return decision

    def _forget(self, ticket: Ticket) -> None:
        """See to it that the store does not count this request, whether or not it has heard of it."""
        unwritten = self._unwritten_of(ticket)
        self._bound_unwritten(1 - (unwritten.added.pop(ticket.id, None) is not None))
        unwritten.removed.add(ticket.id)

    def _unwritten_of(self, ticket: Ticket) -> _Unwritten:
        found = self._unwritten.get(ticket.key)
        if found is None:
            found = self._unwritten[ticket.key] = _Unwritten(ticket.limits)
        found.limits = ticket.limits
        return found

    def _bound_unwritten(self, more: int) -> None:
        self._waiting += more
        while self._waiting > MAX_UNWRITTEN and len(self._unwritten) > 1:
            _, dropped = self._unwritten.popitem(last=False)
            self._waiting -= len(dropped)
            if not self._dropped:
                self._dropped = True
                text = f"More than {MAX_UNWRITTEN:,} requests wait for the store; the oldest will not count there."
                self._emit("store", text, level="warning")

    # ── when it is back ──────────────────────────────────────────────────────────────────────

    async def _write_back(self) -> None:
        """Write what was admitted meanwhile. Raises StoreAway if it is away again; nothing is lost then."""
        while self._unwritten:
            batch = [self._unwritten.popitem(last=False) for _ in range(min(RECORDS_AT_ONCE, len(self._unwritten)))]
            self._waiting -= sum(len(unwritten) for _, unwritten in batch)
            try:
                for key, unwritten in batch:
                    await self._record(key, unwritten)
            except BaseException:
                # Whatever of it was written is written again, which changes nothing.
                for key, unwritten in batch:
                    self._unwritten[key] = unwritten
                    self._waiting += len(unwritten)
                raise
        self._dropped = False

    async def _write_rest(self) -> None:
        """What came to be decided here while the store was already on its way back."""
        try:
            await self._write_back()
        except StoreAway:
            pass  # it is tried again when the store is back

    async def _record(self, key: str, unwritten: _Unwritten) -> None:
        limits, to_store_time = unwritten.limits, self._store.to_store_time
        now = to_store_time(self._clock())
        added = sorted((to_store_time(at), id) for id, at in unwritten.added.items())
        if limits.exact:
            words = [str(limits.longest_us), str(len(unwritten.removed)), *unwritten.removed]
            for at, id in added:
                if now - at < limits.longest_us:
                    words += (id, str(at))
            await self._store.execute(RECORD, (key,), words)
        for place, (period, step) in enumerate(zip(limits.periods_us, limits.steps, strict=True)):
            live = [(at, id) for at, id in added if now - at < period]
            words = [str(period)]
            for start in range(0, len(live), step):
                group = live[start : start + step]
                words += (f"r{group[0][1]}", str(group[-1][0]), str(len(group)))
            if live:
                keys = (key + limits.suffixes[2 * place], key + limits.suffixes[2 * place + 1])
                await self._store.execute(RECORD_GROUPS, keys, words)

    async def _refund(self, ticket: Ticket) -> None:
        limits = ticket.limits
        args = (ticket.id, "1" if limits.exact else "0", str(ticket.store_time), *map(str, limits.periods_us))
        try:
            await self._store.execute(REFUND, limits.keys(ticket.key), args)
        except StoreAway:
            self._forget(ticket)

    def _limits_in_store(self, limits: TierLimits) -> StoreLimits:
        # By identity, which a reload changes; the limits are held, so that no other object gets their id.
        known = self._compiled.get(id(limits))
        if known is not None:
            return known[1]
        compiled = StoreLimits(limits)
        self._compiled[id(limits)] = (limits, compiled)
        if len(self._compiled) > 1000:
            self._compiled.popitem(last=False)
        return compiled


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
