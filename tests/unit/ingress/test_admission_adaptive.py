"""The adaptive limit before a simulated app of 8 workers at 20 ms, which grows slower when crowded."""

from __future__ import annotations

import asyncio

import pytest
from admission_simulation import ADAPTIVE, OFF, App, Report, Scene, fixed, simulate

from proxy.ingress.admission.adaptive import GradientLimiter
from proxy.policy.schema import AdaptiveLimit, Overload, Route

CAPACITY = 400.0  # requests a second


def steady(overload: Overload, rate: float, seconds: float, **app: float) -> Report:
    async def run() -> Report:
        return await Scene(overload, App(**app)).load(rate, seconds)

    return simulate(run())


def test_at_three_times_capacity_goodput_and_latency_of_the_admitted_hold() -> None:
    unloaded = steady(OFF, CAPACITY * 0.1, 10.0)
    best = max(steady(fixed(limit), CAPACITY * 3, 8.0).goodput() for limit in (8, 10))
    flooded = steady(ADAPTIVE, CAPACITY * 3, 20.0)
    assert flooded.goodput() >= 0.85 * best
    assert flooded.percentile(0.95) <= 3 * unloaded.percentile(0.95)


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0])
def test_requests_that_differ_by_nature_are_not_mistaken_for_overload(spread: float) -> None:
    report = steady(ADAPTIVE, CAPACITY * 0.3 / 2.72 ** (spread**2 / 2), 60.0, spread=spread)
    assert report.shed.total() <= 0.001 * len(report.times)


@pytest.mark.parametrize("reported", [True, False], ids=["calls reported", "calls unseen"])
def test_a_route_whose_model_takes_a_minute_is_not_mistaken_for_overload(reported: bool) -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App())
        quick = asyncio.create_task(scene.load(40.0, 150.0))
        model = await scene.load(1.0, 90.0, Route("model"), model=60.0, reported=reported)
        assert not model.shed
        assert not (await quick).shed
        assert model.percentile(0.95) < 60.1

    simulate(run())


def test_a_burst_of_slow_model_calls_is_let_in_as_the_limit_grows() -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App())
        report = Report(100.0)
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(scene.request(report, Route("model"), model=60.0, reported=False))
        assert not report.shed
        assert max(report.times) < 75.0

    simulate(run())


def test_it_recovers_by_itself_after_a_burst() -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App())
        before = await scene.load(CAPACITY * 0.3, 10.0)
        burst = await scene.load(CAPACITY * 5, 10.0)
        after = await scene.load(CAPACITY * 0.3, 10.0)
        assert burst.shed
        assert not before.shed
        assert not after.shed
        assert after.percentile(0.95) <= 1.2 * before.percentile(0.95)

    simulate(run())


def test_an_app_that_became_slower_for_good_is_not_held_at_the_minimum() -> None:
    async def run() -> None:
        app = App()
        scene = Scene(ADAPTIVE, app)
        await scene.load(120.0, 10.0)
        app.service *= 3
        await scene.load(90.0, 20.0)
        later = await scene.load(90.0, 20.0)
        assert later.shed.total() <= 0.01 * len(later.times)

    simulate(run())


# ── slower is not yet overloaded ─────────────────────────────────────────────────────────────


def test_a_route_whose_mix_turns_to_slow_waits_is_not_shed() -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App())
        await scene.load(20.0, 60.0)
        turned = await scene.load(20.0, 60.0, model=2.0, reported=False)
        assert turned.shed.total() <= 0.01 * len(turned.times)
        later = await scene.load(20.0, 60.0, model=2.0, reported=False)
        assert not later.shed
        assert later.percentile(0.95) < 2.1
        assert not (await scene.load(20.0, 30.0)).shed

    simulate(run())


def test_quick_and_slow_requests_of_one_route_are_hardly_ever_mistaken_for_overload() -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App(spread=0.6))
        await scene.load(30.0, 60.0)
        quick, slow = await asyncio.gather(scene.load(15.0, 180.0), scene.load(15.0, 180.0, model=1.0, reported=False))
        assert quick.shed.total() + slow.shed.total() <= 0.05 * (len(quick.times) + len(slow.times))

    simulate(run())


