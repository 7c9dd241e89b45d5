"""Limits over several front doors that share a store: exact while it is there, by `store.on_error` while it is not."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import http_sf
import pytest
from gateway_process import eventually
from ingress_gateway import OK, IngressGateway, answering, ingress_gateway
from store_servers import StoreServer, valkey_server

POLICY = """
store: {url: '%s', prefix: %s, on_error: %s, timeout: %s}
identity:
  user: [{path: "/u/{user}/*"}]
  tiers: [{name: premium, users: "premium_*"}, {name: free}]
routes:
  - {name: made, match: {path: "/u/*/make"}, rate_limit: {free: 10/h, premium: [12/h, 5/min]}, %s}
  - {name: small, match: {path: "/u/*/small"}, rate_limit: 3/h}
  - {name: shadow, match: {path: "/u/*/shadow"}, rate_limit: 2/h, enforce: false}
  - {name: all, match: {path: /*}}
"""
SLACK = 2.0  # seconds that a busy machine may add


@asynccontextmanager
async def gateways(
    server: StoreServer, count: int = 2, *, on_error: str = "share", timeout: str = "1s", more: str = "max_body: 1MiB"
) -> AsyncIterator[list[IngressGateway]]:
    """So many front doors over one store, each before an app of its own, that know of each other."""
    async with AsyncExitStack() as stack:
        policy = POLICY % (server.url, server.prefix, on_error, timeout, more)
        made = [await stack.enter_async_context(ingress_gateway(answering(OK), policy)) for _ in range(count)]
        await eventually(lambda: all(one.store.instances == count for one in made))
        yield made


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def fields_of(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


async def statuses(made: list[IngressGateway], path: str, each: int) -> Counter[int]:
    answers = await asyncio.gather(*(one.get(path) for one in made for _ in range(each)))
    return Counter(map(status_of, answers))


def fallbacks(one: IngressGateway) -> float:
    return one.metrics.store_fallback_total.labels("limit").value


async def test_a_limit_admits_n_over_all_instances_however_many_come_at_once(server: StoreServer) -> None:
    async with gateways(server, 3) as made:
        assert await statuses(made, "/u/ada/make", 20) == {200: 10, 429: 50}
        assert sum(len(one.app.heads) for one in made) == 10
        # Two limits at once: the tighter of them, and no other user counts for it.
        assert await statuses(made, "/u/premium_1/make", 4) == {200: 5, 429: 7}
        assert await statuses(made, "/u/bob/small", 2) == {200: 3, 429: 3}
        assert [fallbacks(one) for one in made] == [0, 0, 0]


async def test_the_fields_count_what_all_instances_admitted(server: StoreServer) -> None:
    async with gateways(server, 2) as (one, two):
        await one.get("/u/premium_1/make")
        fields = fields_of(await two.get("/u/premium_1/make"))
        left = http_sf.parse(fields["ratelimit"].encode(), tltype="list")
        assert [(name, more["r"]) for name, more in left] == [("made", 10), ("made-2", 3)]
        assert 3590 <= left[0][1]["t"] <= 3600
        assert (fields["x-ratelimit-limit"], fields["x-ratelimit-remaining"]) == ("5", "3")
        for gateway in (one, two, one):
            await gateway.get("/u/premium_1/make")
        refused = await two.get("/u/premium_1/make")
        fields, problem = fields_of(refused), json.loads(refused.partition(b"\r\n\r\n")[2])
        assert (status_of(refused), problem["type"]) == (429, "urn:outrigger:rate-limited")
        assert 0 < int(fields["retry-after"]) <= 60
        left = http_sf.parse(fields["ratelimit"].encode(), tltype="list")
        assert [more["r"] for _, more in left] == [7, 0]


async def test_a_request_that_no_limit_concerns_does_not_touch_the_store(server: StoreServer) -> None:
    async with gateways(server, 2) as (one, _):
        before = await one.text()
        assert 'op="limit"' not in before
        assert status_of(await one.get("/free/of/limits")) == 200
        assert 'op="limit"' not in await one.text()
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.store.is_up)
        assert status_of(await one.get("/free/of/limits")) == 200


async def test_a_refusal_that_holds_costs_no_second_round_trip(server: StoreServer) -> None:
    async with gateways(server, 1) as (one,):
        assert await statuses([one], "/u/ada/small", 3) == {200: 3}
        await one.get("/u/ada/small")
        asked = one.metrics.store_operation_seconds.labels("limit").cumulative_counts()[-1]
        began = time.monotonic()
        assert await statuses([one], "/u/ada/small", 20) == {429: 20}
        if time.monotonic() - began < 0.9:
            assert one.metrics.store_operation_seconds.labels("limit").cumulative_counts()[-1] == asked


async def test_what_is_refused_elsewhere_does_not_count_on_any_instance(server: StoreServer) -> None:
    """A place at the app is only looked for after the limit has counted the request."""
    more = "concurrency: 1, queue: {size: 0, wait: 0s}"
    async with gateways(server, 2, more=more) as (one, two):
        hold = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await one.app.head(reader)
            await hold.wait()
            writer.write(OK)

        one.app._script = slow
        first = asyncio.create_task(one.get("/u/ada/make"))
        await eventually(lambda: one.app.heads)
        assert await statuses([one], "/u/ada/make", 5) == {503: 5}
        hold.set()
        assert status_of(await first) == 200
        # The five went back at once, and two serves nine of ten.
        await eventually(lambda: not len(one.service.pipeline._shared_limiter._tasks))
        for _ in range(9):
            assert status_of(await two.get("/u/ada/make")) == 200
        assert status_of(await two.get("/u/ada/make")) == 429


async def test_shadow_mode_counts_over_all_instances_and_refuses_nothing(server: StoreServer) -> None:
    async with gateways(server, 2) as made:
        assert await statuses(made, "/u/ada/shadow", 4) == {200: 8}
        shadow = sum(one.metrics.rate_limit_total.labels("shadow", "free", "shadow").value for one in made)
        assert shadow == 6


@pytest.mark.parametrize(("on_error", "admitted"), [("share", 5), ("local", 10)])
async def test_without_the_store_an_instance_goes_on_with_its_part_or_with_the_whole(
    server: StoreServer, on_error: str, admitted: int
) -> None:
    async with gateways(server, 2, on_error=on_error) as made:
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not any(one.store.is_up for one in made))
        assert await statuses(made[:1], "/u/ada/make", 20) == {200: admitted, 429: 20 - admitted}
        # One at least, rounded down: 3/h over two instances is one each.
        if on_error == "share":
            assert await statuses(made, "/u/ada/small", 5) == {200: 2, 429: 8}
        assert fallbacks(made[0]) >= 20


async def test_a_part_is_less_what_this_instance_admitted_before(server: StoreServer) -> None:
    async with gateways(server, 2) as (one, two):
        assert await statuses([one], "/u/ada/make", 4) == {200: 4}
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.store.is_up and not two.store.is_up)
        assert await statuses([one], "/u/ada/make", 4) == {200: 1, 429: 3}
        assert await statuses([two], "/u/ada/make", 8) == {200: 5, 429: 3}


async def test_deny_refuses_what_needs_the_store_and_nothing_else(server: StoreServer) -> None:
    async with gateways(server, 1, on_error="deny") as (one,):
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.store.is_up)
        answer = await one.get("/u/ada/make", "Origin: https://page.example")
        problem = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (status_of(answer), problem["type"]) == (503, "urn:outrigger:store-unavailable")
        assert fields_of(answer)["retry-after"] == "1"
        assert fields_of(answer)["access-control-allow-origin"] == "https://page.example"
        assert status_of(await one.get("/u/ada/shadow")) == 200
        assert status_of(await one.get("/elsewhere")) == 200
        await asyncio.to_thread(server.start)
        await eventually(lambda: one.store.is_up, timeout=20)
        assert status_of(await one.get("/u/ada/make")) == 200


async def test_what_was_admitted_meanwhile_counts_when_the_store_is_back(server: StoreServer) -> None:
    async with gateways(server, 2) as (one, two):
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.store.is_up and not two.store.is_up)
        assert await statuses([one], "/u/ada/make", 9) == {200: 5, 429: 4}
        assert await statuses([two], "/u/ada/make", 2) == {200: 2}
        await asyncio.to_thread(server.start)
        await eventually(lambda: one.store.is_up and two.store.is_up, timeout=20)
        assert await statuses([one, two], "/u/ada/make", 10) == {200: 3, 429: 17}


async def test_losing_the_store_costs_all_requests_together_one_timeout() -> None:
    with valkey_server() as server:
        async with gateways(server, 2, timeout="300ms") as (one, two):
            await one.get("/u/warm/make")
            took = []

            async def ask(number: int) -> None:
                await asyncio.sleep(number / 40)
                began = time.monotonic()
                assert status_of(await one.get(f"/u/user{number}/make")) == 200
                took.append(time.monotonic() - began)

            server.server.freeze()
            try:
                await asyncio.gather(*(ask(number) for number in range(80)))
                assert max(took) < 0.3 + SLACK
                # Those of the first 0.3 s wait for the rest of it. Nobody afterwards.
                assert sum(seconds > 0.15 for seconds in took) <= 40, took
                assert not one.store.is_up
            finally:
                server.server.thaw()
            await eventually(lambda: one.store.is_up and two.store.is_up, timeout=20)
            # What was sent to the frozen store and timed out was admitted here: it counts once, not twice.
            assert fields_of(await two.get("/u/user0/make"))["x-ratelimit-remaining"] == "8"


async def test_a_store_that_lost_its_scripts_gets_them_again() -> None:
    with valkey_server() as server:
        async with gateways(server, 1) as (one,):
            await one.get("/u/ada/make")
            server.server.ask("SCRIPT", "FLUSH")
            answer = await one.get("/u/ada/make")
            assert fields_of(answer)["x-ratelimit-remaining"] == "8"
            assert fallbacks(one) == 0


async def test_a_full_store_is_a_store_that_is_away() -> None:
    with valkey_server("maxmemory-policy noeviction") as server:
        async with gateways(server, 1) as (one,):
            await one.get("/u/ada/make")
            server.server.ask("CONFIG", "SET", "maxmemory", "1")
            assert status_of(await one.get("/u/bob/make")) == 200
            await eventually(lambda: "OOM" in one.store.health().reason)
            assert one.store.health().state == "degraded"
            server.server.ask("CONFIG", "SET", "maxmemory", "0")
            await eventually(lambda: one.store.is_up, timeout=20)


async def test_users_are_hashed_in_keys_and_every_count_expires(server: StoreServer) -> None:
    async with gateways(server, 1) as (one,):
        await one.get("/u/ada.lovelace/make")
        if server.kind == "valkey":
            words = server.server.ask("KEYS", "*").split("\r\n")
            keys = [word for word in words if word.startswith(server.prefix)]
            assert not [key for key in keys if "ada" in key]
            (key,) = (key for key in keys if ":limit:" in key)
            assert 0 < int(server.server.ask("PTTL", key).strip(":\r\n")) <= 3_600_000
        else:
            with server.server.control(server.url.rpartition("/")[2]) as control:
                ((key, left),) = control.execute(
                    f'select key, (expires / 1e6 - extract(epoch from now()))::float from "{server.prefix}".limits'
                ).fetchall()
            assert "ada" not in key
            assert 3500 < left <= 3600
