"""Who gets a place, who waits, who is sent away, and that no place is ever lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from admission_simulation import SimulatedLoop, fixed, simulate

from proxy.errors import Refusal
from proxy.ingress.admission.controller import AdmissionController, Permit
from proxy.policy.schema import AdaptiveLimit, FixedLimit, Overload, Queue, Route

OFF = Overload()
PLAIN = Route("plain")
NARROW = Route("narrow", concurrency=1, queue=Queue(size=2, wait=5.0))


class AdmissionFixture:
    """An admission with a list of what it shed, and requests started as tasks."""

    def __init__(self, overload: Overload) -> None:
        self.shed: list[str] = []
        self.loop = asyncio.get_running_loop()
        self.admission = AdmissionController(overload, clock=self.loop.time, on_shed=self.shed.append)

    def ask(self, route: Route = PLAIN, tier: str = "free", user: str = "ada") -> asyncio.Task[Permit]:
        return asyncio.ensure_future(self.admission.admit(route, tier, user))


def simulated(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        simulate(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@simulated
async def test_without_a_limit_everybody_enters_at_once_and_is_counted() -> None:
    fixture = AdmissionFixture(OFF)
    permits = [fixture.admission.try_admit(PLAIN) for _ in range(1000)]
    assert all(permits)
    assert fixture.admission.in_flight("plain") == 1000
    assert fixture.admission.limit is None
    for permit in permits:
        assert permit is not None
        permit.release()
        permit.release()
        permit.release_app()
    assert repr(fixture.admission) == "<Admission off: 0 in flight, 0 queued | plain: 0 in flight, 0 queued>"


@simulated
async def test_a_routes_queue_is_first_come_first_served_within_a_user_and_bounded() -> None:
    fixture = AdmissionFixture(OFF)
    inside = await fixture.ask(NARROW)
    assert fixture.admission.try_admit(NARROW) is None
    first, second, third = fixture.ask(NARROW), fixture.ask(NARROW), fixture.ask(NARROW)
    with pytest.raises(Refusal) as refused:
        await third
    assert (refused.value.name, refused.value.status) == ("overloaded", 503)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    assert fixture.shed == ["route_queue_full"]
    assert fixture.admission.queued("narrow") == 2
    inside.release()
    (await first).release()
    (await second).release()
    assert fixture.admission.in_flight("narrow") == 0


@simulated
async def test_who_waits_longer_than_the_queue_allows_is_refused() -> None:
    fixture = AdmissionFixture(OFF)
    inside = await fixture.ask(NARROW)
    began = fixture.loop.time()
    with pytest.raises(Refusal):
        await fixture.ask(NARROW)
    assert fixture.loop.time() - began == pytest.approx(5.0)
    assert fixture.shed == ["route_wait"]
    inside.release()
    assert fixture.admission.queued("narrow") == 0


@simulated
async def test_the_more_important_goes_first_and_displaces_the_newest_of_the_least() -> None:
    fixture = AdmissionFixture(
        Overload("fixed", fixed=FixedLimit(limit=1, queue=3, wait=60.0), priority={"admin": 1, "premium": 2, "free": 3})
    )
    inside = await fixture.ask()
    tiers = ["free", "free", "premium"]
    waiting = [fixture.ask(tier=tier) for tier in tiers]
    await settle()
    admin = fixture.ask(tier="admin")
    await settle()
    assert fixture.shed == ["priority"]
    assert waiting[1].done()
    assert isinstance(waiting[1].exception(), Refusal)
    unknown = fixture.ask(tier="unheard-of")
    with pytest.raises(Refusal):
        await unknown
    assert fixture.shed == ["priority", "queue_full"]
    served = []
    for task, tier in ((admin, "admin"), (waiting[2], "premium"), (waiting[0], "free")):
        inside.release()
        inside = await task
        served.append(tier)
        assert fixture.admission.in_flight("plain") == 1 + sum(not other.done() for other in (waiting[0], waiting[2]))
    inside.release()
    assert served == ["admin", "premium", "free"]


@simulated
async def test_users_are_served_in_turn_and_one_who_floods_a_full_queue_makes_room_for_the_others() -> None:
    for overload, route, full in (
        (OFF, Route("narrow", concurrency=1, queue=Queue(size=4, wait=60.0)), "route_queue_full"),
        (Overload("fixed", fixed=FixedLimit(limit=1, queue=4, wait=60.0)), PLAIN, "queue_full"),
    ):
        fixture = AdmissionFixture(overload)
        inside = await fixture.ask(route, user="mallory")
        asked = [(f"mallory {n}", fixture.ask(route, user="mallory")) for n in range(6)]
        await settle()
        for name in ("ada 1", "ben 1", "ada 2", "ada 3"):
            asked.append((name, fixture.ask(route, user=name.split()[0])))
            await settle()
        shed = [name for name, task in asked if task.done()]
        assert shed == ["mallory 2", "mallory 3", "mallory 4", "mallory 5", "ada 2", "ada 3"]
        assert fixture.shed == [full] * 6
        waiting = [(name, task) for name, task in asked if not task.done()]
        served = []
        while len(served) < 4:
            inside.release()
            await settle()
            name, task = next((name, task) for name, task in waiting if task.done() and name not in served)
            served.append(name)
            inside = task.result()
        assert served == ["mallory 0", "ada 1", "ben 1", "mallory 1"]
        inside.release()


@simulated
async def test_importance_goes_before_fairness() -> None:
    priority = {"admin": 1, "free": 2}
    fixture = AdmissionFixture(Overload("fixed", fixed=FixedLimit(limit=1, queue=3, wait=60.0), priority=priority))
    inside = await fixture.ask()
    admins = [fixture.ask(tier="admin", user="root") for _ in range(3)]
    await settle()
    with pytest.raises(Refusal):
        await fixture.ask(user="ada")
    assert fixture.shed == ["queue_full"]
    for admin in admins:
        inside.release()
        inside = await admin
    inside.release()


@simulated
async def test_a_streaming_answer_counts_for_the_app_until_its_head_and_for_its_route_until_its_end() -> None:
    fixture = AdmissionFixture(fixed(1))
    stream = await fixture.ask(NARROW)
    other = fixture.ask()
    await settle()
    assert not other.done()
    stream.release_app()
    (await other).release()
    assert fixture.admission.try_admit(NARROW) is None
    stream.release()
    assert fixture.admission.try_admit(NARROW) is not None


@simulated
async def test_a_probe_is_never_shed() -> None:
    fixture = AdmissionFixture(fixed(1, queue=0))
    inside = await fixture.ask()
    probe = fixture.admission.try_admit(PLAIN, exempt=True)
    assert probe is not None
    probe.record_app_seconds(9.0)
    probe.release()
    assert fixture.admission.in_flight("plain") == 1
    inside.release()


@simulated
async def test_one_cancelled_in_the_moment_it_is_admitted_passes_its_place_on() -> None:
    fixture = AdmissionFixture(fixed(1))
    inside = await fixture.ask()
    first, second = fixture.ask(), fixture.ask()
    await settle()
    inside.release()  # the place is first's now, though it has not run yet
    first.cancel()
    permit = await asyncio.wait_for(second, 1.0)
    assert first.cancelled()
    permit.release()
    assert fixture.admission.in_flight("plain") == 0


@simulated
async def test_one_that_waits_at_the_apps_gate_and_is_cancelled_gives_its_routes_place_back() -> None:
    fixture = AdmissionFixture(fixed(1))
    inside = await fixture.ask()
    waiting = fixture.ask(NARROW)
    await settle()
    assert fixture.admission.queued("narrow") == 1
    waiting.cancel()
    await settle()
    assert (fixture.admission.in_flight("narrow"), fixture.admission.queued("narrow")) == (0, 0)
    inside.release()


@simulated
async def test_a_reload_keeps_what_is_in_flight_and_lets_in_whom_the_new_limit_has_room_for() -> None:
    fixture = AdmissionFixture(fixed(1, queue=4))
    inside = await fixture.ask()
    waiting = [fixture.ask() for _ in range(4)]
    await settle()
    fixture.admission.reconfigure(fixed(3, queue=1))
    await settle()
    assert sum(task.done() and task.exception() is None for task in waiting) == 2
    assert fixture.shed == ["queue_full"]
    fixture.admission.reconfigure(OFF)
    await settle()
    admitted = [task.result() for task in waiting if task.exception() is None]
    assert len(admitted) == 3
    fixture.admission.reconfigure(fixed(4))
    assert fixture.admission.try_admit(PLAIN) is None, "those in flight count"
    for permit in [inside, *admitted]:
        permit.release()
    assert fixture.admission.in_flight("plain") == 0


@simulated
async def test_a_routes_new_concurrency_holds_from_the_next_request_on() -> None:
    fixture = AdmissionFixture(OFF)
    first = await fixture.ask(NARROW)
    waiting = fixture.ask(NARROW)
    await settle()
    wider = Route("narrow", concurrency=3, queue=Queue(size=2, wait=5.0))
    second = fixture.admission.try_admit(wider)
    assert second is not None
    third = await waiting
    assert fixture.admission.in_flight("narrow") == 3
    for permit in (first, second, third):
        permit.release()


@simulated
async def test_a_request_that_waits_for_its_outgoing_call_holds_no_place_under_an_adaptive_limit() -> None:
    fixture = AdmissionFixture(Overload("adaptive", adaptive=AdaptiveLimit(min=1, max=1)))
    calling = await fixture.ask()
    assert fixture.admission.try_admit(PLAIN) is None
    calling.call_began()
    calling.call_began()
    other = fixture.admission.try_admit(PLAIN)
    assert other is not None
    calling.call_ended()
    calling.call_ended()  # it goes on without waiting: the app has it already
    assert fixture.admission.try_admit(PLAIN) is None
    other.release()
    assert fixture.admission.try_admit(PLAIN) is None
    calling.release()
    calling.call_began()
    calling.call_ended()
    assert "adaptive: 0/1 in flight" in repr(fixture.admission)
    assert not fixture.admission.in_app


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", ["off", "fixed", "adaptive"])
def test_no_place_is_lost_whatever_is_cancelled_refused_or_reloaded(mode: str, seed: int) -> None:
    chance = random.Random(seed)
    policies = {
        "off": OFF,
        "fixed": fixed(3, queue=2),
        "adaptive": Overload("adaptive", adaptive=AdaptiveLimit(min=1, max=5)),
    }

    async def life() -> None:
        fixture = AdmissionFixture(policies[mode])
        routes = [PLAIN, NARROW]

        async def request() -> None:
            try:
                permit = await fixture.admission.admit(
                    chance.choice(routes), chance.choice(["free", "admin"]), chance.choice("abc")
                )
            except Refusal:
                return
            try:
                await asyncio.sleep(chance.random())
                if chance.random() < 0.3:
                    permit.call_began()
                    await asyncio.sleep(chance.random())
                    permit.call_ended()
                permit.record_app_seconds(chance.random())
                permit.release_app()
                await asyncio.sleep(chance.random() * 0.2)
            finally:
                permit.release()

        tasks: list[asyncio.Task[None]] = []
        for _ in range(150):
            tasks.append(asyncio.ensure_future(request()))
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
            if chance.random() < 0.05:
                fixture.admission.reconfigure(policies[chance.choice(list(policies))])
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.1]))
        await asyncio.gather(*tasks, return_exceptions=True)
        for route in routes:
            assert (fixture.admission.in_flight(route.name), fixture.admission.queued(route.name)) == (0, 0)
        assert ": 0" in repr(fixture.admission).split("|")[0]
        assert not fixture.admission.in_app
        assert isinstance(asyncio.get_running_loop(), SimulatedLoop)

    simulate(life())
