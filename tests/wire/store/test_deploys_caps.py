"""A deploy that overlaps, under load: no dollar above a cap, and no call refused that one instance would have served."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from egress_gateway import CHAT, Vendor, says
from gateway_process import GatewayProcess, gateway
from kill_under_load import calling
from shared_egress import PRICE
from store_servers import StoreServer

from proxy.units import NANOS

CALLS = 150  # that the cap of a user has room for
CAP = CALLS * PRICE
RESERVED = 24_000  # nano-dollars of a call by an instance that has learnt nothing: fourteen tokens in, five out
CALLERS = 3  # of each user
LAST = 10  # calls of a user that are kept for its stage
ENOUGH = 15  # refusals after which a user is done
BEFORE, OVERLAP, ENDING, AFTER = range(4)  # of the old generation's life
REACHED = {"ada": OVERLAP, "bob": ENDING, "cly": AFTER}  # when each user's cap is to be used up
POLICY = """
  drain: 5s
app: {{attribution: "off"}}
store: {{url: "{store}", prefix: {prefix}, timeout: 5s}}
ledger: {{url: "sqlite:///{folder}/ledger.db"}}
upstreams:
  openai:
    base_url: http://127.0.0.1:{port}/v1
    prices: {{gpt-4o-mini: {{input: 1, output: 2}}}}
    cap: {{per_user: "${cap:f}/month"}}
log: {{level: warning}}
"""


class Calls:
    """The calls of one user, as its callers and the vendor count them."""

    def __init__(self) -> None:
        self.begun = self.ended = self.served = self.refused = self.billed = 0
        self.in_vain: list[str] = []

    async def make(self, send) -> int:
        served, ended = self.served, self.ended
        self.begun += 1
        status = await send()
        # Everything else that was under way at some moment of it may have had money reserved when this was decided.
        beside = self.begun - ended - 1
        self.ended += 1
        self.served += status == 200
        self.refused += status == 429
        if status == 429 and served * PRICE + (beside + 1) * RESERVED <= CAP:
            self.in_vain.append(f"after {served} that were served, beside {beside}")
        return status


class Deploy:
    """Whichever instances take calls, and who calls through them all the time."""

    def __init__(self) -> None:
        self.stage = BEFORE
        self.serving: list[GatewayProcess] = []
        self.users: dict[str, Calls] = defaultdict(Calls)
        self.answers: Counter[tuple[int, int]] = Counter()
        self.vendor = Vendor(self._answer)
        self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        await self._session.close()
        await self.vendor.stop()

    async def _answer(self, request):
        self.users[self.vendor.bodies[-1]["user"]].billed += 1
        self.vendor.requests.clear()
        await asyncio.sleep(random.uniform(0.005, 0.03))
        return await says()(request)

    async def send(self, user: str) -> int:
        """The status of one call; an instance that takes no more has not begun it, and another gets it."""
        while True:
            url = f"http://127.0.0.1:{random.choice(self.serving).egress}/openai/v1/chat/completions"
            try:
                async with self._session.post(url, json={**CHAT, "user": user, "max_tokens": 5}) as answer:
                    await answer.read()
                    self.answers[self.stage, answer.status] += 1
                    return answer.status
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)

    async def call_until_used_up(self, user: str) -> None:
        calls = self.users[user]
        while calls.refused < ENOUGH:
            if await calls.make(lambda: self.send(user)) == 429:
                await asyncio.sleep(0.05)
            # Whose stage is still to come goes on slowly, and keeps its last calls for it.
            elif calls.billed > CALLS * 2 // 3 and self.stage < REACHED[user]:
                await asyncio.sleep(0.4)
                while calls.billed > CALLS - LAST and self.stage < REACHED[user]:
                    await asyncio.sleep(0.02)
            else:
                await asyncio.sleep(random.uniform(0.0, 0.02))


@pytest.mark.timeout(120)
async def test_a_cap_holds_to_the_last_call_over_two_generations_of_instances(server: StoreServer, tmp_path: Path):
    deploy = Deploy()
    await deploy.vendor.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(deploy.close)

        async def start(name: str) -> GatewayProcess:
            folder = tmp_path / name
            folder.mkdir()
            policy = POLICY.format(
                store=server.url, prefix=server.prefix, folder=folder, port=deploy.vendor.port, cap=CAP / NANOS
            )
            g = await stack.enter_async_context(gateway(folder, "sleep 1000", policy=policy))
            assert await calling(g)
            deploy.serving.append(g)
            return g

        old = await asyncio.gather(start("old-1"), start("old-2"))
        callers = {user: asyncio.gather(*(deploy.call_until_used_up(user) for _ in range(CALLERS))) for user in REACHED}
        new = await asyncio.gather(start("new-1"), start("new-2"))
        deploy.stage = OVERLAP
        await callers["ada"]
        for g in old:
            deploy.serving.remove(g)
        deploy.stage = ENDING
        assert await asyncio.gather(*(g.stop() for g in old)) == [0, 0]
        await callers["bob"]
        deploy.stage = AFTER
        await callers["cly"]
        for user in REACHED:
            # Nothing is under way any more: what is left goes, call by call, as with one instance.
            calls = deploy.users[user]
            while await calls.make(lambda user=user: deploy.send(user)) == 200:
                pass
        assert {status for _, status in deploy.answers} == {200, 429}
        assert all(deploy.answers[stage, 200] for stage in (BEFORE, OVERLAP, ENDING, AFTER)), deploy.answers
        for user, calls in deploy.users.items():
            assert calls.billed == calls.served, user
            assert calls.billed * PRICE <= CAP, (user, calls.billed)
            assert calls.billed * PRICE + RESERVED > CAP, (user, calls.billed)
            assert not calls.in_vain, (user, calls.in_vain)
        assert [await g.stop() for g in new] == [0, 0]
