"""What a user spent, asked of the ledger before a call of theirs is reserved, if it is not in memory.

SpendLimits tell apart as many users as fit into memory. Whoever was forgotten, or never loaded, is not believed to have
spent nothing. Users who are waited for at the same time are asked for in one query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from proxy.egress.billing.spend_limits import SpendLimits
from proxy.ledger.ledger import Ledger
from proxy.ledger.store import LedgerUnavailable, RecordRejected
from proxy.util.background_tasks import BackgroundTasks

LOOKUP_TIMEOUT = 1.0  # seconds that a call waits for the ledger's answer
RETRY_SECONDS = 2.0  # for which a ledger that did not answer is not asked again
MAX_USERS_PER_QUERY = 200


class _Round:
    """Users who are asked for together."""

    __slots__ = ("done", "users")

    def __init__(self) -> None:
        self.users: dict[str, None] = {}
        self.done = asyncio.Event()


class SpendLookup:
    """Loads users into SpendLimits. `clock` is monotonic; without a ledger there is nothing to load."""

    def __init__(self, ledger: Ledger | None, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._pause_until = 0.0
        self._next_rounds: dict[SpendLimits, _Round] = {}
        self._tasks = BackgroundTasks()

    async def load_user(self, upstream: str, limits: SpendLimits, user: str) -> bool:
        """Whether all that this user spent at an upstream is known now. It is not while the ledger is away."""
        ledger = self._ledger
        if ledger is None or self._clock() < self._pause_until:
            return limits.accounts.is_loaded(user)
        coming = self._next_rounds.get(limits)
        if coming is None:
            coming = self._next_rounds[limits] = _Round()
            self._tasks.start(self._run_rounds(upstream, limits, ledger))
        # A dict as an ordered set: the user who has waited longest is asked for first.
        coming.users[user] = None
        try:
            # The event is shared by all who wait, so a time-out here ends this caller's wait alone.
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                await coming.done.wait()
        except TimeoutError:
            pass
        return limits.accounts.is_loaded(user)

    async def close(self) -> None:
        await self._tasks.close()

    async def _run_rounds(self, upstream: str, limits: SpendLimits, ledger: Ledger) -> None:
        """Ask for one round of users after the other, as long as somebody waits for the next one.

        Who comes while a round is being asked for joins the next: its query has been sent without them.
        """
        current = self._next_rounds[limits]
        try:
            while current.users:
                self._next_rounds[limits] = following = _Round()
                try:
                    async with asyncio.timeout(LOOKUP_TIMEOUT):
                        await self._query_ledger(upstream, limits, ledger, current)
                except (TimeoutError, LedgerUnavailable, RecordRejected):
                    # A ledger that hangs must not cost every call a second: for a while nobody asks.
                    self._pause_until = self._clock() + RETRY_SECONDS
                finally:
                    current.done.set()
                current = following
        finally:
            current.done.set()
            # Cancelled or failed, whoever waits goes on: the next call starts a task of its own.
            del self._next_rounds[limits]

    async def _query_ledger(self, upstream: str, limits: SpendLimits, ledger: Ledger, current: _Round) -> None:
        users_by_until: dict[float | None, list[str]] = {}
        for user in current.users:
            if not limits.accounts.is_loaded(user):
                users_by_until.setdefault(limits.accounts.counted_since(user), []).append(user)
        for until, users in users_by_until.items():
            rest = iter(users)
            while batch := list(islice(rest, MAX_USERS_PER_QUERY)):
                starts = limits.accounts.window_starts()
                for user, totals in (await ledger.user_totals(upstream, batch, starts, until)).items():
                    limits.accounts.load_user(user, totals, starts)
