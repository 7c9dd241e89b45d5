"""Rate limits by user and route: exact sliding windows, in bounded memory.

A limit of N in a period admits N in every half-open window of that length, never N + 1, and refuses only if the window
is full (above N = 1,000 up to 1 % early, see `sliding_log`). If there are several limits, all must have room, and a
request counts against all or none. Refused requests do not count, in shadow mode neither, so that what shadow mode
reports is what enforcement would refuse.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from proxy.ingress.ratelimit import sliding_log
from proxy.ingress.ratelimit.headers import RateLimitHeaders
from proxy.ingress.ratelimit.sliding_log import MAX_EXACT_QUOTA, MixedLog, UserLog
from proxy.policy.schema import Route
from proxy.policy.values import Rate

MAX_PLAIN_USER_LENGTH = 40  # characters of a user's name that is not kept as a hash


class LimitStanding(NamedTuple):
    """One limit of a route, as it stands for a user after a decision. `window` and `reset` are in seconds."""

    name: str
    quota: int
    window: float
    remaining: int
    reset: float  # until quota that is used now comes free; 0 if none is


class RateDecision:
    """What the limits say to one request.

    - `allowed`; if not, `retry_after` is the seconds until it would be.
    - `enforced`: False for a route in shadow mode.
    - `decided_at`: on the limiter's clock; `RateLimiter.refund` finds the request by it.
    - `ticket`: what the shared store knows the request by, if it was asked.
    """

    __slots__ = ("_policy", "_standings", "allowed", "decided_at", "enforced", "retry_after", "ticket")

    def __init__(
        self,
        policy: RateLimitHeaders,
        standings: Sequence[tuple[int, float]],
        *,
        retry_after: float,
        enforced: bool,
        at: float,
    ) -> None:
        self.decided_at = at
        self.ticket: Any = None
        self._policy = policy
        self._standings = standings  # (remaining, reset) of each limit
        self.allowed = retry_after == 0.0
        self.enforced = enforced
        self.retry_after = retry_after

    @property
    def items(self) -> tuple[LimitStanding, ...]:
        """Each limit as it stands now, in the policy's order."""
        pairs = zip(self._policy.names, self._policy.rates, self._standings, strict=True)
        return tuple(LimitStanding(name, rate.count, rate.period, *standing) for name, rate, standing in pairs)

    def render_fields(self) -> bytes:
        """The lines of the RateLimit fields."""
        return self._policy.render(self._standings)


class TierLimits:
    """The limits of a tier on a route, compiled.

    `exact` and `coarse` are (quota, period) of those up to MAX_EXACT_QUOTA and above; `keep` is how many times the
    exact ones need to remember. Standings come out exact limits first: `order` puts them as the policy has them.
    """

    __slots__ = ("coarse", "enforced", "exact", "headers", "keep", "order")

    def __init__(self, route: Route, rates: tuple[Rate, ...]) -> None:
        self.headers = RateLimitHeaders(route.name, rates)
        self.enforced = route.enforce
        self.exact = [(rate.count, rate.period) for rate in rates if rate.count <= MAX_EXACT_QUOTA]
        self.coarse = tuple((rate.count, rate.period) for rate in rates if rate.count > MAX_EXACT_QUOTA)
        self.keep = max((quota for quota, _ in self.exact), default=0)
        places = sorted(range(len(rates)), key=lambda index: rates[index].count > MAX_EXACT_QUOTA)
        self.order = [places.index(index) for index in range(len(rates))]


