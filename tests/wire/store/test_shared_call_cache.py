"""Answers to calls over several instances that share a store: what one has paid for the others give too."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from base64 import b64encode
from contextlib import AsyncExitStack, closing

import pytest
from egress_gateway import CHAT, Vendor, chunks, completion, errs, says, streams
from gateway_process import eventually
from shared_egress import SharedGateway, open_gateway, shared_gateways
from store_servers import StoreServer, valkey_server

CAP = "{total: $100/d}"
CACHE = "cache: {ttl: 10m, when: %s}"
ALWAYS = CACHE % "always"
SECRET = "what nobody may read in the store"
QUESTION = {**CHAT, "messages": [{"role": "user", "content": SECRET}]}


@pytest.fixture
async def vendor():
    made = Vendor()
    made.hold = asyncio.Event()
    made.hold.set()

    async def answer(request):
        number = len(made.requests)
        await made.hold.wait()
        return await says(completion(f"answer {number}"))(request)

    made.answers.append(answer)
    await made.start()
    yield made
    await made.stop()


async def ask(one: SharedGateway, user: str = "ada", **more: object) -> tuple[str, str, str]:
    """What the cache said, what the call cost, and the answer's text."""
    status, fields, body = await one.out.chat({**QUESTION, "user": user, **more})
    assert status == 200, body
    text = body if more.get("stream") else json.loads(body)["choices"][0]["message"]["content"]
    return fields["x-outrigger-cache"], fields.get("x-outrigger-cost", ""), text


async def written(one: SharedGateway) -> None:
    """Wait until what was written behind is in the store."""
    tier = one.out.egress._shared_cache
    await eventually(lambda: tier.answers.is_quiet)


def fallbacks(one: SharedGateway) -> float:
    return one.out.metrics.store_fallback_total.labels("cache").value


async def test_what_one_has_paid_another_gives_and_writes_down_as_a_hit(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=ALWAYS) as (one, other):
        assert (await ask(one))[::2] == ("miss", "answer 1")
        await written(one)
        assert await ask(other) == ("hit", "0.000000", "answer 1")
        # From now on out of its own memory, as any hit.
        reads = other.out.metrics.store_operation_seconds.labels("get").cumulative_counts()
        assert await ask(other) == ("hit", "0.000000", "answer 1")
        assert other.out.metrics.store_operation_seconds.labels("get").cumulative_counts() == reads
        assert len(vendor.requests) == 1
        shared, local = (await other.out.logged(2))[:2]
        for key in ("cache", "outcome", "cost_usd", "attempts", "status", "model", "user", "input_tokens", "basis"):
            assert shared[key] == local[key], key
        assert (shared["cache"], shared["outcome"], shared["cost_usd"]) == ("hit", "cached", 0)
        assert other.out.metrics.cache_total.labels("openai", "hit").value == 2
        assert await other.ledger.wait_written()
        with closing(sqlite3.connect(tmp_path / "ledger-1.db")) as ledger:
            columns = "user_id, model, cache, outcome, cost, attempts, status, input_tokens"
            written_down = ledger.execute(f"SELECT {columns} FROM outrigger_calls").fetchall()
        assert len(written_down) == 2
        assert len(set(written_down)) == 1
        assert written_down[0][:5] == ("ada", "gpt-4o-mini", "hit", "cached", 0)


async def test_a_user_gets_nobody_elses_answer_unless_the_policy_says_so(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=ALWAYS) as (one, other):
        await ask(one, "ada")
        await written(one)
        assert (await ask(other, "bob"))[::2] == ("miss", "answer 2")
        assert (await ask(other, "ada"))[::2] == ("hit", "answer 1")


async def test_only_what_the_policy_calls_deterministic_is_shared(server, vendor, tmp_path):
    more = CACHE % "deterministic"
    async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=more) as (one, other):
        await ask(one)
        await ask(one, temperature=0)
        await written(one)
        assert (await ask(other))[0] == "off"
        assert (await ask(other, temperature=0))[::2] == ("hit", "answer 2")


async def test_nothing_of_question_user_or_key_stands_in_a_key_of_the_store(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 1, cap=CAP, more=ALWAYS + "\n    coalesce: true") as (one,):
        await ask(one, "ada-of-the-users")
        await written(one)
        keys = await keys_of(one, server)
        assert any("calls:a:" in key for key in keys), keys
        for word in (SECRET, "ada-of-the-users", "nobody may read"):
            assert not any(word in key for key in keys)


