"""Caps of several instances in simulated time: whatever happens between them and the store, the vendor bills no more than
the cap and the errors of the estimates under way, and after quiet nothing is set aside."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from money_simulation import World
from simulated_loop import run_simulated

from proxy.policy.schema import Cap
from proxy.policy.values import ANY_TIER, Spend

NANOS = 1_000_000_000
QUIET = 75.0  # seconds after which the dead count no more, and idle slices are given back


def cap(total: str | None = None, user: str | None = None) -> Cap:
    return Cap(
        total=Spend(Decimal(total), "d") if total else None,
        per_user={ANY_TIER: (Spend(Decimal(user), "d"),)} if user else {},
    )


def nanos(dollars: float) -> int:
    return round(dollars * NANOS)


async def load(world: World, instances, calls: int, *, spread: float, exact: bool, users=("ada", "bob", "cy")) -> None:
    """So many calls at random moments within `spread` seconds, by whichever instance lives."""
    rng = world.rng

    async def one() -> None:
        await asyncio.sleep(rng.uniform(0, spread))
        alive = [each for each in instances() if not each.dead]
        if not alive:
            return
        estimate = nanos(rng.choice((0.001, 0.002, 0.005)))
        actual = estimate if exact else round(estimate * rng.uniform(0.2, 1.8))
        if rng.random() < 0.05:
            actual = 0  # a definite error: released
        await asyncio.gather(
            rng.choice(alive).start_call(
                rng.choice(users), estimate=estimate, actual=actual, seconds=rng.uniform(0.05, 3.0)
            ),
            return_exceptions=True,
        )

    await asyncio.gather(*(one() for _ in range(calls)))


def spent_in_store(world: World) -> int:
    """What the store has as spent by all users today."""
    found = 0
    for record in world.book.records.values():
        found = max(found, (record.base or 0) + sum(part.spent for part in record.parts.values()))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_exact_estimates_never_pass_a_cap_and_none_is_refused_that_one_instance_would_serve(seed):
    async def play() -> None:
        world = World(seed)
        for _ in range(1 + seed % 5):
            world.add(cap(total="0.60", user="0.25"))
        await load(world, lambda: world.instances, 600, spread=60.0, exact=True)
        billed = world.billed
        assert max(billed.values()) <= nanos(0.25)
        assert sum(billed.values()) <= nanos(0.60)
        assert world.refusals > 50, "the caps were never reached"
        assert not world.too_early, world.too_early[:5]
        world.check_signs()
        await asyncio.sleep(QUIET)
        assert world.book.set_aside() == 0
        assert spent_in_store(world) == sum(billed.values())

    run_simulated(play())


@pytest.mark.parametrize("seed", range(8))
def test_a_cap_is_passed_by_the_errors_of_the_estimates_under_way_at_most(seed):
    async def play() -> None:
        world = World(seed)
        for _ in range(2 + seed % 4):
            world.add(cap(total="1.00"))
        await load(world, lambda: world.instances, 900, spread=40.0, exact=False)
        assert sum(world.billed.values()) <= nanos(1.00) + world.worst_errors
        assert world.refusals, "the cap was never reached"
        await asyncio.sleep(QUIET)
        assert world.book.set_aside() == 0
        assert spent_in_store(world) == sum(world.billed.values())

    run_simulated(play())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shares_ledger", [True, False])
def test_deaths_partitions_restarts_and_restores_give_no_money_back(seed, shares_ledger):
    """The least and the most of everything: a lossy network, instances that come, end, die, and are cut off, a store that
    stands still, comes back empty or from a snapshot."""

    async def play() -> None:
        world = World(seed, loss=0.03, delay=0.05, shares_ledger=shares_ledger)
        rng = world.rng
        policy = cap(total="1.50", user="0.70")
        for _ in range(3):
            world.add(policy)
        done = False

        async def trouble() -> None:
            snapshot = world.book.snapshot()
            while not done:
                await asyncio.sleep(rng.uniform(1.0, 6.0))
                if done:
                    return
                alive = [each for each in world.instances if not each.dead]
                what = rng.choice(("kill", "end", "add", "cut", "freeze", "snapshot", "restore", "empty", "ledger"))
                if what == "kill" and len(alive) > 1:
                    rng.choice(alive).kill()
                    world.add(policy)
                elif what == "end" and len(alive) > 1:
                    await rng.choice(alive).end()
                elif what == "add" and len(alive) < 6:
                    world.add(policy)
                elif what == "cut":
                    one = rng.choice(alive)
                    one.wire.cut = True
                    asyncio.get_running_loop().call_later(rng.uniform(1.0, 20.0), mend, one)
                elif what == "freeze":
                    for each in alive:
                        each.wire.frozen = True
                    await asyncio.sleep(rng.uniform(0.5, 8.0))
                    for each in world.instances:
                        each.wire.frozen = False
                elif what == "snapshot":
                    snapshot = world.book.snapshot()
                elif what in ("restore", "empty") and shares_ledger:
                    # Everybody's connection breaks, as it does when a server goes.
                    run = world.book.run
                    if what == "restore":
                        world.book = snapshot.snapshot()
                    else:
                        world.book = type(world.book)(world.now)
                    world.book.run = run + 1
                elif what == "ledger" and world.ledger is not None and rng.random() < 0.5:
                    pass

        def mend(one) -> None:
            if not one.dead:
                one.wire.cut = False

        troubled = asyncio.create_task(trouble())
        await load(world, lambda: world.instances, 900, spread=90.0, exact=True)
        done = True
        await troubled
        for each in world.instances:
            mend(each)
            each.wire.loss = 0.0
        allowed = nanos(1.50) + world.lost_by_deaths
        assert sum(world.billed.values()) <= allowed, (sum(world.billed.values()) - nanos(1.5), world.lost_by_deaths)
        assert max(world.billed.values()) <= nanos(0.70) + world.lost_by_deaths
        world.check_signs()
        await asyncio.sleep(2 * QUIET)
        world.check_signs()
        assert world.book.set_aside() == 0

    run_simulated(play())
