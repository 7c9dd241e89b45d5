"""How many requests the app can work on at once, found out from how long it takes over them.

Of each route two things are followed, as running geometric means, which a few slow requests move little:
what the app takes now, and the least it takes, which is what it takes with hardly anything else to do. The
ratio of the two, over all routes as they are used, tells how far the app is slowed by its own load:

    target = 1 + (tolerance - 1) / 2
    limit  = clamp(limit × clamp(target / ratio, 0.5, 1) + grow, floor, max)
    grow   = √limit / 2 where the limit was reached, limit / 4 where it was without a sample, else 0
    floor  = half of what was in flight when the app was first slowed, and never below min

The limit settles where growth and gradient balance, a little above `target` and below `tolerance`.

Slower is not yet overloaded: a route's mix may have changed, or what the app waits for has become slow. So a limit
that falls is an experiment (`Trial`). Where the app is still slowed at the floor, what requests take there is held
against what they took before it: with the half of them in flight, an overloaded app is quicker, and the floor is
halved for the next experiment. If it is not, load is not the cause: what is taken now counts as the least, and
the limit is what it was. Until one has shown that load is the cause nobody is refused but by a full queue of a
calm app (`overloaded`).

What else is known to go wrong with such limits, and what is done about it:

- Requests that take now 5 ms, now 500, look slowed beside the quickest of them. So the least is a mean too:
  of requests that found the app idle, or nearly so.
- An app that has become slower for good would keep the limit at its minimum while the load lasts. So after
  PINNED steps at the minimum, what is taken there counts as the least, unless an idle app was seen lately.
- A least learnt under load lets the limit drift up. So after PROBE seconds at the limit without a pause the
  limit is halved for one step: if the app is as quick then as before, nothing was lost, else a truer least
  was found.
- A quiet app tells nothing about its limits: the limit does not grow until it is reached.
- Requests that take a minute give no samples for a minute: a limit that is reached grows without them,
  unless those in flight are late already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import exp, log, sqrt

from proxy.policy.schema.server import AdaptiveLimit

MIN_STEP_SECONDS = 0.1  # seconds between two changes of the limit, at least
MIN_STEP_SAMPLES = 10  # and that many samples; fewer do after SLOW_STEP
MAX_STEP_SECONDS = 1.0
MAX_STEPS_AT_MINIMUM = 5
PROBE_SECONDS = 15.0
CALM_MEMORY_SECONDS = 60.0  # for so many seconds it is known what an idle app takes
MIN_SECONDS = 0.001  # seconds; below, clocks and schedulers are what is measured

MIN_TRIAL_REQUESTS = 10  # requests that an experiment is judged by, at least
MAX_TRIAL_REQUESTS = 60  # and at most: what so many do not show is not so
MAX_STANDARD_ERROR = 0.1  # the standard error of a mean that is close enough
MAX_SHARE_IF_OVERLOADED = (
    0.8  # what an experiment must show: an app with n workers and 1.5 n requests takes 0.67 with half of them
)

FAST_WEIGHT = 0.1  # weight of a sample in the mean of the present
SLOW_WEIGHT = 0.02  # and in those that the least is found from


class _RoutePace:
    """How a route does: logarithms of seconds. `squares` is how much they differ by nature: their variance."""

    __slots__ = ("calm_at", "calm_samples", "count", "fast_mean", "least_mean", "slow_mean", "variance")

    def __init__(self, first: float) -> None:
        self.fast_mean = self.slow_mean = self.least_mean = first
        self.variance = 0.0
        self.count = 0
        self.calm_samples = 0  # samples that found the app idle
        self.calm_at = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.variance += ((value - self.slow_mean) ** 2 - self.variance) * max(SLOW_WEIGHT, 1 / self.count)
        self.fast_mean += (value - self.fast_mean) * max(FAST_WEIGHT, 1 / self.count)
        self.slow_mean += (value - self.slow_mean) * max(SLOW_WEIGHT, 1 / self.count)
        self.least_mean = min(self.least_mean, self.slow_mean)

    @property
    def slowdown(self) -> float:
        """How many times as long as the least, as far as that is more than chance: a running mean with weight NOW of
        values that differ by s is off by s·√(NOW / (2 - NOW)), and twice that now and then."""
        chance = 2 * sqrt(self.variance * FAST_WEIGHT / (2 - FAST_WEIGHT))
        return exp(max(0.0, self.fast_mean - self.least_mean - chance))

    def add_calm(self, value: float, at: float) -> None:
        self.calm_samples += 1
        self.calm_at = at
        self.least_mean += (value - self.least_mean) * max(SLOW_WEIGHT, 1 / self.calm_samples)


class Trial:
    """Whether fewer requests in flight make the app quicker.

    Before: the answers while `start` are in flight. Then the limit `falls`, and after are those requests that enter
    while no more than `floor` are in flight, every one of them, answered yet or not: of a few long ones and many quick
    ones the quick are answered first. So what is known of their mean only grows (`_after_least`), and that load is
    not the cause is known before they are answered.
    """

    __slots__ = (
        "_after",
        "_before",
        "_before_sum",
        "_done",
        "_entered_sum",
        "_inside",
        "_spent",
        "_squares",
        "floor",
        "limit_falls",
        "start",
    )

    def __init__(self, start: float, floor: float) -> None:
        self.start = start
        self.floor = floor
        self.limit_falls = False
        self._before = self._after = self._done = 0  # requests
        self._before_sum = self._squares = 0.0  # seconds, and their squares, of answers before and after
        self._spent = 0.0  # by those after who are not inside the app now
        self._inside = 0
        self._entered_sum = 0.0  # when each of those inside entered

    def __repr__(self) -> str:
        state = f"{self._done} of {self._after} after" if self.limit_falls else f"{self._before} before"
        return f"<Trial from {self.start:.0f} to {self.floor:.0f}: {state}>"

    def add_before(self, seconds: float) -> None:
        """Of anybody, before the limit falls."""
        self._before += 1
        self._before_sum += seconds
        self._squares += seconds * seconds
        enough = self._before >= MIN_TRIAL_REQUESTS and self._error(self._before) < MAX_STANDARD_ERROR
        self.limit_falls = enough or self._before >= MAX_TRIAL_REQUESTS

    def admits(self, in_flight: int) -> bool:
        """Whether a request that enters now is one of those after."""
        if not self.limit_falls or in_flight > self.floor or self._after >= MAX_TRIAL_REQUESTS:
            return False
        self._after += 1
        return True

    def enter(self, now: float) -> None:
        self._inside += 1
        self._entered_sum += now

    def leave(self, entered: float, now: float) -> None:
        """For an outgoing call, or with its answer."""
        self._inside -= 1
        self._entered_sum -= entered
        self._spent += now - entered

    def finish(self, seconds: float | None, spent: float) -> None:
        """It was answered after so many seconds of the app's own; None where it was not, and then it never was one."""
        if seconds is None:
            self._after -= 1
            self._spent -= spent
            return
        self._done += 1
        self._squares += seconds * seconds

    @property
    def is_quick_again(self) -> bool:
        """Whether enough were answered with few in flight to believe that the app is as quick again as it was."""
        return self._done >= MIN_TRIAL_REQUESTS

    def verdict(self, now: float) -> bool | None:
        """None while it cannot be told. It is not the cause until that is shown: by three standard errors, as it is
        looked at again and again; that it is not, by one."""
        if not self.limit_falls or self._after < MIN_TRIAL_REQUESTS:
            return None
        least = (self._spent + self._inside * now - self._entered_sum) / self._after
        share = least / max(self._before_sum / self._before, MIN_SECONDS)
        error = sqrt(self._error(self._before) ** 2 + (share * self._error(self._after)) ** 2)
        if share >= MAX_SHARE_IF_OVERLOADED + error:
            return False
        if self._done < self._after:
            return None
        if share <= MAX_SHARE_IF_OVERLOADED - 3 * error:
            return True
        return False if self._after >= MAX_TRIAL_REQUESTS else None

    def _error(self, answers: int) -> float:
        """The standard error of a mean of so many, as a share of it."""
        known = self._before + self._done
        mean = self._before_sum / self._before
        varied = self._squares / known / mean**2 - 1 if mean else 0.0
        return sqrt(max(varied, 0.02) / answers)