async def test_one_call_for_all_instances_if_calls_are_shared(server, vendor, tmp_path):
    vendor.hold.clear()
    more = ALWAYS + "\n    coalesce: true"
    async with shared_gateways(tmp_path, server, vendor, 3, cap=CAP, more=more) as made:
        asking = [asyncio.create_task(ask(one)) for one in made for _ in range(3)]
        await eventually(lambda: len(vendor.requests) == 1)
        await asyncio.sleep(6)  # longer than the right to it holds by itself
        assert len(vendor.requests) == 1
        vendor.hold.set()
        answers = await asyncio.gather(*asking)
        assert {text for _, _, text in answers} == {"answer 1"}
        assert len(vendor.requests) == 1
        assert sorted(float(cost) > 0 for _, cost, _ in answers if cost) == [False] * 8 + [True], answers
        spent = sum(one.spent() - one.limits.accounts.current_total()["d"].elsewhere for one in made)
        assert spent == max(one.spent() for one in made)


async def test_without_shared_calls_each_makes_its_own(server, vendor, tmp_path):
    vendor.hold.clear()
    async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=ALWAYS) as made:
        asking = [asyncio.create_task(ask(one)) for one in made]
        await eventually(lambda: len(vendor.requests) == 2)
        vendor.hold.set()
        await asyncio.gather(*asking)


async def test_a_stream_does_not_wait_for_another_instance_and_is_given_whole_afterwards(server, tmp_path):
    vendor = Vendor(streams(chunks("one", "two"), pause=0.3))
    await vendor.start()
    more = ALWAYS + "\n    coalesce: true"
    try:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=more) as (one, other):
            first = asyncio.create_task(ask(one, stream=True))
            await eventually(lambda: len(vendor.requests) == 1)
            second = asyncio.create_task(ask(other, stream=True))
            await eventually(lambda: len(vendor.requests) == 2)
            assert {(await first)[0], (await second)[0]} == {"miss"}
            await written(one)
            async with shared_gateways(tmp_path, server, vendor, 1, cap=CAP, more=more) as (third,):
                cache, _, text = await ask(third, stream=True)
                assert (cache, "two" in text, text.rstrip().endswith("[DONE]")) == ("hit", True, True)
            assert len(vendor.requests) == 2
    finally:
        await vendor.stop()


async def test_if_the_one_that_asks_fails_the_others_go_on(server, tmp_path):
    vendor = Vendor(errs(400), says(completion("later")))
    await vendor.start()
    more = ALWAYS + "\n    coalesce: true"
    try:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=more) as (one, other):
            assert (await one.out.chat(QUESTION))[0] == 400
            began = time.monotonic()
            assert (await ask(other))[2] == "later"
            assert time.monotonic() - began < 4, "the right to ask was given back"
    finally:
        await vendor.stop()


async def test_a_killed_instance_holds_the_others_up_for_seconds_only(server, vendor, tmp_path):
    vendor.hold.clear()
    more = ALWAYS + "\n    coalesce: true"
    async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=more) as (one, other):
        lost = asyncio.create_task(one.out.chat({**QUESTION, "user": "ada"}))
        await eventually(lambda: len(vendor.requests) == 1)
        one.out.egress._shared_cache.close()  # nothing is renewed any more, and nothing given back
        await one.kill()
        second = asyncio.create_task(ask(other))
        await eventually(lambda: len(vendor.requests) == 2, 20)
        vendor.hold.set()
        assert (await second)[0] == "miss"
        await asyncio.gather(lost, return_exceptions=True)


async def test_an_operator_empties_an_upstream_everywhere(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=ALWAYS) as (one, other):
        await ask(one)
        await written(one)
        await ask(other)
        assert one.out.egress.purge_cache("openai") == 1
        await eventually(lambda: other.out.openai.cache.usage[0] == 0, 2)
        await written(one)
        assert (await ask(other))[::2] == ("miss", "answer 2"), "the store's is of before"
        # An instance that starts later does not find it either.
        third = await open_gateway(tmp_path, server, vendor, cap=CAP, more=ALWAYS)
        try:
            assert (await ask(third, "bob"))[0] == "miss"
            assert third.out.openai.cache.usage[0] == 1
        finally:
            await third.stop()


async def test_what_is_on_its_way_while_an_upstream_is_emptied_is_not_kept(server, vendor, tmp_path):
    vendor.hold.clear()
    async with shared_gateways(tmp_path, server, vendor, 1, cap=CAP, more=ALWAYS) as (one,):
        asking = asyncio.create_task(ask(one))
        await eventually(lambda: len(vendor.requests) == 1)
        one.out.egress.purge_cache("openai")
        vendor.hold.set()
        await asking
        assert (await ask(one))[::2] == ("miss", "answer 2")


