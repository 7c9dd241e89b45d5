"""A way out that random calls go through: reloaded, restarted, killed in their midst."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from proxy.egress.billing.shared_caps import open_escrow
from proxy.egress.service import Egress
from proxy.ledger.ledger import Ledger
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.loading import PolicySource, load_policy
from proxy.store.escrow_sync import Escrow
from proxy.store.opening import make_member, open_store


class FuzzedGateway:
    """`policy` gives its text as it is now."""

    egress: Egress
    ledger: Ledger
    escrow: Escrow | None
    requests: RequestRegistry
    url: str

    def __init__(self, tmp: Path, policy: Callable[[], str]) -> None:
        self._policy = policy
        self._log_to = os.open(tmp / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.open = asyncio.Event()

    @property
    def reserved(self) -> int:
        """By calls of this instance."""
        return sum(
            upstream.billing.limits.reserved - upstream.billing.limits.reserved_elsewhere
            for upstream in self.egress.upstreams.values()
        )

    def counted(self, upstream: str, user: str | None = None) -> int:
        return self.egress.upstreams[upstream].billing.limits.spent("month", user)

    async def begin(self) -> None:
        loop = asyncio.get_running_loop()
        policy = load_policy(PolicySource("fuzz", None, self._policy()), {})
        self._log = EventLog(policy.log, out=self._log_to)
        metrics = Metrics(policy.metrics, version="test")
        self.requests = RequestRegistry(loop.time)
        self.ledger = Ledger(policy.ledger, emit=self._log.emit, metrics=metrics, clock=loop.time)
        await self.ledger.start()
        member = make_member("")
        self.store = open_store(policy.store, member, emit=self._log.emit, metrics=metrics, clock=loop.time)
        self.escrow = open_escrow(policy, self.store, self.ledger, clock=loop.time)
        self.egress = Egress(
            policy, requests=self.requests, metrics=metrics, log=self._log, environ={}, ledger=self.ledger,
            escrow=self.escrow, instance=member.id, store=self.store,
        )  # fmt: skip
        await self.store.start()
        await self.egress.load()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        await self.egress.start(sock)
        self.open.set()

    def reload(self) -> None:
        self.egress.apply(load_policy(PolicySource("fuzz", None, self._policy()), {}))

    async def end(self, *, killed: bool = False) -> None:
        """With calls under way, which break off; `killed`: ledger and store are not told of anything any more."""
        self.open.clear()
        if killed:
            if self.escrow is not None:
                self.escrow._closing = True
                self.escrow.windows.clear()
                await self.store.stop()
            for task in self.ledger._tasks:
                task.cancel()
        await self.egress.stop()
        await self.store.stop()
        await (self.ledger.store.close() if killed else self.ledger.stop())
        self._log.close()

    def close(self) -> None:
        os.close(self._log_to)