class GradientLimiter:
    """The adaptive limit. `overloaded`: from when the app is slowed until the limit is no more reached."""

    def __init__(self, policy: AdaptiveLimit, clock: Callable[[], float]) -> None:
        self._min_limit = float(policy.min)
        self._max_limit = float(max(policy.min, policy.max))
        self._calm_in_flight = max(1, policy.min // 2)  # in flight, and the app counts as idle
        self._clock = clock
        self._target = 1 + (policy.tolerance - 1) / 2
        self._limit = sqrt(self._min_limit * self._max_limit)
        self._paces: dict[str, _RoutePace] = {}  # by route name: bounded as the policy is
        self._ratio_sum = 0.0  # of the ratios since the last step
        self._samples = 0
        self._was_reached = False
        self._at_minimum = 0  # steps in a row
        self._stepped_at = clock()
        self._busy_since: float | None = None
        self._before_probe: float | None = None
        self._most_in_flight = 0  # the most in flight of the samples since the last step
        self._trial: Trial | None = None
        self._load_proven = False  # load was shown to be the cause of what is slow now
        self.overloaded = False

    def __repr__(self) -> str:
        return f"<Gradient: {self.limit}{', overloaded' if self.overloaded else ''}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def note_reached(self) -> None:
        """A request found no place."""
        self._was_reached = True

    def join_trial(self, in_flight: int) -> Trial | None:
        """The experiment that a request which enters now is part of: tell it what becomes of that."""
        return self._trial if self._trial is not None and self._trial.admits(in_flight) else None

    def add_sample(self, route_name: str, seconds: float, crowd: int) -> None:
        """The app itself spent so many seconds on a request that began as the `crowd`-th of those in flight."""
        value = log(max(seconds, MIN_SECONDS))
        pace = self._paces.get(route_name)
        if pace is None:
            pace = self._paces[route_name] = _RoutePace(value)
        pace.add(value)
        if crowd <= self._calm_in_flight:
            pace.add_calm(value, self._clock())
        if self._trial is not None and not self._trial.limit_falls:
            self._trial.add_before(seconds)
        self._most_in_flight = max(self._most_in_flight, crowd)
        self._ratio_sum += pace.slowdown
        self._samples += 1

    def step(self, ages: Callable[[], Iterable[tuple[str, float]]]) -> bool:
        """Change the limit where it is time to; whether it was time.

        `ages` are route and seconds so far of the requests in flight, asked for where samples are few.
        """
        now = self._clock()
        if now - self._stepped_at < (MIN_STEP_SECONDS if self._samples >= MIN_STEP_SAMPLES else MAX_STEP_SECONDS):
            return False
        if self._samples < MIN_STEP_SAMPLES and self._was_reached:
            self._count_late_requests(ages())
        self._change_limit(self._ratio_sum / self._samples if self._samples else 1.0, now)
        self._stepped_at, self._ratio_sum, self._samples, self._was_reached, self._most_in_flight = (
            now,
            0.0,
            0,
            False,
            0,
        )
        return True

    def _count_late_requests(self, ages: Iterable[tuple[str, float]]) -> None:
        for route_name, age in ages:
            pace = self._paces.get(route_name)
            if pace is not None and (ratio := age / exp(pace.least_mean)) > self._target:
                self._ratio_sum += ratio
                self._samples += 1

    def _change_limit(self, ratio: float, now: float) -> None:
        limit = self._limit
        if self._before_probe is not None:  # the halved step is over
            limit, self._before_probe = self._before_probe, None
            self._busy_since = now
        slowed = ratio > self._target
        if not slowed:
            if self._trial is not None and self._trial.is_quick_again:
                self._load_proven = True
            self._trial = None
        elif self._trial is None:
            limit = self._begin_trial(limit)
        if self._trial is None or self._trial.limit_falls:
            limit *= min(1.0, max(0.5, self._target / ratio))
            if self._was_reached:
                limit += sqrt(limit) / 2 if self._samples else limit / 4
        self._load_proven = self._load_proven and self._was_reached
        if self._trial is not None and self._trial.limit_falls:
            limit = self._judge_trial(max(self._trial.floor, limit), now)
        self.overloaded = self._was_reached and self._load_proven and (slowed or self.overloaded)
        self._limit = min(self._max_limit, max(self._min_limit, limit))
        self._relearn_least(now, slowed=slowed and self._limit < self._min_limit + 1)
        self._probe_lower_limit(now)

    def _begin_trial(self, limit: float) -> float:
        """The limit from which it goes down: a higher one than what is in flight would change nothing."""
        if not self._was_reached:
            limit = min(limit, float(max(self._most_in_flight, 1)))
        self._start_trial(limit)
        return limit

    def _start_trial(self, limit: float) -> None:
        self._trial = Trial(limit, max(self._min_limit, limit / 2))

    def _judge_trial(self, limit: float, now: float) -> float:
        """The limit, once the experiment is over."""
        trial = self._trial
        assert trial is not None
        helped = trial.verdict(now)
        if helped is None:
            return limit
        if helped:
            self._load_proven = True
            self._start_trial(limit)
            return limit
        self._trial = None
        self._load_proven = False
        for pace in self._paces.values():
            pace.least_mean = pace.slow_mean = max(pace.fast_mean, pace.slow_mean)
        return 2 * trial.start  # what half of them did not change, twice as many may not either

    def _relearn_least(self, now: float, *, slowed: bool) -> None:
        self._at_minimum = self._at_minimum + 1 if slowed else 0
        if self._at_minimum < MAX_STEPS_AT_MINIMUM:
            return
        self._at_minimum = 0
        for pace in self._paces.values():
            if now - pace.calm_at > CALM_MEMORY_SECONDS:
                pace.least_mean = pace.slow_mean = pace.fast_mean

    def _probe_lower_limit(self, now: float) -> None:
        if not self._was_reached or self._trial is not None:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since >= PROBE_SECONDS and self._samples:
            self._before_probe = self._limit
            self._limit = max(self._min_limit, self._limit / 2)