async def test_a_stale_one_of_another_instance_stands_in_for_a_call_that_fails(server, tmp_path):
    vendor = Vendor(says(completion("kept")), errs(500))
    await vendor.start()
    more = "cache: {ttl: 1s, when: always, stale_if_error: 1h}"
    try:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=more) as (one, other):
            await ask(one)
            await written(one)
            await asyncio.sleep(1.1)
            assert (await ask(other))[::2] == ("stale", "kept")
    finally:
        await vendor.stop()


async def test_a_large_answer_is_compressed_and_what_is_too_large_stays_in_memory(server, tmp_path):
    even, noise = "0.125, " * 60_000, b64encode(os.urandom(2_000_000)).decode()
    vendor = Vendor(says(completion(even)), says(completion(noise)))
    await vendor.start()
    try:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=ALWAYS) as (one, other):
            for seed in (1, 2):
                await ask(one, seed=seed)
                await written(one)
            sizes = await sizes_of(one, server)
            assert len(sizes) == 1
            assert sizes[0] < 60_000
            assert (await ask(other, seed=1))[::2] == ("hit", even)
            assert (await ask(one, seed=2))[0] == "hit"
            assert (await ask(other, seed=2))[::2] == ("miss", noise)
    finally:
        await vendor.stop()


async def test_an_upstream_takes_no_more_of_the_store_than_its_max(server, tmp_path):
    vendor = Vendor(says(completion("x" * 20_000)))
    await vendor.start()
    more = "cache: {ttl: 10m, when: always, max: 128KiB}"
    try:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=CAP, more=more) as made:
            for number in range(20):
                await ask(made[number % 2], seed=number)
                await written(made[number % 2])
            sizes = await sizes_of(made[0], server)
            assert 100_000 < sum(sizes) <= 128 * 1024, sizes
            # What came last is there.
            assert (await ask(made[0], seed=19))[0] == "hit"
            assert len(vendor.requests) == 20
    finally:
        await vendor.stop()


async def test_a_store_that_is_frozen_costs_calls_one_wait_and_nothing_afterwards(vendor, tmp_path):
    async with AsyncExitStack() as stack:
        server = stack.enter_context(valkey_server())
        gateways = shared_gateways(tmp_path, server, vendor, 1, cap="{}", more=ALWAYS, timeout="1s")
        (one,) = await stack.enter_async_context(gateways)
        await ask(one)
        server.server.freeze()
        try:
            began = time.monotonic()
            await asyncio.gather(*(ask(one, seed=number) for number in range(10)))
            assert time.monotonic() - began < 3
            await eventually(lambda: not one.store.is_up, 10)
            before, began = fallbacks(one), time.monotonic()
            for number in range(10, 15):
                assert (await ask(one, seed=number))[0] == "miss"
            assert time.monotonic() - began < 2
            assert fallbacks(one) == before + 5
            # What it has in memory it goes on giving.
            assert (await ask(one))[0] == "hit"
        finally:
            server.server.thaw()
        await eventually(lambda: one.store.is_up, 30)
        assert (await ask(one))[0] == "hit", "what was paid for is not forgotten when the store is back"


async def test_what_was_emptied_while_the_store_was_away_is_told_when_it_is_back(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap="{}", more=ALWAYS) as (one, other):
        await ask(one)
        await written(one)
        await ask(other)
        server.kill()
        await eventually(lambda: not one.store.is_up and not other.store.is_up, 30)
        one.out.egress.purge_cache("openai")
        server.start()
        await eventually(lambda: one.store.is_up and other.store.is_up, 60)
        await eventually(lambda: other.out.openai.cache.usage[0] == 0, 5)


# ── what is in the store ─────────────────────────────────────────────────────────────────────────────────────────────


async def keys_of(one: SharedGateway, server: StoreServer) -> list[str]:
    if server.kind == "valkey":
        return [key.decode() for key in await one.store._connection.command("KEYS", f"{server.prefix}:*")]
    return await rows(server, "SELECT key FROM {schema}.kept UNION ALL SELECT key FROM {schema}.cache_sizes")


async def sizes_of(one: SharedGateway, server: StoreServer) -> list[int]:
    """The bytes of each answer in the store."""
    if server.kind == "valkey":
        keys = await one.store._connection.command("KEYS", f"{server.prefix}:calls:a:*")
        return [await one.store._connection.command("STRLEN", key) for key in keys]
    return await rows(server, "SELECT length(value) FROM {schema}.kept WHERE key LIKE 'calls:a:%'")


async def rows(server: StoreServer, text: str) -> list:
    import asyncpg

    connection = await asyncpg.connect(server.url)
    try:
        return [row[0] for row in await connection.fetch(text.replace("{schema}", server.prefix))]
    finally:
        await connection.close()
