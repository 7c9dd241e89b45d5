"""The parts of the cache by themselves: room, fills, ranges, what goes into a store."""

import asyncio
import random

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.ingress.cache.cache_control import ResponseDirectives
from proxy.ingress.cache.conditions import wanted_range
from proxy.ingress.cache.fills import UNKEPT_SECONDS, Fills, Outcome
from proxy.ingress.cache.memory import MAX_VARIANTS, RouteMemory
from proxy.ingress.cache.stored_response import StoredResponse
from proxy.policy.schema import RouteCache


def entry(key=b"k", path="/", host="h", size=0, vary=(), headers=(), lifetime=60.0, directives=None):
    return StoredResponse(
        key, host, path, 200, b"OK", list(headers), vary, {"identity": b"x" * size}, 1000.0, 0.0, lifetime,
        directives or ResponseDirectives(),
    )  # fmt: skip


def test_memory_is_bounded_whatever_comes_and_its_sum_is_right():
    memory = RouteMemory(100_000)
    draw = random.Random(7)
    kept = []
    for number in range(3000):
        target = draw.randrange(60)
        vary = (("a", str(draw.randrange(3))),)
        one = entry(b"%d" % target, f"/{target % 20}", size=draw.randrange(30_000), vary=vary)
        memory.put(one)
        kept.append(one)
        if number % 7 == 0:
            memory.remove_path(f"/{draw.randrange(20)}", "h" if number % 2 else None)
        if number % 11 == 0:
            memory.remove(draw.choice(kept))
        assert memory.size <= 100_000
        assert memory.size == sum(one.size for one in memory._by_age.values())
        assert all(one.size <= 25_000 for one in memory._by_age.values())
    memory.clear()
    assert (memory.size, len(memory), memory._by_key, memory._by_path) == (0, 0, {}, {})


def test_the_oldest_leave_first_and_a_confirmed_one_is_young_again():
    memory = RouteMemory(10 * entry().size)
    entries = [entry(b"%d" % number) for number in range(10)]
    for one in entries:
        memory.put(one)
    memory.put(entries[0])  # confirmed
    memory.put(entry(b"more"))
    assert not list(memory.variants(b"1"))
    assert list(memory.variants(b"0"))


def test_the_variants_of_one_key_are_bounded():
    memory = RouteMemory(10**9)
    for number in range(MAX_VARIANTS * 2):
        memory.put(entry(vary=(("a", str(number)),)))
    assert len(memory) == MAX_VARIANTS
    assert next(iter(memory.variants(b"k"))).vary == (("a", str(MAX_VARIANTS * 2 - 1)),)


async def test_whoever_is_given_a_fill_and_leaves_passes_it_on():
    fills = Fills(lambda: 0.0)
    fill = fills.begin(b"k")
    waiting = [asyncio.create_task(fills.wait(fill)) for _ in range(3)]
    await asyncio.sleep(0)
    fills.abandon(fill)  # the first has the duty now,
    waiting[0].cancel()  # and leaves before it knows
    done, _ = await asyncio.wait(waiting[:2])
    assert waiting[0].cancelled()
    assert waiting[1].result() is Outcome.TAKE_OVER
    assert not waiting[2].done()
    assert fills.get(b"k") is fill
    fills.end(fill, Outcome.LOOK_AGAIN)
    assert await waiting[2] is Outcome.LOOK_AGAIN
    assert len(fills) == 0


async def test_a_fill_that_nobody_takes_over_is_over():
    fills = Fills(lambda: 0.0)
    fill = fills.begin(b"k")
    task = asyncio.create_task(fills.wait(fill))
    await asyncio.sleep(0)
    fills.abandon(fill)
    task.cancel()
    await asyncio.wait([task])
    assert fills.get(b"k") is None


def test_a_key_whose_answers_are_not_kept_is_known_for_a_while():
    now = 0.0
    fills = Fills(lambda: now)
    fills.note_unkept(b"k")
    assert fills.is_unkept(b"k")
    now = UNKEPT_SECONDS + 1
    assert not fills.is_unkept(b"k")


@pytest.mark.parametrize(
    ("policy", "said", "age", "fresh", "behind", "stands_in"),
    [
        (RouteCache(), "max-age=10", 5, True, False, False),
        (RouteCache(), "max-age=10", 10, False, False, False),
        (RouteCache(stale_while_revalidate=5), "max-age=10", 14, False, True, False),
        (RouteCache(stale_while_revalidate=5), "max-age=10", 15, False, False, False),
        (RouteCache(stale_if_error=5), "max-age=10", 14, False, False, True),
        (RouteCache(stale_if_error=5), "max-age=10", 16, False, False, False),
        (RouteCache(stale_if_error=5), "max-age=10, must-revalidate", 12, False, False, False),
        (RouteCache(), "max-age=10, stale-if-error=5, stale-while-revalidate=3", 12, False, True, True),
        (RouteCache(stale_if_error=50), "max-age=10, stale-if-error=0", 12, False, False, False),
        (RouteCache(stale_while_revalidate=50), "s-maxage=10", 12, False, False, False),
        (RouteCache(), "s-maxage=10, stale-while-revalidate=50", 12, False, True, False),
    ],
)
def test_when_an_answer_is_fresh_and_when_it_may_be_given_stale(policy, said, age, fresh, behind, stands_in):
    directives = ResponseDirectives.from_headers([(b"Cache-Control", said.encode())])
    one = entry(lifetime=10.0, directives=directives)
    now = 1000.0 + age
    assert (one.time_left(policy, now) > 0) is fresh
    if not fresh:
        assert one.may_revalidate_behind(policy, now) is behind
        assert one.may_stand_in(policy, now) is stands_in


def test_an_answer_comes_out_of_a_store_as_it_went_in():
    one = entry(
        size=5, vary=(("a", "b"), ("c", None)), headers=[(b"Cache-Control", b"max-age=60"), (b"X-\xe9", b"\xff")]
    )
    back = StoredResponse.from_bytes(one.to_bytes(), one.key, one.host, one.path)
    assert (back.headers, back.vary, back.bodies, back.lifetime) == (one.headers, one.vary, one.bodies, 60.0)
    for nonsense in (b"", b"x", b"5\n{}", b"2\n{}abc", one.to_bytes()[:30]):
        with pytest.raises(ValueError):
            StoredResponse.from_bytes(nonsense, b"", "", "")


class Head:
    method = "GET"

    def __init__(self, **fields):
        self.headers = CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in fields.items()}))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("bytes=0-0", range(0, 1)), ("bytes=5-", range(5, 10)), ("bytes=-3", range(7, 10)), ("bytes=-99", range(10)),
        ("bytes=-0", range(0)), ("bytes=10-", range(0)), ("bytes=9-99", range(9, 10)), ("Bytes=1-2", range(1, 3)),
        ("bytes=-", None), ("bytes=a-b", None), ("bytes=1-2,4-5", None), ("items=0-1", None), ("bytes=3-2", None),
    ],
)  # fmt: skip
def test_which_bytes_a_range_asks_for(said, found):
    assert wanted_range(Head(Range=said), [], 10, 0.0) == found
