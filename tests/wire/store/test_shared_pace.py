"""`pace` of an upstream over several instances: rates, calls at once, and what the vendor asked for."""

from __future__ import annotations

import asyncio
import time

import pytest
from egress_gateway import Vendor, errs, says
from gateway_process import eventually
from shared_egress import call_all, shared_gateways
from store_servers import valkey_server

FREE = "{}"  # no cap


@pytest.fixture
async def vendor():
    made = Vendor()
    made.times = []
    made.most = 0

    async def answer(request):
        made.times.append(time.monotonic())
        made.most = max(made.most, made.open)
        await asyncio.sleep(0.05)
        return await says()(request)

    made.answers.append(answer)
    await made.start()
    yield made
    await made.stop()


async def test_a_rate_is_passed_by_what_the_others_send_in_a_second_at_most(server, vendor, tmp_path):
    more = "pace: {requests: 20/s, wait: 60s}"
    async with shared_gateways(tmp_path, server, vendor, 2, cap=FREE, more=more) as made:
        await asyncio.sleep(1.0)  # they have heard of each other
        found = await call_all(made, 60, at_once=60)
        assert found == {200: 120}
        took = max(vendor.times) - min(vendor.times)
        # Without each other they would take three seconds, and six by the rate; a second's worth may be too many.
        assert took >= 4.0, took
        assert took <= 30.0, took


async def test_tokens_are_counted_together_too(server, vendor, tmp_path):
    more = "pace: {tokens: 1000/s, wait: 60s}"
    async with shared_gateways(tmp_path, server, vendor, 2, cap=FREE, more=more) as made:
        await asyncio.sleep(1.0)
        one, two = made
        await call_all([one], 30, at_once=30)
        heard = two.out.openai.throttle._elsewhere
        await eventually(lambda: "tokens" in heard._levels or heard._levels)


async def test_calls_at_once_are_shared_out_by_use(server, vendor, tmp_path):
    more = "pace: {concurrency: 4, wait: 60s}"
    async with shared_gateways(tmp_path, server, vendor, 2, cap=FREE, more=more) as made:
        one, two = made
        await eventually(lambda: all(each.out.openai.throttle._lease._is_known for each in made))
        await call_all([one], 60, at_once=20)
        assert vendor.most == 3, "all of them but the one that each instance has"
        vendor.most = 0
        await call_all(made, 60, at_once=20)
        assert vendor.most <= 4
        # What a killed one had is free after a while; what one that ends had, at once.
        await two.stop()
        two.dead = True
        vendor.most = 0
        await call_all([one], 80, at_once=20)
        assert vendor.most == 4


async def test_a_pause_that_a_vendor_asks_for_holds_on_every_instance_within_a_second(server, vendor, tmp_path):
    more = "pace: {wait: 20s}"
    async with shared_gateways(tmp_path, server, vendor, 2, cap=FREE, more=more) as (one, two):
        vendor.answers[:] = [errs(429, "rate_limit_exceeded", Retry_After="3"), says()]
        vendor._turn = 0
        asked = asyncio.create_task(one.call())
        limits = two.out.openai.throttle.limits
        clock = asyncio.get_running_loop().time
        await eventually(lambda: limits.paused_until("gpt-4o-mini") > clock() + 1.0)
        began = time.monotonic()
        assert await two.call() == 200
        assert time.monotonic() - began > 1.0
        assert await asked == 200


async def test_without_the_store_calls_are_paced_by_each_instance_alone(vendor, tmp_path):
    with valkey_server() as server:
        more = "pace: {requests: 50/s, concurrency: 3, wait: 60s}"
        async with shared_gateways(tmp_path, server, vendor, 1, cap=FREE, more=more) as (one,):
            assert await one.call() == 200
            server.kill()
            await eventually(lambda: not one.store.is_up)
            assert await call_all([one], 20) == {200: 20}
            assert one.out.metrics.store_fallback_total.labels("pace").value >= 1
