"""Caps over several instances that share a store, before a vendor that counts: by real stores and real ledgers."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest
from egress_gateway import CHAT, Vendor, completion, errs, says
from faulty_network import FaultyNetwork
from gateway_process import eventually
from shared_egress import PRICE, call_all, open_gateway, shared_gateways
from store_servers import StoreServer, valkey_server

from proxy.store.money import RECOVERY_SECONDS
from proxy.units import NANOS

ADA = "{per_user: $0.0017/d}"  # a hundred calls


@pytest.fixture
async def vendor():
    made = Vendor(says())
    await made.start()
    yield made
    await made.stop()


async def test_a_total_cap_holds_over_instances_to_the_last_call_and_no_further(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 3, cap="{total: $0.0034/d}") as made:
        found = await call_all(made, 100)
        assert set(found) == {200, 429}
        billed = len(vendor.requests) * PRICE
        assert billed <= 0.0034 * NANOS
        assert billed > 0.0034 * NANOS - 3 * 40_000, "what is left is less than a call reserves"
        assert "cap.total" in await made[0].refusal()


async def test_users_and_calls_of_nobody_have_their_caps_over_instances(server, vendor, tmp_path):
    cap = "{per_user: $0.0017/d, unattributed: $0.00085/d}"
    async with shared_gateways(tmp_path, server, vendor, 2, cap=cap) as made:
        ada = await call_all(made, 70, user="ada")
        bob = await call_all(made, 20, user="bob")
        nobody = await call_all(made, 40, user="")
        assert 95 <= ada[200] <= 100
        assert bob == {200: 40}
        assert 45 <= nobody[200] <= 50
        assert len(vendor.requests) == ada[200] + bob[200] + nobody[200]


async def test_what_is_spent_is_known_on_the_other_instance_and_after_a_restart_of_all(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap=ADA) as (one, two):
        assert await call_all([one], 60, user="ada") == {200: 60}
        assert await two.call() == 200
        await eventually(lambda: two.spent("ada") == 61 * PRICE)
    # End users are not forgotten with the memory of who ended.
    async with shared_gateways(tmp_path, server, vendor, 2, cap=ADA) as (one, two):
        found = await call_all([one, two], 40, user="ada")
        assert 35 <= found[200] <= 39
        assert len(vendor.requests) <= 100


async def test_a_slice_of_an_instance_that_ends_is_given_back_at_once(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap="{total: $0.0034/d}", slice="50%") as (one, two):
        assert await one.call() == 200
        await two.call()
        window = next(each for each in two.escrow.windows.values() if each.name.user is None and each.limit)
        assert window.held_elsewhere > 0, "half of the cap is set aside by the other"
        await one.stop()
        one.dead = True
        assert await two.escrow.refresh([window], 5.0)
        assert window.held_elsewhere == 0


async def test_what_an_idle_instance_has_set_aside_goes_to_one_that_lacks_it(server, vendor, tmp_path):
    async with shared_gateways(
        tmp_path, server, vendor, 2, cap="{total: $0.0017/d}", slice="90%", timeout="2s"
    ) as made:
        one, two = made
        assert await one.call() == 200  # and it holds nine tenths
        found = await call_all([two], 110)
        assert 95 <= found[200] <= 99


def new_ledger(cluster) -> str:
    """A ledger that instances share: a database of its own."""
    name = f"ledger_{uuid.uuid4().hex[:8]}"
    cluster.make(name)
    return cluster.url(name)


async def test_five_cold_starts_at_once_count_the_shared_ledger_once(server, vendor, tmp_path, own):
    url = new_ledger(own)
    async with shared_gateways(tmp_path, server, vendor, 1, cap=ADA, ledger=url) as (one,):
        assert await call_all([one], 40, user="ada") == {200: 40}
    # The store is new: all that is known is in the ledger.
    server.prefix += "new"
    made = await asyncio.gather(*(open_gateway(tmp_path, server, vendor, cap=ADA, ledger=url) for _ in range(5)))
    try:
        assert await asyncio.gather(*(each.call() for each in made)) == [200] * 5
        for each in made:
            await eventually(lambda each=each: each.spent("ada") == 45 * PRICE or each.escrow.ask_beside(
                next(w for w in each.escrow.windows.values() if w.name.user == "ada" and w.limit)))  # fmt: skip
        found = await call_all(made, 20, user="ada")
        assert len(vendor.requests) <= 100
        assert found[200] >= 50
    finally:
        for each in made:
            await each.stop()


async def test_a_killed_instance_leaves_no_reservation_behind(tmp_path, vendor):
    with valkey_server() as server:
        async with shared_gateways(tmp_path, server, vendor, 2, cap="{total: $0.0017/d}", slice="60%") as (one, two):
            assert await one.call() == 200
            await eventually(lambda: one.spent() == PRICE)
            await asyncio.sleep(1.0)  # it is in the store
            await one.kill()
            before = await call_all([two], 70)  # each that is refused has waited for money to come back
            assert before.get(200, 0) < 60, "the killed one's slice counts as spent"
            # A minute later it counts no more: as if it had been heard of that long ago.
            age_records(server, 61)
            after = await call_all([two], 70)
            assert 90 <= before.get(200, 0) + after.get(200, 0) <= 99
            assert len(vendor.requests) <= 100


def age_records(server: StoreServer, seconds: float) -> None:
    """Have every instance been heard of so many seconds earlier."""
    script = """