class RateLimiter:
    """Counts by user and route name, which a reload that changes the limits keeps.

    Memory: a user on one route takes about 270 bytes and 8 for each time remembered (at most N + 16 of the largest
    exact limit, and about 120 for each limit above 1,000). At most `capacity` users are remembered, and `most_times`
    times in all (16 MiB); beyond either, the user not seen for longest is evicted. `evicted` counts those of them that
    still counted against a limit. Users whose windows have all passed go first, and are not counted.
    """

    def __init__(
        self, clock: Callable[[], float], capacity: int = 50_000, *, most_times: int = 2 * 1024 * 1024
    ) -> None:
        self._clock = clock
        self._capacity = capacity
        self._most_times = most_times
        self._logs: OrderedDict[str | bytes, UserLog] = OrderedDict()  # by route and user, oldest use first
        self._compiled: dict[str, tuple[Mapping[str, tuple[Rate, ...]], bool, dict[str, TierLimits | None]]] = {}
        self._longest_period = 0.0  # the longest period of any limit seen
        self.times = 0  # remembered now, of all users
        self.evicted = 0

    def __len__(self) -> int:
        """Users remembered, each once for each route."""
        return len(self._logs)

    def __repr__(self) -> str:
        return f"<RateLimiter: {len(self)} users, {self.times} times, {self.evicted} evicted>"

    def check(self, route: Route, tier: str, user: str, *, parts: int = 1) -> RateDecision | None:
        """Decide on a request, and count it if it is admitted. None: no limit applies.

        `parts`: how many instances divide each limit among themselves; this one has its part, rounded down, and one
        request at least.
        """
        spec = self.limits_for(route, tier)
        return None if spec is None else self.decide(spec, log_key(route, user), parts=parts)

    def decide(self, spec: TierLimits, key: str | bytes, *, parts: int = 1) -> RateDecision:
        """What `check` says, by limits and a user's key that were found before."""
        now = self._clock()
        log = self._log_for(key, spec, now)
        # Some limit is above MAX_EXACT_QUOTA: exact times would take too much memory for each user.
        if isinstance(log, MixedLog):
            return self._decide_mixed(log, spec, now, parts)
        exact = spec.exact if parts == 1 else [(divide_quota(quota, parts), period) for quota, period in spec.exact]
        # The usual case: exact limits only, one array, one look at its end.
        wait = _seconds_until_room(log, exact, now)
        if wait == 0.0:
            # Only what was admitted counts: whoever keeps trying is not locked out for longer.
            self._append(log, spec, now)
        standings = _standings(log, exact, now, refused=wait > 0.0)
        return RateDecision(spec.headers, standings, retry_after=wait, enforced=spec.enforced, at=now)

    def count(self, route: Route, tier: str, user: str) -> float:
        """Count a request that was admitted elsewhere, as of now; the time by which `refund` finds it."""
        spec = self.limits_for(route, tier)
        now = self._clock()
        if spec is None:
            return now
        log = self._log_for(log_key(route, user), spec, now)
        if isinstance(log, MixedLog):
            before = len(log)
            self._append_mixed(log, spec, now)
            self.times += len(log) - before
        else:
            self._append(log, spec, now)
        return now

    def refund(self, route: Route, user: str, decision: RateDecision) -> None:
        """Uncount a request that was admitted here, and refused elsewhere before the app saw it."""
        log = self._logs.get(log_key(route, user))
        if log is None or not decision.allowed:
            return
        times = log.times if isinstance(log, MixedLog) else log
        if isinstance(log, MixedLog):
            for coarse in log.coarse:
                coarse.refund(decision.decided_at, self._clock())
        # Found by its time: two requests of the same instant are interchangeable.
        place = bisect_left(times, decision.decided_at)
        if place < len(times) and times[place] == decision.decided_at:
            del times[place]
            self.times -= 1

    def _append(self, log: array[float], spec: TierLimits, now: float) -> None:
        log.append(now)
        self.times += 1
        if len(log) > spec.keep + sliding_log.TRIM_SLACK:
            self._trim_log(log, spec.keep)

    def _append_mixed(self, log: MixedLog, spec: TierLimits, now: float) -> None:
        if spec.keep:
            log.times.append(now)
            sliding_log.trim_times(log.times, spec.keep)
        for coarse in log.coarse:
            coarse.add(now)

    def _decide_mixed(self, log: MixedLog, spec: TierLimits, now: float, parts: int) -> RateDecision:
        before = len(log)
        exact = [(divide_quota(quota, parts), period) for quota, period in spec.exact]
        quotas = [divide_quota(coarse.quota, parts) for coarse in log.coarse]
        # Ask all limits first, count afterwards: a request counts against all or none.
        pairs = list(zip(log.coarse, quotas, strict=True))
        waits = [coarse.seconds_until_room(now, quota) for coarse, quota in pairs]
        wait = max(_seconds_until_room(log.times, exact, now), *waits)
        if wait == 0.0:
            self._append_mixed(log, spec, now)
        standings = _standings(log.times, exact, now, refused=wait > 0.0)
        for (coarse, quota), own_wait in zip(pairs, waits, strict=True):
            count, reset = coarse.standing(now, quota)
            standings.append((0, own_wait) if own_wait > 0.0 else (quota - count, reset))
        self.times += len(log) - before
        ordered = [standings[place] for place in spec.order]
        return RateDecision(spec.headers, ordered, retry_after=wait, enforced=spec.enforced, at=now)

    def limits_for(self, route: Route, tier: str) -> TierLimits | None:
        """The limits that apply, compiled; the same object until a reload changes them. None: no limit applies."""
        # Compared by identity: a reload makes new objects, and comparing them costs next to nothing for each request.
        known = self._compiled.get(route.name)
        if known is None or known[0] is not route.rate_limit or known[1] is not route.enforce:
            known = self._compiled[route.name] = (route.rate_limit, route.enforce, {})
        specs = known[2]
        if tier not in specs:
            rates = route.limits_for(tier)
            specs[tier] = TierLimits(route, rates) if rates else None
            self._longest_period = max([self._longest_period, *(rate.period for rate in rates)])
        return specs[tier]

    def _log_for(self, key: str | bytes, spec: TierLimits, now: float) -> UserLog:
        log = self._logs.get(key)
        if log is None:
            log = sliding_log.convert_log(sliding_log.new_times(), spec.keep, spec.coarse)
            self._logs[key] = log
            self._evict_logs(now)
            return log
        # In the order of last use, from which `_evict_logs` takes the oldest.
        self._logs.move_to_end(key)
        # The limits have changed since this user was last seen.
        if not (log.has_limits(spec.coarse) if isinstance(log, MixedLog) else not spec.coarse):
            before = len(log)
            log = self._logs[key] = sliding_log.convert_log(log, spec.keep, spec.coarse)
            self.times += len(log) - before
        return log

    def _trim_log(self, log: array[float], keep: int) -> None:
        before = len(log)
        sliding_log.trim_times(log, keep, slack=0)
        self.times += len(log) - before

    def _evict_logs(self, now: float) -> None:
        """Called for each new user: drops up to two whose windows have passed, so that these cannot pile up."""
        logs = self._logs
        for _ in range(2):
            key, log = next(iter(logs.items()))
            if len(logs) == 1 or now - sliding_log.last_time(log) < self._longest_period:
                break
            self.times -= len(log)
            del logs[key]
        # Beyond the bounds even logs that still count go, and are reported: somebody may be making names up.
        while len(logs) > self._capacity or (self.times > self._most_times and len(logs) > 1):
            _, log = logs.popitem(last=False)
            self.times -= len(log)
            if now - sliding_log.last_time(log) < self._longest_period:
                self.evicted += 1


