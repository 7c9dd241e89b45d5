"""What is remembered of one user's requests on one route, so that limits can be exact.

A log has the times of the requests that were admitted, oldest first, as 8-byte floats. A limit of N in a period has
room exactly if the N-th last of them is a period old: one look, however many there are.

Limits above MAX_EXACT_QUOTA are kept by a `CoarseLog` each. It notes the time of every `step`-th request only, where
`step` is a hundredth of N, and counts each with the requests since the one before, its group. That can only count too
many, by less than `step`: never more than N are admitted, and at most 1 % of N is refused early.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import TypeAlias

MAX_EXACT_QUOTA = 1000
TRIM_SLACK = 16  # times that are kept beyond need, so that old ones are dropped several at once


def new_times(times: Iterable[float] = ()) -> array[float]:
    return array("d", times)


class CoarseLog:
    """The log of one limit above MAX_EXACT_QUOTA.

    - `marks`: when each group of requests was complete; `counts`: how many it has, which is `step` less what was
      refunded.
    - `is_uneven`: some group has less than `step`.
    - `partial`: requests since the last mark; `last`: the time of the last of them.
    """

    __slots__ = ("counts", "is_uneven", "last", "marks", "partial", "period", "quota", "step")

    def __init__(self, quota: int, period: float) -> None:
        self.quota = quota
        self.period = period
        self.step = quota // 100
        self.marks = new_times()
        self.counts = array("L")
        self.is_uneven = False
        self.partial = 0
        self.last = 0.0

    def seconds_until_room(self, now: float, quota: int) -> float:
        """Seconds until there is room, 0 if there is, for a quota of its own or a part of it."""
        # The request itself needs a place, and the group that is not complete yet counts in full.
        room = quota - 1 - self._current_partial(now)
        if room < 0:
            # The group alone fills this part; it counts as long as its last request does.
            return max(0.0, self.period - (now - self.last))
        groups = self._fitting_groups(room) if self.is_uneven else room // self.step
        if len(self.marks) <= groups:
            return 0.0
        return max(0.0, self.period - (now - self.marks[-(groups + 1)]))

    def _fitting_groups(self, room: int) -> int:
        """How many of the newest groups have no more than `room` requests in all."""
        for groups, count in enumerate(reversed(self.counts)):
            room -= count
            if room < 0:
                return groups
        return len(self.counts)

    def add(self, now: float) -> None:
        self.partial = self._current_partial(now) + 1
        self.last = now
        # The group is complete: one mark stands for all of it.
        if self.partial == self.step:
            self.partial = 0
            self.marks.append(now)
            self.counts.append(self.step)
            self._trim(TRIM_SLACK)

    def refund(self, at: float, now: float) -> None:
        """Uncount a request that was counted at that time.

        It is taken from the group that has it, never from a later one. If it is a period old it does not count any
        more, and nothing is taken.
        """
        if now - at >= self.period:
            return
        place = bisect_left(self.marks, at)
        # Not behind any mark: it is in the group that is not complete yet.
        if place == len(self.marks):
            self.partial = max(0, self.partial - 1)
            return
        self.counts[place] -= 1
        self.is_uneven = True
        left, after = self.counts[place], place + 1
        # Small neighbours are merged, so that refunds cannot make the log longer than its bound.
        if after < len(self.counts) and left + self.counts[after] <= self.step:
            self.counts[after] += left  # merged: counted a little longer than it must be, by less than `step` requests
            left = 0
        if not left:
            del self.marks[place], self.counts[place]

    def _trim(self, slack: int) -> None:
        """Drop groups that no window can reach. Two neighbours have more than `step` in all, hence twice as many."""
        keep = (2 if self.is_uneven else 1) * (self.quota // self.step + 1)
        if len(self.marks) > keep + slack:
            del self.marks[:-keep], self.counts[:-keep]
            self.is_uneven = min(self.counts) < self.step

    def standing(self, now: float, quota: int) -> tuple[int, float]:
        """How many requests count now, and the seconds until one of them does not any more."""
        first = bisect_right(self.marks, now - self.period)
        partial = self._current_partial(now)
        whole = sum(self.counts[first:]) if self.is_uneven else (len(self.marks) - first) * self.step
        # A group counts until its mark is a period old, which can be too many by less than a step.
        count = min(quota, whole + partial)
        oldest = self.marks[first] if first < len(self.marks) else self.last
        return count, max(0.0, oldest + self.period - now) if count else 0.0

    def entries(self) -> Iterator[tuple[float, int]]:
        """Times, and how many requests each stands for, oldest first."""
        yield from zip(self.marks, self.counts, strict=True)
        if self.partial:
            yield self.last, self.partial

    def load_entries(self, entries: Iterable[tuple[float, int]]) -> None:
        """Take over the entries of another log."""
        for time, count in entries:
            # Entries of a log with another step are grouped anew by this one's.
            whole, self.partial = divmod(self.partial + count, self.step)
            self.marks.extend([time] * min(whole, self.quota))
            self.counts.extend([self.step] * min(whole, self.quota))
            self.last = time
        self._trim(0)

    def _current_partial(self, now: float) -> int:
        return self.partial if now - self.last < self.period else 0


class MixedLog:
    """The logs of a user who has at least one limit above MAX_EXACT_QUOTA. `times` serves the exact ones."""

    __slots__ = ("coarse", "times")

    def __init__(self, times: array[float], coarse: tuple[CoarseLog, ...]) -> None:
        self.times = times
        self.coarse = coarse

    def has_limits(self, limits: tuple[tuple[int, float], ...]) -> bool:
        """Whether it was made for these (quota, period)."""
        return tuple((log.quota, log.period) for log in self.coarse) == limits

    def __len__(self) -> int:
        return len(self.times) + sum(len(log.marks) for log in self.coarse)


UserLog: TypeAlias = "array[float] | MixedLog"  # array cannot be subscripted before Python 3.12


def last_time(log: UserLog) -> float:
    """When the user was last admitted; minus infinity if never."""
    if isinstance(log, MixedLog):
        return max([log.times[-1] if log.times else float("-inf"), *(_last_of_coarse(coarse) for coarse in log.coarse)])
    return log[-1] if log else float("-inf")


def convert_log(log: UserLog, keep: int, coarse: tuple[tuple[int, float], ...]) -> UserLog:
    """The same counts for other limits: `keep` times for exact ones, a log for each (quota, period) above.

    What the old log did not need to remember is not known: a limit that both admits more and looks back longer than any
    before it starts with what there is.
    """
    old = log.coarse if isinstance(log, MixedLog) else ()
    times = log.times if isinstance(log, MixedLog) else log
    if old and len(times) < keep:
        # The smallest step has the most precise times.
        times = _restore_older_times(min(old, key=lambda one: one.step), times, keep)
    trim_times(times, keep, slack=0)
    if not coarse:
        return times
    logs = []
    for quota, period in coarse:
        new = CoarseLog(quota, period)
        # A log of the same period knows best; else the one that looks back for longest; else the exact times.
        same = [one for one in old if one.period == period]
        if source := same or sorted(old, key=lambda one: -one.period):
            new.load_entries(source[0].entries())
        else:
            new.load_entries((time, 1) for time in times)
        logs.append(new)
    return MixedLog(times, tuple(logs))


def _restore_older_times(log: CoarseLog, times: array[float], keep: int) -> array[float]:
    """`times`, with what a coarse log knows from before them: the same requests, a little later than they were."""
    known = [time for time, count in log.entries() for _ in range(count)][-keep - TRIM_SLACK :]
    latest = times[0] if times else float("inf")
    return new_times([*(min(time, latest) for time in known[: len(known) - len(times)]), *times])


def trim_times(times: array[float], keep: int, *, slack: int = TRIM_SLACK) -> None:
    """Drop the oldest times beyond `keep`, several at once."""
    if len(times) > keep + slack:
        del times[: len(times) - keep]


def _last_of_coarse(log: CoarseLog) -> float:
    return max(log.marks[-1] if log.marks else float("-inf"), log.last if log.partial else float("-inf"))
