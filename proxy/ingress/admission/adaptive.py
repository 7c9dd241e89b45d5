"""The adaptive concurrency limit: how many requests the app can work on at once, learnt from how long it takes.

Theory. Little's law ties the requests in flight to throughput and latency: once an app is saturated, more requests in
flight add no throughput, only latency. So latency measured against what the app takes without load tells when the
limit is too high. Netflix's concurrency-limits calls the ratio of the two the gradient (Gradient2Limit,
https://github.com/Netflix/concurrency-limits), and Envoy's adaptive concurrency filter uses the same idea. For each
route two running geometric means are kept, which a few slow requests move little: what the app takes now, and the least
it takes, which is what it takes with hardly anything else to do. Their ratio, over all routes as they are used, gives

    target = 1 + (tolerance - 1) / 2
    limit  = clamp(limit × clamp(target / ratio, 0.5, 1) + grow, floor, max)
    grow   = √limit / 2 if the limit was reached, limit / 4 if it was reached without a sample, else 0
    floor  = half of what was in flight when the app was first slowed, and never below min

The limit settles where growth and gradient balance, a little above `target` and below `tolerance`.

Slower does not mean overloaded yet: a route's mix may have changed, or what the app waits for may have become slow. A
gradient alone would then throttle for nothing. So a limit that falls is an experiment (`Trial`):

    state       event                                       next state
    no trial    the ratio is above the target               before: answers at the present load are measured
    before      enough answers                              falling: the limit goes down to the floor
    falling     requests at the floor are clearly quicker   proven; a new trial, with half the floor
    falling     they are not                                no trial: load is not the cause; the means are learnt anew,
                                                            and the limit goes back
    any         the ratio is below the target again         no trial

Until one has shown that load is the cause, nobody is refused but by a full queue of a calm app (`overloaded`).

What else is known to go wrong with such limits, and what is done about it:

- If requests take 5 ms one time and 500 ms another, most look slow beside the quickest. So the least is a mean too: of
  requests that found the app idle, or nearly so.
- An app that has become slower for good would keep the limit at its minimum for as long as the load lasts. So after
  MAX_STEPS_AT_MINIMUM steps at the minimum, what is taken there counts as the least, unless an idle app was seen
  lately.
- A least that was learnt under load lets the limit drift up. So after PROBE_SECONDS at the limit without a pause the
  limit is halved for one step: if the app is as quick then as before, nothing was lost, else a truer least was found.
- A quiet app tells nothing about its limits: the limit does not grow until it is reached.
- Requests that take a minute give no samples for a minute: a limit that is reached grows without them, unless those in
  flight are late already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import exp, log, sqrt

from proxy.policy.schema import AdaptiveLimit

MIN_STEP_SECONDS = 0.1  # between two changes of the limit, at least
MIN_STEP_SAMPLES = 10  # and that many samples; fewer do after SLOW_STEP
MAX_STEP_SECONDS = 1.0
MAX_STEPS_AT_MINIMUM = 5
PROBE_SECONDS = 15.0
CALM_MEMORY_SECONDS = 60.0  # for which it is known what an idle app takes
MIN_SECONDS = 0.001  # below, it is clocks and schedulers that are measured

MIN_TRIAL_REQUESTS = 10  # that a trial is judged by, at least
MAX_TRIAL_REQUESTS = 60  # and at most: what so many requests do not show is not so
MAX_STANDARD_ERROR = 0.1  # of a mean, as a share of it, that is close enough
# What requests at the floor may take, as a share of what they took before, if load is the cause. An app with n workers
# and 1.5 n requests takes 0.67 of it with half of them.
MAX_SHARE_IF_OVERLOADED = 0.8

FAST_WEIGHT = 0.1  # of a sample in the mean of the present
SLOW_WEIGHT = 0.02  # and in the means that the least is found from


class _RoutePace:
    """How long the app takes over a route's requests, as logarithms of seconds.

    `fast_mean` follows the present, `slow_mean` the last minutes, and `least_mean` is what the app takes without load.
    `variance` is how much single requests differ by nature.
    """

    __slots__ = ("calm_at", "calm_samples", "count", "fast_mean", "least_mean", "slow_mean", "variance")

    def __init__(self, first: float) -> None:
        self.fast_mean = self.slow_mean = self.least_mean = first
        self.variance = 0.0
        self.count = 0
        self.calm_samples = 0  # samples that found the app idle
        self.calm_at = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        # 1 / count makes the first samples plain averages: else the very first one would weigh for a long time.
        self.variance += ((value - self.slow_mean) ** 2 - self.variance) * max(SLOW_WEIGHT, 1 / self.count)
        self.fast_mean += (value - self.fast_mean) * max(FAST_WEIGHT, 1 / self.count)
        self.slow_mean += (value - self.slow_mean) * max(SLOW_WEIGHT, 1 / self.count)
        # The slow mean, not a single sample: one lucky request must not make all others look slow.
        self.least_mean = min(self.least_mean, self.slow_mean)

    @property
    def slowdown(self) -> float:
        """How many times as long as the least the app takes now, as far as that is more than chance.

        A running mean with weight w of values with a standard deviation of s deviates by s·√(w / (2 - w)), and by twice
        that now and then.
        """
        chance = 2 * sqrt(self.variance * FAST_WEIGHT / (2 - FAST_WEIGHT))
        return exp(max(0.0, self.fast_mean - self.least_mean - chance))

    def add_calm(self, value: float, at: float) -> None:
        self.calm_samples += 1
        self.calm_at = at
        self.least_mean += (value - self.least_mean) * max(SLOW_WEIGHT, 1 / self.calm_samples)


class Trial:
    """An experiment: do fewer requests in flight make the app quicker?

    Before: answers while `start` requests are in flight. Then the limit falls (`limit_falls`). After: requests that
    enter while no more than `floor` are in flight. All of these count, answered or not, since of a few slow requests
    and many quick ones the quick ones are answered first. What is known of their mean can therefore only grow, and that
    load is not the cause is known before they are answered.
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
        self._before_sum = self._squares = 0.0  # seconds, and their squares, of the answers
        self._spent = 0.0  # seconds, by those after that are not inside the app now
        self._inside = 0
        self._entered_sum = 0.0  # of the times at which those inside entered

    def __repr__(self) -> str:
        state = f"{self._done} of {self._after} after" if self.limit_falls else f"{self._before} before"
        return f"<Trial from {self.start:.0f} to {self.floor:.0f}: {state}>"

    def add_before(self, seconds: float) -> None:
        """Add a request that was answered before the limit falls."""
        self._before += 1
        self._before_sum += seconds
        self._squares += seconds * seconds
        # Enough as soon as the mean is known closely, or after as many as it is worth waiting for.
        enough = self._before >= MIN_TRIAL_REQUESTS and self._error(self._before) < MAX_STANDARD_ERROR
        self.limit_falls = enough or self._before >= MAX_TRIAL_REQUESTS

    def admits(self, in_flight: int) -> bool:
        """Count a request that enters now among those after, if it belongs there."""
        if not self.limit_falls or in_flight > self.floor or self._after >= MAX_TRIAL_REQUESTS:
            return False
        # Counted when it enters, not when it is answered: see the class's docstring.
        self._after += 1
        return True

    def enter(self, now: float) -> None:
        self._inside += 1
        self._entered_sum += now

    def leave(self, entered: float, now: float) -> None:
        """The request waits for a call out, or was answered."""
        self._inside -= 1
        self._entered_sum -= entered
        self._spent += now - entered

    def finish(self, seconds: float | None, spent: float) -> None:
        """The request was answered after so many seconds of the app's own. None: it was not, so it does not count."""
        if seconds is None:
            self._after -= 1
            self._spent -= spent
            return
        self._done += 1
        self._squares += seconds * seconds

    @property
    def is_quick_again(self) -> bool:
        """Whether enough were answered with few in flight to believe that the app is as quick as it was."""
        return self._done >= MIN_TRIAL_REQUESTS

    def verdict(self, now: float) -> bool | None:
        """Whether load is the cause of the slowness; None while that cannot be told.

        That it is needs three standard errors, since the data are looked at again and again; that it is not, one.
        """
        if not self.limit_falls or self._after < MIN_TRIAL_REQUESTS:
            return None
        # Seconds so far, also of requests that are still inside: their mean can only grow from here.
        least = (self._spent + self._inside * now - self._entered_sum) / self._after
        share = least / max(self._before_sum / self._before, MIN_SECONDS)
        error = sqrt(self._error(self._before) ** 2 + (share * self._error(self._after)) ** 2)
        # They have taken too long already for load to be the cause, whatever the rest takes.
        if share >= MAX_SHARE_IF_OVERLOADED + error:
            return False
        # That load is the cause can only be said with all answers, since the slow ones come last.
        if self._done < self._after:
            return None
        if share <= MAX_SHARE_IF_OVERLOADED - 3 * error:
            return True
        return False if self._after >= MAX_TRIAL_REQUESTS else None

    def _error(self, answers: int) -> float:
        """The standard error of the mean of so many answers, as a share of it."""
        known = self._before + self._done
        mean = self._before_sum / self._before
        # The variance of all answers together, at least 0.02, since a few equal samples prove nothing.
        varied = self._squares / known / mean**2 - 1 if mean else 0.0
        return sqrt(max(varied, 0.02) / answers)


