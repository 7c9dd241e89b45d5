"""A store that is away, slow, frozen, restarted: nobody waits longer than `store.timeout`, and it is found again."""

from __future__ import annotations

import asyncio
import time

import pytest
from faulty_network import faulty_network
from gateway_process import eventually
from store_servers import StoreServer, instances, new_instance, valkey_server

from proxy.store.interface import StoreAway, WaitBudget

TIMEOUT = "250ms"  # store.timeout
SLACK = 2.0  # seconds that a busy machine may add


async def test_an_instance_starts_while_the_store_is_away(server: StoreServer) -> None:
    server.kill()
    one = new_instance(server, timeout=TIMEOUT)
    began = time.monotonic()
    await one.store.start()
    assert time.monotonic() - began < 5.0
    assert not one.store.is_up
    assert one.store.instances == 1
    health = one.store.health()
    assert (health.state, "cannot" in health.reason) == ("degraded", True), health
    with pytest.raises(StoreAway):
        await one.store.get("x")
    await asyncio.to_thread(server.start)
    await eventually(lambda: one.store.is_up, timeout=20)
    assert one.store.health().state == "ok"
    assert one.metrics.store_up.value == 1
    assert [text for event, text in one.events if "is back" in text]
    await one.store.stop()


async def test_a_store_that_was_killed_is_found_again_by_itself(server: StoreServer) -> None:
    async with instances(server, 2, timeout=TIMEOUT) as (one, two):
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.store.is_up and not two.store.is_up)
        with pytest.raises(StoreAway):
            await one.store.get("x")
        assert "secret" not in repr(one.store)
        await asyncio.to_thread(server.start)
        await eventually(lambda: one.store.is_up and two.store.is_up, timeout=20)
        await one.store.set("x", b"1", 60)
        assert await two.store.get("x") == b"1"
        assert await eventually(lambda: one.store.instances == 2)


async def test_what_was_said_while_the_store_was_away_is_heard_afterwards(server: StoreServer) -> None:
    async with instances(server, 2, timeout=TIMEOUT) as (one, two):
        heard: list[object] = []
        two.store.subscribe("block", heard.append)
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.store.is_up)
        one.store.publish("block", {"user": "u"})
        await asyncio.to_thread(server.start)
        await eventually(lambda: heard == [{"user": "u"}], timeout=20)


async def test_handlers_of_a_return_run_before_anybody_else_may_ask(server: StoreServer) -> None:
    async with instances(server, 1, timeout=TIMEOUT) as (one,):
        seen: list[object] = []

        async def write_back() -> None:
            assert not one.store.is_up
            await one.store.set("mine", b"written back", 60)
            back.set()
            await eventually(lambda: seen)

        async def ask() -> None:
            await back.wait()
            try:
                seen.append(await one.store.get("mine"))
            except StoreAway as away:
                seen.append(away)

        back = asyncio.Event()
        somebody_else = asyncio.create_task(ask())
        one.store.on_return(write_back)
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.store.is_up)
        with pytest.raises(StoreAway):
            await one.store.get("mine")  # somebody asked, so it is known to be away
        await asyncio.to_thread(server.start)
        await eventually(lambda: one.store.is_up, timeout=20)
        assert await one.store.get("mine") == b"written back"
        await somebody_else
        assert isinstance(seen[-1], StoreAway)