def divide_quota(quota: int, parts: int) -> int:
    """One instance's part of a limit, rounded down, and one at least; of nothing, nothing."""
    return max(1, quota // parts) if quota else 0


def log_key(route: Route, user: str) -> str | bytes:
    """A long name is kept as its hash, so that a user with a name of a kilobyte takes no more memory than others."""
    key = f"{route.name}\n{user}"
    if len(user) <= MAX_PLAIN_USER_LENGTH and user.isascii():
        return key
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _seconds_until_room(times: array[float], exact: list[tuple[int, float]], now: float) -> float:
    """Seconds until every exact limit, (quota, period), has room; 0 if all have."""
    wait = 0.0
    size = len(times)
    for quota, period in exact:
        if size >= quota:
            if not quota:
                return period  # a quota of 0 never admits
            left = period - (now - times[-quota])
            if left > wait:
                wait = left
    return wait


def _standings(
    times: array[float], exact: list[tuple[int, float]], now: float, *, refused: bool
) -> list[tuple[int, float]]:
    """(remaining, seconds to reset) of each exact limit."""
    standings = []
    size = len(times)
    for quota, period in exact:
        # A limit that refuses states the time until it admits again, not until its oldest request leaves.
        if refused and size >= quota and (not quota or now - times[-quota] < period):
            standings.append((0, period - (now - times[-quota]) if quota else period))
            continue
        # Requests within the window are at the end of the log: `first` is the oldest of them that counts.
        first = bisect_right(times, now - period, max(0, size - quota))
        reset = times[first] + period - now if first < size else 0.0
        standings.append((quota - (size - first), reset))
    return standings