class GradientLimiter:
    """The adaptive limit. The module's docstring has its formulas and the states of its trials.

    - `limit`: requests in flight at the app, at most.
    - `overloaded`: load has been shown to slow the app, and the limit is still reached.
    """

    def __init__(self, policy: AdaptiveLimit, clock: Callable[[], float]) -> None:
        self._min_limit = float(policy.min)
        self._max_limit = float(max(policy.min, policy.max))
        self._calm_in_flight = max(1, policy.min // 2)  # with so many in flight the app counts as idle
        self._clock = clock
        self._target = 1 + (policy.tolerance - 1) / 2
        # Halfway between both ends on a logarithmic scale, since the limit grows and falls by factors.
        self._limit = sqrt(self._min_limit * self._max_limit)
        self._paces: dict[str, _RoutePace] = {}  # by route name, so as many as the policy has routes
        self._ratio_sum = 0.0  # since the last step
        self._samples = 0
        self._was_reached = False
        self._at_minimum = 0  # steps in a row
        self._stepped_at = clock()
        self._busy_since: float | None = None
        self._before_probe: float | None = None
        self._most_in_flight = 0  # of the samples since the last step
        self._trial: Trial | None = None
        self._load_proven = False  # load was shown to be the cause of the present slowness
        self.overloaded = False

    def __repr__(self) -> str:
        return f"<Gradient: {self.limit}{', overloaded' if self.overloaded else ''}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def note_reached(self) -> None:
        """Note that a request found no place."""
        self._was_reached = True

    def join_trial(self, in_flight: int) -> Trial | None:
        """The trial that a request which enters now takes part in; it must be told what becomes of the request."""
        return self._trial if self._trial is not None and self._trial.admits(in_flight) else None

    def add_sample(self, route_name: str, seconds: float, in_flight: int) -> None:
        """Add a request that took the app itself so many seconds, and began as the `in_flight`-th in flight."""
        value = log(max(seconds, MIN_SECONDS))
        pace = self._paces.get(route_name)
        if pace is None:
            pace = self._paces[route_name] = _RoutePace(value)
        pace.add(value)
        if in_flight <= self._calm_in_flight:
            pace.add_calm(value, self._clock())
        if self._trial is not None and not self._trial.limit_falls:
            self._trial.add_before(seconds)
        self._most_in_flight = max(self._most_in_flight, in_flight)
        self._ratio_sum += pace.slowdown
        self._samples += 1

    def step(self, ages: Callable[[], Iterable[tuple[str, float]]]) -> bool:
        """Change the limit if it is time to; whether it was.

        `ages` gives route and seconds so far of the requests in flight. It is asked for if samples are few.
        """
        now = self._clock()
        # With few samples a step takes longer, so that each rests on some data.
        if now - self._stepped_at < (MIN_STEP_SECONDS if self._samples >= MIN_STEP_SAMPLES else MAX_STEP_SECONDS):
            return False
        if self._samples < MIN_STEP_SAMPLES and self._was_reached:
            # Without answers, requests that are overdue already tell that the app is slow.
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
        if self._before_probe is not None:  # the probe's one step is over
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
            # By half at most in one step: the samples of one step may be few and unlucky.
            limit *= min(1.0, max(0.5, self._target / ratio))
            if self._was_reached:
                # Without samples nothing says that the app is slow, so the limit grows faster.
                limit += sqrt(limit) / 2 if self._samples else limit / 4
        # Load that does not reach the limit any more cannot be what slows the app.
        self._load_proven = self._load_proven and self._was_reached
        if self._trial is not None and self._trial.limit_falls:
            limit = self._judge_trial(max(self._trial.floor, limit), now)
        # Once overloaded, it stays so while the limit is reached, even if the app is quick at the lower limit.
        self.overloaded = self._was_reached and self._load_proven and (slowed or self.overloaded)
        self._limit = min(self._max_limit, max(self._min_limit, limit))
        self._relearn_least(now, slowed=slowed and self._limit < self._min_limit + 1)
        self._probe_lower_limit(now)

    def _begin_trial(self, limit: float) -> float:
        """Begin a trial; the limit from which it goes down, since one above what is in flight would change nothing."""
        if not self._was_reached:
            limit = min(limit, float(max(self._most_in_flight, 1)))
        self._start_trial(limit)
        return limit

    def _start_trial(self, limit: float) -> None:
        self._trial = Trial(limit, max(self._min_limit, limit / 2))

    def _judge_trial(self, limit: float, now: float) -> float:
        """Judge the trial, if it can be; the new limit."""
        trial = self._trial
        assert trial is not None
        helped = trial.verdict(now)
        if helped is None:
            return limit
        if helped:
            self._load_proven = True
            # Half as many made the app quicker: half of these may do so again.
            self._start_trial(limit)
            return limit
        self._trial = None
        self._load_proven = False
        # Load is not the cause, so what the app takes now is its normal pace.
        for pace in self._paces.values():
            pace.least_mean = pace.slow_mean = max(pace.fast_mean, pace.slow_mean)
        return 2 * trial.start  # what half as many did not change, twice as many may not change either

    def _relearn_least(self, now: float, *, slowed: bool) -> None:
        self._at_minimum = self._at_minimum + 1 if slowed else 0
        if self._at_minimum < MAX_STEPS_AT_MINIMUM:
            return
        self._at_minimum = 0
        for pace in self._paces.values():
            # If an idle app was seen lately, its least is known to be true.
            if now - pace.calm_at > CALM_MEMORY_SECONDS:
                pace.least_mean = pace.slow_mean = pace.fast_mean

    def _probe_lower_limit(self, now: float) -> None:
        if not self._was_reached or self._trial is not None:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        # Only under steady load: a pause shows by itself what an idle app takes.
        elif now - self._busy_since >= PROBE_SECONDS and self._samples:
            self._before_probe = self._limit
            self._limit = max(self._min_limit, self._limit / 2)
