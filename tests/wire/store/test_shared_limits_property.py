"""A limit of N admits N over all instances in every window and never N + 1, whatever comes in where and in which order.

The scripts run in real servers, on a clock that the test sets.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_store import SimulatedInstance, SimulatedServer
from store_servers import StoreServer, postgres_server, valkey_server

from proxy.ingress.ratelimit.limiter import RateDecision
from proxy.policy.schema import Match, Route
from proxy.policy.values import Rate
from proxy.store.interface import WaitBudget


class World:
    """One server for all examples of a file, and the loop that they run on."""

    def __init__(self, server: StoreServer) -> None:
        self.runner = asyncio.Runner()
        self.server = SimulatedServer(server)
        self.runner.run(self.server.connect())

    def run(self, work):
        return self.runner.run(work)

    def close(self) -> None:
        self.runner.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        self.server.close()
        await asyncio.sleep(0)


@pytest.fixture(scope="module", params=["valkey", "postgresql"])
def world(request) -> Iterator[World]:
    if request.param == "valkey":
        with valkey_server() as server:
            made = World(server)
            yield made
            made.close()
    else:
        with postgres_server(request.getfixturevalue("cluster")) as server:
            made = World(server)
            yield made
            made.close()


class Oracle:
    """The rule itself: all admitted times are kept for ever."""

    def __init__(self) -> None:
        self.admitted: list[float] = []

    def count(self, now: float, period: float) -> int:
        return sum(now - period < at for at in self.admitted)

    def room(self, now: float, rates) -> bool:
        return all(self.count(now, rate.period) < rate.count for rate in rates)


def route_of(rates) -> Route:
    return Route("r", match=Match("/*"), rate_limit={"*": tuple(rates)})


async def ask(instance: SimulatedInstance, route: Route, user: str) -> RateDecision:
    decision = await instance.limiter.check(route, "any", user, WaitBudget(5.0))
    assert decision is not None
    return decision


# Seconds between two requests: within the second for which a refusal is remembered, and beyond it. Periods are long
# beside what an example takes in real time, since a server drops by its own clock what has expired.
GAPS = st.sampled_from([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 10.0, 20.0, 45.0, 90.0])
RATES = st.lists(
    st.builds(Rate, st.integers(1, 9), st.integers(60, 600).map(float)), min_size=1, max_size=3, unique_by=lambda r: r.period
)  # fmt: skip
# (instance, seconds that pass before it)
STEPS = st.lists(st.tuples(st.integers(0, 3), GAPS), min_size=1, max_size=60)
CHECKS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@CHECKS
@given(steps=STEPS, rates=RATES)
def test_every_window_has_at_most_n_over_all_instances_and_nothing_is_refused_that_had_room(world, steps, rates):
    async def play() -> None:
        oracle, route, user = Oracle(), route_of(rates), uuid.uuid4().hex
        every = [SimulatedInstance(world.server, number, 4, "share") for number in range(4)]
        now = world.server.now
        for number, gap in steps:
            now += gap
            await world.server.set_clock(now)
            instance = every[number]
            decision = await ask(instance, route, user)
            assert decision.allowed == oracle.room(now, rates)
            if decision.allowed:
                oracle.admitted.append(now)
                assert decision.retry_after == 0
            else:
                later = now + decision.retry_after
                assert oracle.room(later + 1e-5, rates), "Retry-After is long enough"
                assert not oracle.room(later - 0.01, rates), "and no longer than it must be"
            for item, rate in zip(decision.items, rates, strict=True):
                count = oracle.count(now, rate.period)
                assert item.remaining == rate.count - count
                assert item.reset <= rate.period + 1e-5
        assert sum(instance.fallbacks for instance in every) == 0
        assert all(instance.asked <= len(steps) for instance in every)

    world.run(play())


@CHECKS
@given(steps=st.lists(st.tuples(st.integers(0, 3), GAPS, st.booleans()), max_size=60), count=st.integers(1, 5))
def test_a_request_that_is_taken_back_never_counted_on_any_instance(world, steps, count):
    async def play() -> None:
        oracle, rates, user = Oracle(), [Rate(count, 100.0)], uuid.uuid4().hex
        every = [SimulatedInstance(world.server, number, 4, "share") for number in range(4)]
        route, now = route_of(rates), world.server.now
        for number, gap, taken_back in steps:
            now += gap
            await world.server.set_clock(now)
            instance = every[number]
            had_room = oracle.room(now, rates)
            decision = await ask(instance, route, user)
            # A refusal is remembered for up to a second, in which another instance may have taken a request back.
            assert decision.allowed == had_room or not decision.allowed
            if decision.allowed and taken_back:
                instance.limiter.refund(route, user, decision)
                await instance.settle()
            elif decision.allowed:
                oracle.admitted.append(now)
            assert oracle.count(now, 100.0) <= count
        await world.server.set_clock(now + 1.0)
        fresh = SimulatedInstance(world.server, 9, 4, "share")
        assert (await ask(fresh, route, user)).allowed == oracle.room(now + 1.0, rates)

    world.run(play())


NETWORK = st.sampled_from(["up", "up", "up", "away", "lost answer", "dies"])


@CHECKS
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), GAPS, NETWORK, st.booleans()), max_size=80),
    count=st.integers(1, 6),
    on_error=st.sampled_from(["share", "local"]),
)
def test_whatever_was_admitted_without_the_store_counts_in_it_afterwards(world, steps, count, on_error):
    async def play() -> None:
        oracle, rates, user = Oracle(), [Rate(count, 120.0)], uuid.uuid4().hex
        every = [SimulatedInstance(world.server, number, 4, on_error) for number in range(4)]
        route, now = route_of(rates), world.server.now
        alone: list[list[float]] = [[], [], [], []]  # admitted without the store and not written yet, by instance
        for number, gap, network, taken_back in steps:
            now += gap
            await world.server.set_clock(now)
            instance = every[number]
            if network == "dies":
                # What it has not written dies with it: nobody can know of it.
                every[number] = SimulatedInstance(world.server, number, 4, on_error)
                for at in alone[number]:
                    oracle.admitted.remove(at)
                alone[number] = []
                continue
            if network == "up":
                await instance.heal()
                alone[number] = []
            else:
                instance.network = network
            before = oracle.count(now, 120.0)
            decision = await ask(instance, route, user)
            if decision.allowed and taken_back:
                instance.limiter.refund(route, user, decision)
                await instance.settle()
            elif decision.allowed:
                if network == "up" and not any(alone):
                    assert before < count, "the store knows of everything, and admitted one too many"
                oracle.admitted.append(now)
                if network != "up":
                    alone[number].append(now)
        for instance in every:
            await instance.heal()
            await instance.settle()
        # After quiet: nothing is counted that was refused or taken back, and everything that was admitted and is known.
        now += 1.0
        await world.server.set_clock(now)
        fresh = SimulatedInstance(world.server, 99, 4, on_error)
        decision = await ask(fresh, route, user)
        networks = {network for _, _, network, _ in steps}
        if networks >= {"dies", "lost answer"}:
            # The store may have counted what died before it could say that it does not count.
            assert not decision.allowed or oracle.room(now, rates)
        else:
            assert decision.allowed == oracle.room(now, rates)

    world.run(play())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bursts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.integers(0, 30)), min_size=3, max_size=8),
    quota=st.sampled_from([1001, 1500]),
)
def test_a_large_limit_is_never_passed_and_refuses_one_percent_early_at_most(world, bursts, quota):
    async def play() -> None:
        oracle, rates, user = Oracle(), [Rate(quota, 600.0)], uuid.uuid4().hex
        every = [SimulatedInstance(world.server, number, 3, "share") for number in range(3)]
        route, now = route_of(rates), world.server.now
        for size, gap, refunds in bursts:
            now += 60 * gap
            await world.server.set_clock(now)
            decisions = []
            for at in range(size):
                decision = await ask(every[at % 3], route, user)
                count = oracle.count(now, 600.0)
                if decision.allowed:
                    assert count < quota
                    oracle.admitted.append(now)
                    decisions.append((every[at % 3], decision))
                else:
                    assert count >= quota - quota // 100, f"refused at {count} of {quota}"
                    break
            for instance, decision in decisions[:refunds]:
                instance.limiter.refund(route, user, decision)
                oracle.admitted.remove(now)
                await instance.settle()

    world.run(play())


def test_two_policies_side_by_side_count_in_one_log(world):
    """A deploy that changes a limit runs both for a while: neither trims away what the other needs."""

    async def play() -> None:
        old, new, user = route_of([Rate(5, 3600.0)]), route_of([Rate(3, 60.0), Rate(2000, 7200.0)]), uuid.uuid4().hex
        one = SimulatedInstance(world.server, 1, 2, "share")
        two = SimulatedInstance(world.server, 2, 2, "share")
        now = world.server.now
        await world.server.set_clock(now)
        for _ in range(3):
            assert (await ask(one, old, user)).allowed
        await world.server.set_clock(now + 120)
        assert (await ask(two, new, user)).allowed
        await world.server.set_clock(now + 240)
        assert (await ask(two, new, user)).allowed
        refused = await ask(one, old, user)
        assert not refused.allowed
        assert 3300 < refused.retry_after < 3400

    world.run(play())
