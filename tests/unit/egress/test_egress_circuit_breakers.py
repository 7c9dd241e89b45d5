"""The breakers of one upstream: each judges its own kind of calls, and together they have one state."""

from proxy.egress.circuit_breaker import MAX_BREAKERS, Breaker, UpstreamBreakers
from proxy.policy import schema


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def made(clock, reported=None, **rule):
    return UpstreamBreakers(
        "openai",
        schema.Breaker(**{"min_calls": 2, **rule}),
        clock=clock,
        on_change=lambda what, state, why, worst: reported.append((what, state)) if reported is not None else None,
    )


def fails(breakers, *kind, times=2):
    for _ in range(times):
        breaker = breakers.breaker_of(*kind)
        breaker.report(breaker.admit(), ok=False)


def test_calls_are_judged_with_their_like_and_told_as_one():
    reported = []
    breakers = made(Clock(), reported)
    fails(breakers, "chat", "gpt-4o")
    assert breakers.breaker_of("chat", "gpt-4o").admit() is None
    for other in (("chat", "gpt-4o-mini"), ("embeddings", "small"), ("chat", None)):
        assert breakers.breaker_of(*other).admit() is not None
    assert (breakers.state, breakers.reason) == ("open", "2 of the last 2 calls failed (chat with gpt-4o)")
    assert breakers.not_closed() == {"chat with gpt-4o": "open"}
    assert reported == [("chat with gpt-4o", "open")]
    assert repr(breakers) == "<Breaker openai: open, 2 of 2 failed>"


def test_the_state_is_the_worst_and_the_reason_says_of_what():
    clock = Clock()
    breakers = made(clock, open=30.0)
    fails(breakers, "chat", "a")
    clock.now += 20
    fails(breakers, "embeddings", "b")
    assert (breakers.since, breakers.retry_after) == (1000.0, 10.0)
    assert breakers.reason.endswith("(chat with a, and 1 more)")
    clock.now += 10
    assert (breakers.state, breakers.not_closed()) == (
        "open",
        {"chat with a": "half-open", "embeddings with b": "open"},
    )
    probe = breakers.breaker_of("chat", "a").admit()
    probe.breaker.report(probe, ok=True)
    assert breakers.not_closed() == {"embeddings with b": "open"}
    clock.now += 20
    probe = breakers.breaker_of("embeddings", "b").admit()
    assert breakers.state == "half-open"
    probe.breaker.report(probe, ok=True)
    assert (breakers.state, breakers.reason) == ("closed", "the probe succeeded (embeddings with b)")


def test_what_does_not_count_passes_until_an_operator_says_otherwise():
    breakers = made(Clock())
    uncounted = breakers.breaker_of(None, None, counts=False)
    for _ in range(9):
        uncounted.report(uncounted.admit(), ok=False)
    assert (breakers.state, breakers.counts()) == ("closed", (0, 0))
    breakers.force("open")
    assert uncounted.admit() is None


def test_an_operators_word_is_for_all_calls_and_told_once():
    reported = []
    breakers = made(Clock(), reported)
    fails(breakers, "chat", "a")
    reported.clear()
    breakers.force("open")
    for kind in (("chat", "a"), ("chat", "new")):
        assert (breakers.breaker_of(*kind).admit(), breakers.breaker_of(*kind).forced) == (None, "open")
    assert (breakers.state, breakers.reason, breakers.not_closed()) == ("open", "an operator opened it", {})
    breakers.force("closed")
    fails(breakers, "chat", "a")
    fails(breakers, "chat", "newer")
    assert breakers.state == "closed"
    breakers.force(None)
    assert (breakers.state, breakers.reason) == ("closed", "an operator gave it back")
    assert reported == [("", "open"), ("", "closed"), ("", "closed")]
    fails(breakers, "chat", "a")
    assert breakers.state == "open"


def test_an_attempt_that_an_operator_cut_off_is_not_repeated():
    breakers = made(Clock())
    admission = breakers.breaker_of("chat", "a").admit()
    breakers.force("open")
    assert not admission.breaker.still_admits(admission)


def test_models_without_end_are_bounded_and_the_open_ones_kept():
    breakers = made(Clock())
    fails(breakers, "chat", "bad")
    for number in range(3 * MAX_BREAKERS):
        breakers.breaker_of("chat", f"model-{number}").admit()
    assert len(breakers._breakers) == MAX_BREAKERS
    assert breakers.breaker_of("chat", "bad").admit() is None


def half_open(clock, **rule):
    breaker = Breaker("openai", schema.Breaker(min_calls=1, open=30.0, **rule), clock=clock)
    breaker.report(breaker.admit(), ok=False)
    clock.now += 30
    return breaker


def test_a_slow_probe_does_not_hold_recovery():
    clock = Clock()
    breaker = half_open(clock)
    slow = breaker.admit()
    assert (slow is not None, breaker.admit()) == (True, None)
    clock.now += 1
    quick = breaker.admit()
    assert (quick is not None, breaker.admit()) == (True, None)
    breaker.report(quick, ok=True)
    assert breaker.state == "closed"
    breaker.report(slow, ok=False)  # it began before that
    assert (breaker.state, breaker.counts()) == ("closed", (0, 0))


def test_probes_that_hang_are_five_at_most():
    clock = Clock()
    breaker = half_open(clock)
    under_way = 0
    for _ in range(60):
        under_way += breaker.admit() is not None
        clock.now += 1
    assert under_way == 5


def test_what_nobody_calls_any_more_is_not_half_open_for_ever():
    clock = Clock()
    breaker = half_open(clock, window=60.0)
    assert breaker.state == "half-open"
    clock.now += 59
    assert breaker.state == "half-open"
    clock.now += 1
    assert (breaker.state, breaker.reason) == ("closed", "nothing has been asked of it since")
