"""Kept answers over several front doors that share a store: one memory more, one fill for all, emptied everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from cached_app import CachedApp, ask, says
from gateway_process import eventually
from ingress_gateway import IngressGateway, ingress_gateway
from store_servers import StoreServer

from proxy.policy.loading import PolicySource, load_policy

FRESH = "Cache-Control: max-age=600"
POLICY = """
store: {url: '%s', prefix: %s, timeout: 1s}
routes:
  - {name: write, match: {path: /*, methods: [POST]}}
  - {name: pages, match: {path: /*}, cache: {%s}}
"""


@asynccontextmanager
async def gateways(
    server: StoreServer, app: CachedApp, count: int = 2, *, cache: str = "scope: public"
) -> AsyncIterator[list[IngressGateway]]:
    """So many front doors over one store, each before the same app."""
    async with AsyncExitStack() as stack:
        policy = POLICY % (server.url, server.prefix, cache)
        made = []
        for _ in range(count):
            front = CachedApp(app._answer)
            front.asked, front.fields = app.asked, app.fields
            made.append(await stack.enter_async_context(ingress_gateway(front, policy)))
        await eventually(lambda: all(one.store.instances == count for one in made))
        yield made


def fallbacks(one: IngressGateway) -> float:
    return one.metrics.store_fallback_total.labels("cache").value


async def is_in_store(one: IngressGateway, target: str) -> None:
    """Wait until what was written behind is there: a door that has never seen the target gets it."""
    tier = one.service.cache.tier
    assert tier is not None
    await eventually(lambda: tier.answers.is_quiet)


async def test_what_one_has_kept_another_gives_with_its_age_and_asks_the_app_nothing(server: StoreServer) -> None:
    app = CachedApp(says(FRESH, "X-Own: a", "Vary: Accept-Language"))
    async with gateways(server, app) as (one, other):
        first = await ask(one, "/", "Accept-Language: en")
        await is_in_store(one, "/")
        again = await ask(other, "/", "Accept-Language: en")
        assert (again.cache, again.body, again.fields["x-own"]) == ("hit", first.body, "a")
        assert "age" in again.fields
        assert (await ask(other, "/", "Accept-Language: de")).body == b"answer 2"
        assert len(app.asked) == 2


async def test_in_the_scope_of_a_user_the_store_gives_it_to_nobody_else(server: StoreServer) -> None:
    app = CachedApp(says("Cache-Control: private, max-age=600"))
    async with gateways(server, app, cache="scope: user") as (one, other):
        await ask(one, "/", "Cookie: a=1")
        await is_in_store(one, "/")
        assert (await ask(other, "/", "Cookie: a=2")).body == b"answer 2"
        assert (await ask(other, "/", "Cookie: a=1")).body == b"answer 1"


async def test_what_writes_and_succeeds_empties_its_path_on_every_instance_within_a_second(server: StoreServer) -> None:
    app = CachedApp(lambda method, *more: says(*([FRESH] if method == "GET" else []))(method, *more))
    async with gateways(server, app, 3) as made:
        for one in made:
            await ask(one, "/a?page=1")
            await is_in_store(one, "/a?page=1")
        assert len(app.asked) == 1
        await ask(made[0], "/a", method="POST", body=b"x")
        await eventually(lambda: all(not one.service.cache.sizes["pages"][0] for one in made))
        # Nor does the store give what it has of the time before.
        for one in made[1:]:
            assert (await ask(one, "/a?page=1")).body != b"answer 1"


async def test_a_purge_empties_a_route_everywhere_and_for_an_instance_that_comes_later(server: StoreServer) -> None:
    app = CachedApp(says(FRESH))
    async with gateways(server, app) as (one, other):
        for target in ("/a", "/b"):
            await ask(one, target)
            await is_in_store(one, target)
            await ask(other, target)
        one.service.cache.purge("pages", "/a")
        await eventually(lambda: other.service.cache.sizes["pages"][0] == 1)
        one.service.cache.purge("pages", None)
        await eventually(lambda: other.service.cache.sizes["pages"][0] == 0)
        await is_in_store(one, "")
        late = CachedApp(says(FRESH, body="late"))
        policy = POLICY % (server.url, server.prefix, "scope: public")
        async with ingress_gateway(late, policy) as third:
            assert (await ask(third, "/b")).body == b"late"


async def test_one_fills_for_all_instances(server: StoreServer) -> None:
    app = CachedApp(says(FRESH))
    async with gateways(server, app, 3) as made:
        hold = asyncio.Event()
        for one in made:
            one.app.hold = hold
        asking = [asyncio.create_task(ask(one)) for one in made for _ in range(3)]
        await eventually(lambda: sum(sum(one.service.accounting.in_flight.values()) for one in made) == 9)
        await eventually(lambda: len(app.asked) == 1)
        hold.set()
        answers = await asyncio.gather(*asking)
        assert {answer.body for answer in answers} == {b"answer 1"}
        assert len(app.asked) == 1


async def test_others_go_on_if_it_turns_out_not_to_be_kept(server: StoreServer) -> None:
    app = CachedApp(says("Cache-Control: no-store"))
    async with gateways(server, app, 2) as (one, other):
        hold = one.app.hold = other.app.hold = asyncio.Event()
        asking = [asyncio.create_task(ask(gateway)) for gateway in (one, other)]
        await eventually(lambda: len(app.asked) == 1)
        hold.set()
        assert {answer.status for answer in await asyncio.gather(*asking)} == {200}
        assert len(app.asked) == 2


async def test_while_the_store_is_away_each_has_its_own_and_a_hit_costs_nothing(server: StoreServer) -> None:
    app = CachedApp(says(FRESH))
    async with gateways(server, app) as (one, other):
        await ask(one, "/a")
        server.kill()
        await eventually(lambda: not one.store.is_up and not other.store.is_up, 30)
        assert (await ask(one, "/a")).cache == "hit"
        before = fallbacks(one)
        assert (await ask(one, "/b")).status == 200
        assert (await ask(one, "/b")).cache == "hit"
        assert fallbacks(one) > before
        # What is emptied meanwhile is told when the store is back.
        one.service.cache.purge("pages", "/a")
        server.start()
        await eventually(lambda: one.store.is_up and other.store.is_up, 60)
        assert (await ask(one, "/b")).status == 200


@pytest.mark.parametrize("size", [200_000, 3_000_000])
async def test_a_large_answer_is_shared_up_to_what_the_store_takes(server: StoreServer, size: int) -> None:
    app = CachedApp(says(FRESH, "Content-Type: image/png", body=b"x" * size))
    async with gateways(server, app) as (one, other):
        await ask(one)
        await is_in_store(one, "/")
        assert (await ask(other)).body == b"x" * size
        assert len(app.asked) == (1 if size < 1_000_000 else 2)


async def test_a_write_to_what_nobody_keeps_costs_the_store_nothing(server: StoreServer) -> None:
    app = CachedApp(says())
    async with gateways(server, app, 1) as (one,):
        policy = "{name: pages, match: {path: /pages/*}, cache: {scope: public}}"
        text = POLICY % (server.url, server.prefix, "scope: public")
        one.service.apply(
            load_policy(
                PolicySource(
                    "test", None, text.replace("{name: pages, match: {path: /*}, cache: {scope: public}}", policy)
                ),
                {},
            )
        )
        tier = one.service.cache.tier
        reported: list[object] = []
        tier.empty = lambda *what: reported.append(what)  # type: ignore[method-assign, union-attr]
        await ask(one, "/api/1", method="POST", body=b"x")
        assert reported == []
        await ask(one, "/pages/1", method="POST", body=b"x")
        assert reported == [(None, "/pages/1", "test")]
