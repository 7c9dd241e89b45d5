"""What is given back late, or by the hundred, neither passes a limit above 1,000 nor uses it up."""

import random
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.ingress.ratelimit.limiter import RateLimiter
from proxy.policy.schema import Match, Route
from proxy.policy.values import Rate


def limited(count, period):
    return Route("r", match=Match("/*"), rate_limit={"*": (Rate(count, period),)})


def test_what_was_admitted_in_an_earlier_window_is_not_taken_from_this_one():
    now = 0.0
    limiter, route = RateLimiter(lambda: now), limited(2000, 1.0)
    waiting = [limiter.check(route, "any", "ada") for _ in range(19)]
    now = 5.0
    admitted = 0
    for early in waiting:
        admitted += limiter.check(route, "any", "ada").allowed
        limiter.refund(route, "ada", early)
    admitted += sum(limiter.check(route, "any", "ada").allowed for _ in range(3000))
    assert 1980 <= admitted <= 2000


def test_a_limit_that_was_wholly_given_back_is_whole_again():
    limiter, route = RateLimiter(lambda: 0.0), limited(2000, 60.0)
    for _ in range(5):
        for decision in [limiter.check(route, "any", "ada") for _ in range(1500)]:
            assert decision.allowed
            limiter.refund(route, "ada", decision)
    assert sum(limiter.check(route, "any", "ada").allowed for _ in range(3000)) >= 1980


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1001, 1300), seed=st.integers(0, 2**32), share=st.sampled_from([0.1, 0.5, 0.95]))
def test_never_more_than_n_whoever_gives_back_when_and_at_most_one_per_cent_early(count, seed, share):
    now, chance = 0.0, random.Random(seed)
    limiter, route = RateLimiter(lambda: now), limited(count, 100.0)
    admitted, held = [], []
    for _ in range(count * 3):
        now += chance.random() * 100.0 / count
        inside = sum(now - 100.0 < time for time in admitted[-2 * count :]) + sum(
            now - 100.0 < one.decided_at for one in held
        )
        decision = limiter.check(route, "any", "ada")
        if decision.allowed:
            assert inside < count
            (held.append if chance.random() < share else lambda one: admitted.append(one.decided_at))(decision)
        else:
            assert inside >= count - count // 100
        while held and chance.random() < 0.6:
            limiter.refund(route, "ada", held.pop(chance.randrange(len(held))))
    assert limiter.times <= 2 * (count // (count // 100) + 1) + 16


def test_a_name_of_a_kilobyte_costs_no_more_than_another():
    def cost(name):
        limiter, route = RateLimiter(lambda: 0.0), limited(5, 60.0)
        decision = limiter.check(route, "any", name)
        (key,) = limiter._logs
        limiter.refund(route, name, decision)
        assert limiter.times == 0
        return sys.getsizeof(key)

    assert cost("\U0001f600" * 256) < cost("a" * 40) < 110
    assert cost("b" * 256) < 110
