"""What Valkey and PostgreSQL decide about money is what the rules say: compared with the same rules in Python."""

from __future__ import annotations

import asyncio
import random
import time

from money_book import MoneyBook
from store_servers import StoreServer, instances

from proxy.store.money import RECOVERY_SECONDS, Seed, Sender, WindowUpdate
from proxy.store.shared_money import SharedMoney

KEYS = ["a" * 32, "b" * 32, "c" * 32]


def random_update(rng: random.Random, key: str, known: frozenset[str] | None, me: str) -> WindowUpdate:
    seed = None
    if known is not None and rng.random() < 0.7:
        seed = Seed(rng.randrange(0, 10**9), rng.randrange(0, 10**8), known | ({me} if rng.random() < 0.5 else set()))
    return WindowUpdate(
        key=key,
        ends=time.time() + 86_400,
        limit=None if rng.random() < 0.1 else rng.randrange(0, 50 * 10**9),
        spent=rng.randrange(0, 3 * 10**9),
        open=rng.randrange(0, 10**8),
        keep=rng.randrange(0, 10**8),
        need=rng.choice((0, 0, rng.randrange(1, 10**10), rng.randrange(1, 10**8))),
        floor=rng.randrange(0, 10**7),
        wants=rng.random() < 0.4,
        is_first=rng.random() < 0.2,
        seed=seed,
        goes_unseeded=rng.random() < 0.1,
    )


async def test_a_store_decides_by_the_rules(server: StoreServer) -> None:
    async with instances(server, 1) as (one,):
        for seed in range(6):
            # Each turn has keys of its own, in a store whose life goes on.
            rng = random.Random(seed)
            money, book = SharedMoney(one.store), MoneyBook(time.time)
            keys = [f"{seed}{key}"[:32] for key in KEYS]
            has_ledger = seed % 3 != 0
            shares = seed % 3 == 1
            known: dict[str, frozenset[str] | None] = {}
            numbers = dict.fromkeys((f"{seed}i{nr}" for nr in range(4)), 0)
            book.epoch = 1
            for _ in range(250):
                me = rng.choice(list(numbers))
                numbers[me] += rng.choice((1, 1, 1, 1, 0))
                sender = Sender(me, numbers[me], 0, 0, rng.randrange(1_000, 500_000), has_ledger, shares)
                updates = [random_update(rng, key, known.get(key), me) for key in sorted(rng.sample(keys, 2))]
                expected, found = book.decide(sender, updates), await money.sync(sender, updates)
                assert found.windows == expected.windows, (seed, updates)
                assert not found.recovering
                assert {word for word in found.news if word[1:] in keys} == set(expected.news)
                for update, state in zip(updates, found.windows, strict=True):
                    if state is not None:
                        known[update.key] = state.known
                if rng.random() < 0.05:
                    chosen = sorted(rng.sample(keys, 2))
                    assert await money.forgive(chosen, chosen[0]) == await book.forgive(chosen, chosen[0])


async def test_a_store_that_knows_less_than_it_acknowledged_gives_no_slice_for_a_while(server: StoreServer) -> None:
    async with instances(server, 1) as (one,):
        money = SharedMoney(one.store)
        update = WindowUpdate("d" * 32, time.time() + 3600, 10**10, 0, 0, 0, need=1000, is_first=True)
        first = await money.sync(Sender("one", 1, 0, 0, 20_000), [update])
        assert not first.recovering
        assert first.windows[0].held == 10**10 // 50
        later = await money.sync(Sender("two", 1, 7, first.epoch, 20_000), [update])
        assert later.recovering
        assert later.epoch > first.epoch
        assert later.windows[0].held == 0
        # Another one that notices the same begins no other life, and the first that asks afterwards is served.
        again = await money.sync(Sender("three", 1, 9, first.epoch, 20_000), [update])
        assert again.epoch == later.epoch
        await asyncio.sleep(RECOVERY_SECONDS + 0.1)
        asked = await money.sync(Sender("two", 2, 1, later.epoch, 20_000), [update])
        assert not asked.recovering
        assert asked.windows[0].held > 0


async def test_an_empty_store_is_noticed_by_who_knew_it_before(server: StoreServer) -> None:
    async with instances(server, 1) as (one,):
        money = SharedMoney(one.store)
        answer = await money.sync(Sender("one", 1, 0, 42, 20_000), [])
        assert answer.recovering, "somebody knew an epoch, and the store has none"


async def test_a_claim_is_had_once(server: StoreServer) -> None:
    async with instances(server, 2) as (one, two):
        first, second = SharedMoney(one.store), SharedMoney(two.store)
        assert sorted([await first.claim("call", 60), await second.claim("call", 60)]) == [False, True]
        assert await second.claim("other", 60)
