"""A limit of N in a period admits N in every window of that length and never N+1; nothing is refused in vain."""

import random
from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.ingress.ratelimit.limiter import RateLimiter
from proxy.policy.schema import Match, Route
from proxy.policy.values import Rate


class Oracle:
    """The rule itself, by brute force: all admitted times are kept for ever."""

    def __init__(self):
        self.admitted = []

    def room(self, now, rates):
        return all(sum(now - rate.period < time for time in self.admitted) < rate.count for rate in rates)


def route_of(*rates):
    return Route("r", match=Match("/*"), rate_limit={"*": rates})


# Quarters are exact in binary, so that the oracle's sums are too; 0 lets several come at one moment.
GAPS = st.lists(st.integers(0, 24).map(lambda quarters: quarters / 4), min_size=1, max_size=120)
RATES = st.lists(
    st.builds(Rate, st.integers(1, 12), st.integers(1, 40).map(float)),
    min_size=1,
    max_size=3,
    unique_by=lambda r: r.period,
)


@settings(max_examples=300, deadline=None)
@given(gaps=GAPS, rates=RATES)
def test_every_window_has_at_most_n_and_nothing_is_refused_that_had_room(gaps, rates):
    now = 1000.0
    limiter, oracle, route = RateLimiter(lambda: now), Oracle(), route_of(*rates)
    for gap in gaps:
        now += gap
        decision = limiter.check(route, "any", "ada")
        assert decision.allowed == oracle.room(now, rates)
        if decision.allowed:
            oracle.admitted.append(now)
            assert decision.retry_after == 0
        else:
            later = now + decision.retry_after
            assert oracle.room(later, rates), "Retry-After is long enough"
            assert not oracle.room(later - 0.25, rates), "and no longer than it must be"
        for item, rate in zip(decision.items, rates, strict=True):
            count = sum(now - rate.period < time for time in oracle.admitted)
            assert item.remaining == rate.count - count


@settings(max_examples=150, deadline=None)
@given(gaps=GAPS, before=RATES, after=RATES, cut=st.integers(0, 100))
def test_a_reload_forgets_no_count_that_the_old_limits_had_to_remember(gaps, before, after, cut):
    now = 1000.0
    limiter, oracle = RateLimiter(lambda: now), Oracle()
    # What the old limits did not have to remember cannot be known: the new look back no further.
    longest = max(rate.period for rate in before)
    most = max(rate.count for rate in before)
    after = [Rate(min(rate.count, most), min(rate.period, longest)) for rate in after]
    for at, gap in enumerate(gaps):
        now += gap
        rates = before if at < cut else after
        decision = limiter.check(route_of(*rates), "any", "ada")
        assert decision.allowed == oracle.room(now, rates)
        if decision.allowed:
            oracle.admitted.append(now)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 2)), max_size=100))
def test_what_is_given_back_never_counted_and_users_do_not_count_for_each_other(steps):
    now = 0.0
    rate = Rate(3, 10.0)
    limiter, route = RateLimiter(lambda: now), route_of(rate)
    oracles = [Oracle() for _ in range(3)]
    for gap, shed, user in steps:
        now += gap
        decision = limiter.check(route, "any", str(user))
        assert decision.allowed == oracles[user].room(now, [rate])
        if decision.allowed and shed:
            limiter.refund(route, str(user), decision)
        elif decision.allowed:
            oracles[user].admitted.append(now)
    assert limiter.times <= sum(len(oracle.admitted) for oracle in oracles)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1001, 5000), seed=st.integers(0, 2**32))
def test_above_a_thousand_never_more_are_admitted_and_at_most_one_per_cent_early_is_refused(count, seed):
    now, arrivals = 0.0, random.Random(seed)
    limiter, route = RateLimiter(lambda: now), route_of(Rate(count, 100.0))
    admitted = []
    for _ in range(count * 2):
        now += arrivals.random() * 100.0 / count
        inside = len(admitted) - bisect_right(admitted, now - 100.0)
        if limiter.check(route, "any", "ada").allowed:
            assert inside < count
            admitted.append(now)
        else:
            assert inside >= count - count // 100


def test_past_its_capacity_the_longest_unseen_is_dropped_and_counted():
    now = 0.0
    limiter, route = RateLimiter(lambda: now, capacity=100), route_of(Rate(1, 3600.0))
    for user in range(100):
        now += 1
        assert limiter.check(route, "any", str(user)).allowed
    assert not limiter.check(route, "any", "0").allowed
    assert limiter.check(route, "any", "one more").allowed
    assert (len(limiter), limiter.evicted) == (100, 1)
    assert limiter.check(route, "any", "1").allowed, "it was the longest unseen"
    assert not limiter.check(route, "any", "0").allowed
