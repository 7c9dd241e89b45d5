"""Connections that may be held by one client each, for state that no other connection has."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from proxy.postgres import session_state, wire

if TYPE_CHECKING:
    from proxy.postgres.client import ClientConnection
    from proxy.postgres.pool import Pool


class PinSlots:
    """`held` of them are taken. Whoever finds none waits, first come, first served, for `pool.wait`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: deque[ClientConnection] = deque()
        self.held = 0

    def __repr__(self) -> str:
        return f"<Slots {self.held} of {self.most}, {len(self._waiting)} waiting>"

    @property
    def most(self) -> int:
        """One connection at least is left for those who share."""
        policy = self._pool.policy
        return min(policy.pin.max, max(1, policy.pool.max - 1))

    def ask(self, client: ClientConnection) -> bool:
        """A slot at once, or False: the client's `slot` is called later."""
        if self.held < self.most and not self._waiting:
            self.held += 1
            return True
        if client not in self._waiting:
            self._waiting.append(client)
            wait = self._pool.policy.pool.wait
            asyncio.get_running_loop().call_later(wait, self._expire, client, self._pool.now() + wait)
        return False

    def give_up(self) -> None:
        self.held -= 1
        while self._waiting and self.held < self.most:
            self.held += 1
            self._waiting.popleft().slot(granted=True)

    def forget(self, client: ClientConnection) -> None:
        """It has left, or waits no more."""
        if client in self._waiting:
            self._waiting.remove(client)

    def _expire(self, client: ClientConnection, at: float) -> None:
        if client in self._waiting and self._pool.now() >= at - 0.001:
            self._waiting.remove(client)
            client.slot(granted=False)


def no_slot(pinned: int, severity: str = "ERROR") -> bytes:
    """Too many connections are held for what cannot be shared."""
    return wire.error_response(
        "53300",
        f"{session_state.describe_pins(pinned) or 'state of the session'} needs a database connection of its own,"
        " and no more may be held so",
        severity=severity,
        hint="postgres.pin.max says how many may; SHOW CLIENTS of database outrigger says who holds them.",
    )