for _, key in ipairs(redis.call('KEYS', ARGV[2])) do
  if redis.call('TYPE', key).ok == 'hash' then
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
      if string.sub(all[i], 1, 2) == 'i:' then
        local s, o, h, seen, rest = string.match(all[i + 1], '^(%S+) (%S+) (%S+) (%S+) (.*)$')
        redis.call('HSET', key, all[i], table.concat({s, o, h, string.format('%.0f', seen - ARGV[1]), rest}, ' '))
      end
    end
  end
end
return 1"""
    said = server.server.ask("EVAL", script, "0", str(round(seconds * 1e6)), f"{server.prefix}:*")
    assert said.startswith(":1"), said


@pytest.mark.parametrize("shared_ledger", [True, False])
async def test_a_store_that_comes_back_empty_gives_no_money_back(vendor, tmp_path, own, shared_ledger):
    url = new_ledger(own) if shared_ledger else ""
    with valkey_server() as server:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=ADA, ledger=url) as made:
            found = await call_all(made, 40, user="ada")
            assert found == {200: 80}
            await asyncio.sleep(1.0)
            server.kill()
            server.start()
            await eventually(lambda: all(each.store.is_up for each in made), timeout=60)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and (await call_all(made, 10, user="ada")).get(200, 0):
                pass
            assert len(vendor.requests) <= 100
            await asyncio.sleep(RECOVERY_SECONDS + 1.0)
            await call_all(made, 20, user="ada")
            assert 90 <= len(vendor.requests) <= 100


async def test_an_instance_that_was_quiet_while_the_store_was_lost_tells_its_sums_again(vendor, tmp_path):
    with valkey_server() as server:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=ADA) as (one, two):
            assert await call_all([one], 90, user="ada") == {200: 90}
            await eventually(lambda: not one.escrow._active, timeout=60)
            server.kill()
            server.start()
            await eventually(lambda: one.store.is_up and two.store.is_up, timeout=60)
            await asyncio.sleep(RECOVERY_SECONDS + 1.0)
            await call_all([two], 40, user="ada", at_once=2)
            assert len(vendor.requests) <= 100


async def test_a_store_restored_from_an_older_snapshot_gives_no_money_back(vendor, tmp_path, own):
    url = new_ledger(own)
    with valkey_server() as server:
        async with shared_gateways(tmp_path, server, vendor, 3, cap=ADA, ledger=url) as made:
            assert await call_all(made, 10, user="ada") == {200: 30}
            await asyncio.sleep(1.0)
            server.server.ask("SAVE")
            assert await call_all(made, 10, user="ada") == {200: 30}
            # One of those that spent since the snapshot is gone when it comes back.
            await asyncio.sleep(1.5)
            await made[2].kill()
            server.kill()
            server.start()
            live = made[:2]
            await eventually(lambda: all(each.store.is_up for each in live), timeout=60)
            await asyncio.sleep(RECOVERY_SECONDS + 1.0)
            await call_all(live, 60, user="ada", at_once=4)
            assert 90 <= len(vendor.requests) <= 100


async def test_a_fallback_to_another_model_is_under_the_same_caps(server, tmp_path):
    async def answer(request):
        body = await request.content.read()
        cheap = b'"cheap"' in body
        billed.extend([1] * cheap)
        return await (says(completion(model="cheap")) if cheap else errs(400, "no"))(request)

    billed: list[int] = []
    vendor = Vendor()

    async def handle(request):
        body = vendor.requests[-1][3]
        if b'"cheap"' in body:
            billed.append(1)
            return await says(completion(model="cheap"))(request)
        return await errs(503, "down")(request)

    vendor.answers.append(handle)
    await vendor.start()
    more = "fallback: [{model: cheap}]\n    breaker: off"
    try:
        async with shared_gateways(tmp_path, server, vendor, 2, cap=ADA, more=more) as made:
            found = await call_all(made, 70, user="ada", at_once=4)
            assert 90 <= len(billed) <= 100, found
    finally:
        await vendor.stop()


async def test_what_one_instance_forgives_counts_on_all(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap=ADA) as (one, two):
        await call_all([one, two], 60, user="ada")
        assert await two.call() == 429
        taken = await one.out.egress.spend.forgive("ada")
        assert sum(amount for _, period, amount in taken if period == "d") == len(vendor.requests) * PRICE
        assert await two.call() == 200, "at once: a call asks the store"
        assert await one.call() == 200


@pytest.mark.parametrize("on_error", ["share", "local", "deny"])
async def test_while_the_store_is_away_calls_go_by_on_error(vendor, tmp_path, on_error):
    with valkey_server() as server:
        cap = "{per_user: $0.17/d}"
        async with shared_gateways(tmp_path, server, vendor, 2, cap=cap, on_error=on_error) as (one, two):
            assert await call_all([one, two], 20, user="ada", at_once=2) == {200: 40}
            await asyncio.sleep(1.0)
            server.kill()
            await eventually(lambda: one.escrow.away_because is not None or one.escrow.touch(
                next(iter(one.escrow.windows.values()))), timeout=60)  # fmt: skip
            found = await call_all([one], 250, user="ada", at_once=5)
            if on_error == "deny":
                assert found == {503: 250}
                assert "store_unavailable" in await one.refusal()
            elif on_error == "share":
                # Two in a hundred of what is left are some 200 calls.
                assert 0 < found[200] < 250
                assert "cost_cap_exceeded" in await one.refusal()
            else:
                assert found == {200: 250}
            server.start()
            await eventually(lambda: one.store.is_up, timeout=60)
            await eventually(lambda: one.escrow.away_because is None, timeout=60)
            await asyncio.sleep(RECOVERY_SECONDS)
            assert await one.call() == 200
            # What was spent meanwhile is known to the other.
            await two.call()
            await eventually(lambda: two.spent("ada") == len(vendor.requests) * PRICE or two.escrow.ask_beside(
                next(w for w in two.escrow.windows.values() if w.name.user == "ada" and w.limit)), timeout=60)  # fmt: skip


async def test_a_far_database_for_caps_is_waited_for_at_a_slices_end_alone(vendor, tmp_path, own):
    network = FaultyNetwork(own.port)
    network.delay, network.loss = 0.08, 0.03
    far = new_ledger(own).replace(f":{own.port}/", f":{network.port}/")
    try:
        with valkey_server() as server:
            async with shared_gateways(
                tmp_path, server, vendor, 2, cap="{total: $1.7/d}", money=far, timeout="1s"
            ) as made:  # fmt: skip
                one, two = made
                # The first start of all makes the schema, statement by statement.
                await eventually(lambda: all(each.parts[-1].is_up for each in made), timeout=60)
                assert await one.call() == 200
                took = []
                for _ in range(150):
                    began = time.monotonic()
                    assert await one.call() == 200
                    took.append(time.monotonic() - began)
                waited = sum(each > 0.08 for each in took)
                assert waited <= 5, sorted(took)[-10:]
                await asyncio.sleep(2.0)
                assert await two.call() == 200
                await eventually(lambda: two.spent() == len(vendor.requests) * PRICE or two.escrow.ask_beside(
                    next(w for w in two.escrow.windows.values() if w.limit)), timeout=60)  # fmt: skip
    finally:
        network.close()


async def test_after_quiet_nothing_is_set_aside_and_nothing_more_is_sent(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap="{total: $1/d, per_user: $0.5/d}") as made:
        await call_all(made, 20, user="ada")
        for each in made:
            await eventually(lambda each=each: not each.escrow._active, timeout=60)
            numbers = each.escrow._number
            await asyncio.sleep(1.0)
            assert each.escrow._number == numbers
            assert all(window.told[2] == 0 for window in each.escrow.windows.values())


async def test_a_request_is_told_what_its_user_spent_on_all_instances(server, vendor, tmp_path):
    async with shared_gateways(tmp_path, server, vendor, 2, cap=ADA) as (one, two):
        assert await call_all([one], 30, user="ada") == {200: 30}
        await asyncio.sleep(1.0)
        spend = two.out.egress.spend
        assert spend.has_cap("ada", "")
        assert not spend.is_loaded("ada", "")
        await spend.load_user("ada", "")
        assert spend.is_loaded("ada", "")
        assert spend.spent_today("ada") == 30 * PRICE
        await call_all([one], 80, user="ada")
        await asyncio.sleep(2.5)
        assert not spend.is_loaded("ada", "", fresh=True)
        await spend.load_user("ada", "")
        assert spend.exhausted_cap("ada", "") is not None


async def test_a_call_to_nobody_known_has_no_user_in_the_store(vendor, tmp_path):
    with valkey_server() as server:
        async with shared_gateways(tmp_path, server, vendor, 1, cap=ADA) as (one,):
            assert await one.call("ada-lovelace") == 200
            await asyncio.sleep(1.0)
            everything = server.server.ask("KEYS", "*")
            assert "ada" not in everything
            assert "caps" in everything
            assert CHAT["model"] not in everything