async def test_a_frozen_store_costs_one_timeout_for_everybody_together() -> None:
    with valkey_server() as server:
        async with instances(server, 1, timeout=TIMEOUT) as (one,):
            await one.store.get("warm")
            server.server.freeze()
            try:
                took: list[float] = []

                async def ask(after: float) -> None:
                    await asyncio.sleep(after)
                    began = time.monotonic()
                    with pytest.raises(StoreAway):
                        await one.store.get("x")
                    took.append(time.monotonic() - began)

                began = time.monotonic()
                # Two hundred requests within a second, and for three seconds after it one after the other.
                await asyncio.gather(*(ask(number / 200) for number in range(200)))
                assert time.monotonic() - began < 1.0 + 0.25 + SLACK
                waited = [one for one in took if one > 0.1]
                assert max(took) < 0.25 + SLACK
                # Whoever came within the first time-out waited for the rest of it; nobody after it waited at all.
                assert len(waited) < 120, len(waited)
                for _ in range(30):
                    began = time.monotonic()
                    with pytest.raises(StoreAway):
                        await one.store.get("x")
                    took.append(time.monotonic() - began)
                    await asyncio.sleep(0.1)
                assert sum(one > 0.1 for one in took[200:]) <= 2, took[200:]
            finally:
                server.server.thaw()
            await eventually(lambda: one.store.is_up, timeout=20)
            assert await one.store.get("x") is None


async def test_a_budget_is_for_all_operations_together() -> None:
    with valkey_server() as server:
        async with instances(server, 1, timeout="5s") as (one,):
            budget = WaitBudget(0.5)
            for _ in range(10):
                await one.store.get("x", budget)
            assert 0 < budget.left < 0.5
            server.server.freeze()
            try:
                began = time.monotonic()
                with pytest.raises(StoreAway):
                    await one.store.get("x", budget)
                assert time.monotonic() - began < 0.5 + SLACK
            finally:
                server.server.thaw()


async def test_who_has_no_time_left_says_nothing_about_the_store() -> None:
    with valkey_server() as server:
        with faulty_network(server.server.port) as network:
            async with instances(server, 1, url=f"redis://127.0.0.1:{network.port}", timeout="5s") as (one,):
                connection = one.store._connection
                with pytest.raises(StoreAway, match="used up"):
                    await one.store.get("x", WaitBudget(0.0))
                network.delay = 0.3
                with pytest.raises(StoreAway, match="used up"):
                    await one.store.get("x", WaitBudget(0.01))
                network.delay = 0.0
                await one.store.set("x", b"1", 60)
                assert await one.store.get("x") == b"1"
                assert one.store.is_up
                assert one.store._connection is connection


async def test_a_network_that_swallows_is_a_store_that_is_away_and_one_that_is_mended_brings_it_back() -> None:
    with valkey_server() as server:
        with faulty_network(server.server.port) as network:
            async with instances(server, 1, url=f"redis://127.0.0.1:{network.port}", timeout=TIMEOUT) as (one,):
                await one.store.set("x", b"1", 60)
                network.stall()
                await eventually(lambda: not one.store.is_up, timeout=5)
                network.flow()
                await eventually(lambda: one.store.is_up, timeout=20)
                assert await one.store.get("x") == b"1"


async def test_a_slow_store_is_away_as_well_and_does_not_come_and_go() -> None:
    with valkey_server() as server:
        with faulty_network(server.server.port) as network:
            async with instances(server, 1, url=f"redis://127.0.0.1:{network.port}", timeout=TIMEOUT) as (one,):
                network.delay = 0.4
                await eventually(lambda: not one.store.is_up, timeout=5)
                seen = set()
                for _ in range(60):
                    seen.add(one.store.is_up)
                    await asyncio.sleep(0.05)
                assert seen == {False}
                network.delay = 0.0
                await eventually(lambda: one.store.is_up, timeout=20)


async def test_a_connection_that_the_server_ends_is_opened_anew_within_the_wait(server: StoreServer) -> None:
    async with instances(server, 1, timeout="3s") as (one,):
        await one.store.set("x", b"1", 60)
        if server.kind == "valkey":
            server.server.ask("CLIENT", "KILL", "TYPE", "normal")
        else:
            with server.server.control() as control:
                control.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'outrigger-store'"
                )
        # It may hear of the end only now; the operation after that waits for the new connection.
        try:
            await one.store.get("x")
        except StoreAway:
            pass
        assert await one.store.get("x") == b"1"
        assert not [text for event, text in one.events if "Until it is back" in text]
