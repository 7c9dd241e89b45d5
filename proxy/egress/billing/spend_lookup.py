"""What a user spent, asked of the ledger where the purse does not remember it: before a call of theirs is reserved.

A purse tells apart as many users as fit into memory. Whoever was forgotten, or never loaded, is not believed to have
spent nothing. All who wait at once are asked for in one go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from proxy.egress.billing.spend_limits import SpendLimits
from proxy.ledger.ledger import Ledger
from proxy.ledger.store import LedgerUnavailable, RecordRejected
from proxy.util.background_tasks import BackgroundTasks

PATIENCE = 1.0  # seconds that a call waits for the ledger's word
AGAIN = 2.0  # seconds for which a ledger that did not answer is not asked again
MOST = 200  # users asked for in one go


class _Round:
    """Users to be asked for together."""

    __slots__ = ("over", "users")

    def __init__(self) -> None:
        self.users: dict[str, None] = {}
        self.over = asyncio.Event()


class SpendLookup:
    """`clock` is monotonic."""

    def __init__(self, ledger: Ledger | None, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._rest_until = 0.0
        self._next: dict[SpendLimits, _Round] = {}
        self._tasks = BackgroundTasks()

    async def load_user(self, upstream: str, purse: SpendLimits, user: str) -> bool:
        """Whether all that this user spent at an upstream is known now. It is not while the ledger is away."""
        ledger = self._ledger
        if ledger is None or self._clock() < self._rest_until:
            return purse.is_loaded(user)
        turn = self._next.get(purse)
        if turn is None:
            turn = self._next[purse] = _Round()
            self._tasks.start(self._ask_all(upstream, purse, ledger))
        turn.users[user] = None
        try:
            async with asyncio.timeout(PATIENCE):
                await turn.over.wait()
        except TimeoutError:
            pass
        return purse.is_loaded(user)

    async def close(self) -> None:
        await self._tasks.close()

    async def _ask_all(self, upstream: str, purse: SpendLimits, ledger: Ledger) -> None:
        """Round after round, while anybody waits for the next one."""
        turn = self._next[purse]
        try:
            while turn.users:
                self._next[purse] = coming = _Round()
                try:
                    async with asyncio.timeout(PATIENCE):
                        await self._ask(upstream, purse, ledger, turn)
                except (TimeoutError, LedgerUnavailable, RecordRejected):
                    self._rest_until = self._clock() + AGAIN
                finally:
                    turn.over.set()
                turn = coming
        finally:
            turn.over.set()
            del self._next[purse]

    async def _ask(self, upstream: str, purse: SpendLimits, ledger: Ledger, turn: _Round) -> None:
        parts: dict[float | None, list[str]] = {}
        for user in turn.users:
            if not purse.is_loaded(user):
                parts.setdefault(purse.counted_since(user), []).append(user)
        for until, users in parts.items():
            named = iter(users)
            while some := list(islice(named, MOST)):
                windows = purse.window_starts()
                for user, standing in (await ledger.user_totals(upstream, some, windows, until)).items():
                    purse.load_user(user, standing, windows)
