"""Several ways out in one loop that share a store, before one vendor that counts what it bills: caps over instances."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from egress_gateway import CHAT, EgressGateway, Vendor
from gateway_process import eventually
from store_servers import StoreServer

from proxy.egress.billing.shared_caps import open_escrow
from proxy.egress.service import Egress
from proxy.ledger.ledger import Ledger
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.loading import PolicySource, load_policy
from proxy.store.escrow_sync import Escrow
from proxy.store.opening import make_member, open_money_store, open_store
from proxy.units import NANOS

# Of the vendor's usual answer: 7 tokens in, 5 out. A call that says `max_tokens: 5` reserves no less.
PRICE = 17_000  # nano-dollars
POLICY = """
store: {{url: "{store}", prefix: {prefix}{keys}}}
ledger: {{url: "{ledger}"}}
upstreams:
  openai:
    base_url: http://127.0.0.1:{port}/v1
    retry: {{backoff: {{first: 1ms, max: 5ms}}}}
    prices: {{gpt-4o-mini: {{input: 1, output: 2}}, cheap: {{input: 1, output: 2}}}}
    cap: {cap}
    {more}
"""


@dataclass
class SharedGateway:
    """A way out, its store and its ledger. `kill` leaves everything as it is, as kill -9 does."""

    out: EgressGateway
    escrow: Escrow
    store: object
    ledger: Ledger | None
    parts: list[object] = field(default_factory=list)
    dead: bool = False

    async def call(self, user: str = "ada", **more: object) -> int:
        status, _, _ = await self.out.chat({**CHAT, "user": user, "max_tokens": 5, **more})
        return status

    async def refusal(self, user: str = "ada") -> str:
        return (await self.out.chat({**CHAT, "user": user, "max_tokens": 5}))[2]

    @property
    def limits(self):
        return self.out.openai.billing.limits

    def spent(self, user: str | None = None, period: str = "d") -> int:
        return self.limits.spent(period, user)

    async def stop(self) -> None:
        await self.out.session.close()
        if self.dead:
            await self.out.egress.upstreams.close()
            if self.ledger is not None:
                await self.ledger.store.close()  # its connections, to which nothing more is said
        else:
            await self.out.egress.stop()
            for store in self.parts:
                await store.stop()
            if self.ledger is not None:
                await self.ledger.stop()

    async def kill(self) -> None:
        """Nothing more is said to the store or to the ledger."""
        self.dead = True
        self.escrow._closing = True
        if self.escrow._timer is not None:
            self.escrow._timer.cancel()
        await self.escrow._tasks.close()
        for store in self.parts:
            store._life.cancel()
            if store._connection is not None:
                store._connection.abort("killed")
        if self.ledger is not None:
            for task in self.ledger._tasks:
                task.cancel()
        await self.out.egress._listener.stop()


async def open_gateway(
    tmp: Path, server: StoreServer, vendor: Vendor, *, cap: str, ledger: str = "", more: str = "", **keys: object
) -> SharedGateway:
    """One more instance. `ledger` is a URL; empty: a file of its own. `keys` are of the policy's section `store`."""
    number = len(list(tmp.glob("log-*")))
    keys = {"timeout": "3s", **keys}  # of a machine that is busy with other tests
    written_keys = "".join(f", {key}: '{value}'" for key, value in keys.items())
    text = POLICY.format(
        store=server.url, prefix=server.prefix, keys=written_keys, port=vendor.port, cap=cap, more=more,
        ledger=ledger or f"sqlite:///{tmp}/ledger-{number}.db",
    )  # fmt: skip
    policy = load_policy(PolicySource("test", None, text), {})
    path = tmp / f"log-{number}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = EventLog(policy.log, out=descriptor)
    metrics = Metrics(policy.metrics, version="test")
    loop = asyncio.get_running_loop()
    requests = RequestRegistry(loop.time)
    calls = Ledger(policy.ledger, emit=log.emit, metrics=metrics, clock=loop.time)
    await calls.start()
    member = make_member("")
    store = open_store(policy.store, member, emit=log.emit, metrics=metrics, clock=loop.time)
    money = open_money_store(policy.store, member, store, emit=log.emit, metrics=metrics, clock=loop.time)
    escrow = open_escrow(policy, money, calls, clock=loop.time)
    assert escrow is not None
    egress = Egress(
        policy,
        requests=requests,
        metrics=metrics,
        log=log,
        environ={},
        ledger=calls,
        escrow=escrow,
        instance=member.id,
        store=store,
    )
    parts = [store] if money is store else [store, money]
    for each in parts:
        await each.start()
    await egress.load()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await egress.start(sock)
    out = EgressGateway(egress, sock.getsockname()[1], path, metrics, requests, policy)
    return SharedGateway(out, escrow, store, calls, parts)


@asynccontextmanager
async def shared_gateways(
    tmp: Path, server: StoreServer, vendor: Vendor, count: int = 2, **what: object
) -> AsyncIterator[list[SharedGateway]]:
    """So many, started at once; more may be put into the list."""
    made: list[SharedGateway] = []
    try:
        for _ in range(count):
            made.append(await open_gateway(tmp, server, vendor, **what))
        yield made
    finally:
        for one in made:
            await one.stop()


async def call_all(
    gateways: Sequence[SharedGateway], each: int, *, at_once: int = 10, **call: object
) -> dict[int, int]:
    """So many calls by each instance, a few at once; how many got each status."""
    found: dict[int, int] = {}
    turn = asyncio.Semaphore(at_once * len(gateways))

    async def one(gateway: SharedGateway) -> None:
        async with turn:
            status = await gateway.call(**call)
        found[status] = found.get(status, 0) + 1

    await asyncio.gather(*(one(gateway) for _ in range(each) for gateway in gateways))
    return found


async def settled(gateways: Sequence[SharedGateway], dollars: float, user: str | None = None) -> None:
    """Wait until each of them knows that so much is spent."""
    nanos = round(dollars * NANOS)
    for gateway in gateways:
        await eventually(lambda gateway=gateway: gateway.spent(user) == nanos)