def test_what_the_app_waits_for_may_grow_slower_and_quicker_at_will() -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App(spread=0.5))
        for wait in (0.0, 0.1, 0.3, 1.0, 3.0, 1.0, 0.1, 0.0, 3.0, 0.0):
            report = await scene.load(10.0, 40.0, model=wait, reported=False)
            assert report.shed.total() <= 0.01 * len(report.times), wait

    simulate(run())


def test_calls_out_that_pass_through_the_gateway_are_not_the_apps_own_time() -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App())
        await scene.load(20.0, 30.0)
        before = scene.admission.limit
        report = await scene.load(20.0, 60.0, model=5.0, reported=True)
        assert not report.shed
        assert scene.admission.limit >= before

    simulate(run())


def test_an_app_of_two_slow_workers_that_is_truly_flooded_is_held_to_few_at_once() -> None:
    async def run() -> None:
        scene = Scene(ADAPTIVE, App(workers=2, service=0.5, spread=0.5))
        await scene.load(0.5, 60.0)
        await scene.load(12.0, 60.0)
        flooded = await scene.load(12.0, 60.0)
        assert scene.admission.limit <= 12
        assert flooded.goodput() >= 0.6 * 4.0 / 1.13  # a lognormal of 0.5 has a mean of 1.13
        after = await scene.load(1.0, 60.0)
        assert not after.shed

    simulate(run())


def test_under_load_that_never_ends_what_an_app_takes_at_the_minimum_becomes_the_least() -> None:
    now = 0.0
    gradient = GradientLimiter(AdaptiveLimit(min=4, max=100), lambda: now)

    def step(seconds: float, minimum: bool) -> None:
        """Some answers under the limit as it is: quicker with fewer in flight, but slow at the minimum as well."""
        nonlocal now
        for _ in range(20):
            trial = gradient.join_trial(gradient.limit)
            taken = seconds * gradient.limit / 28 if not minimum else seconds
            gradient.add_sample("r", taken, gradient.limit)
            if trial is not None:
                trial.enter(now)
                trial.leave(now, now + taken)
                trial.finish(taken, taken)
        gradient.note_reached()
        now += 0.2
        assert gradient.step(list)

    step(0.005, minimum=True)
    limits = []
    for _ in range(60):
        step(0.2, minimum=gradient.limit <= 5)
        limits.append(gradient.limit)
    assert min(limits) <= 5
    assert limits[-1] > 5


def test_an_idle_app_says_nothing_of_its_limit() -> None:
    now = 0.0
    gradient = GradientLimiter(AdaptiveLimit(), lambda: now)
    first = gradient.limit
    for _ in range(100):
        for _ in range(20):
            gradient.add_sample("r", 0.01, 1)
        now += 0.5
        assert gradient.step(list)
    assert gradient.limit == first


def test_requests_in_flight_that_are_late_already_hold_back_a_limit_that_gets_no_samples() -> None:
    now = 0.0
    gradient = GradientLimiter(AdaptiveLimit(), lambda: now)
    gradient.add_sample("r", 0.1, 1)
    first = gradient.limit
    for _ in range(10):
        gradient.note_reached()
        now += 1.0
        assert gradient.step(lambda: [("r", 5.0)] * 20)
    assert gradient.limit <= first
    assert not gradient.overloaded  # nothing has shown that load is why


def test_while_nobody_is_late_a_limit_that_is_reached_grows_without_samples() -> None:
    now = 0.0
    gradient = GradientLimiter(AdaptiveLimit(), lambda: now)
    first = gradient.limit
    for _ in range(10):
        gradient.note_reached()
        now += 1.0
        assert gradient.step(lambda: [("never seen", 30.0)] * 20)
    assert gradient.limit > first
    assert not gradient.overloaded
