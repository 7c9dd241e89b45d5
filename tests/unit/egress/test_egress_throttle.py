"""Permits of one upstream: who waits for one when the upstream goes."""

import asyncio
import time

import pytest

from proxy.egress.throttle import Throttle, ThrottleRefusal
from proxy.policy import schema


async def test_who_waits_is_refused_at_once_when_the_upstream_is_taken_out():
    throttle = Throttle(schema.Pace(concurrency=1), clock=time.monotonic)
    assert throttle.try_acquire("ada", 0, None) is not None
    waiting = [asyncio.create_task(throttle.acquire(user, 0, None)) for user in ("ada", "bob")]
    await asyncio.sleep(0.01)
    throttle.close()
    for task in waiting:
        with pytest.raises(ThrottleRefusal, match="taken out of the policy"):
            await asyncio.wait_for(task, 1)
