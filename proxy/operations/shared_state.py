"""What an operator said to one instance holds on all that share a store, within a second.

Blocked users and breakers that are held by hand are kept in the store as well, for instances that start later. Who
guesses the admin token is told to those who are there; a vendor's Retry-After is shared by `egress/shared_pace.py`.
What a breaker sees by itself stays each instance's own: a fault may lie between one instance and the vendor, and an
instance that cannot reach it must not keep the others from calling.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from proxy.ledger.user_marks import TooManyBlocked
from proxy.operations.commands import BREAKER_STATES
from proxy.parts import Parts
from proxy.store.interface import StoreAway
from proxy.store.marks import SharedMarks
from proxy.util.background_tasks import BackgroundTasks


class AttemptsOfTokens(Protocol):
    """Who slows down peers that guess the admin token. `on_attempt(peer, right)` is called for each attempt here."""

    on_attempt: Callable[[str, bool], None]

    def note_attempt(self, key: str, *, right: bool) -> None:
        """Count an attempt that was made at another instance."""


class SharedState:
    """Made if the policy names a store. `blocks` and `breakers` are told of what an operator decides here."""

    def __init__(
        self, parts: Parts, authenticator: AttemptsOfTokens, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._parts = parts
        self._store = store = parts.store
        self._tasks = BackgroundTasks()
        self.blocks = SharedMarks(store, "block", self._apply_block, now=wall_clock)
        self.breakers = SharedMarks(store, "breaker", self._apply_breaker, now=wall_clock)
        authenticator.on_attempt = self._tell_attempt
        store.subscribe("token", lambda message: authenticator.note_attempt(message["peer"], right=message["right"]))

    async def start(self) -> None:
        """Called when the ledger was read: what it says of users holds where the store knows nothing newer."""
        if self._parts.user_marks.loaded:
            self.blocks.add_older(list(self._parts.user_marks.blocked_users), True)
        try:
            await self.blocks.synchronize()
            await self.breakers.synchronize()
        except StoreAway:
            pass  # as soon as it is there

    async def close(self) -> None:
        await self.blocks.close()
        await self.breakers.close()
        await self._tasks.close()

    def _apply_block(self, user: str, value: object) -> None:
        self._tasks.start(self._block(user) if value else self._unblock(user))

    async def _block(self, user: str) -> None:
        try:
            await self._parts.user_marks.block(user)
        except TooManyBlocked:
            return  # as many as one instance takes; each has the same
        self._parts.ingress.abort_tunnels(user)

    async def _unblock(self, user: str) -> None:
        await self._parts.user_marks.unblock(user)

    def _apply_breaker(self, upstream: str, value: object) -> None:
        found = self._parts.egress.upstreams.get(upstream)
        if found is not None and (value is None or value in BREAKER_STATES):
            found.breakers.force(BREAKER_STATES[str(value)] if value is not None else None)

    def _tell_attempt(self, peer: str, right: bool) -> None:
        self._store.publish("token", {"peer": peer, "right": right})
