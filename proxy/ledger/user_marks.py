"""What operators decide about users, kept in the ledger's store: who is blocked, and what spend was forgiven.

A decision holds at once, in memory. What could not be written is tried again until it is, or until the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from proxy.ledger.store import ForgivenSpend, LedgerStore, LedgerUnavailable, RecordRejected
from proxy.observe.emit import EmitEvent

MAX_BLOCKED_USERS = 10_000  # users blocked at once, about 100 bytes each
MAX_UNWRITTEN_FORGIVEN = 1000  # parts of forgiven money that wait to be written
STORE_TIMEOUT = 3.0  # seconds that an operator waits for the database
RETRY_SECONDS = 5.0  # seconds between tries


class TooManyBlocked(Exception):
    """So many users are blocked that no more are taken."""


class UserMarks:
    """What operators decided of users. For the loop's thread alone.

    `blocked_users` are blocked now. `now` is the wall clock.
    """

    def __init__(self, database: LedgerStore, *, emit: EmitEvent, now: Callable[[], float] = time.time) -> None:
        self._store = database
        self._emit = emit
        self._now = now
        self._unwritten: dict[str, float | None] = {}  # users, and since when they are blocked: what is not on record
        self._unforgiven: list[ForgivenSpend] = []
        self.loaded = False  # whether `blocked_users` has those blocked before
        self._task: asyncio.Task[None] | None = None
        self.blocked_users: dict[str, None] = {}

    async def start(self) -> None:
        """Take up who was blocked before; if the database is away, as soon as it is back."""
        if (why := await self._write()) is not None:
            text = f"Who is blocked is not known yet, the ledger does not answer ({why}); it is asked again."
            self._emit("ledger", text, level="error")
            self._try_again()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._unwritten or self._unforgiven:
            await self._write()

    async def block(self, user: str) -> str | None:
        """Why it is not on record yet, or None if it is. Raises TooManyBlocked."""
        if user not in self.blocked_users and len(self.blocked_users) >= MAX_BLOCKED_USERS:
            raise TooManyBlocked
        # Blocked at once, in memory; the store learns of it as soon as it can.
        self.blocked_users[user] = None
        self._unwritten[user] = self._now()
        return await self._written()

    async def unblock(self, user: str) -> str | None:
        self.blocked_users.pop(user, None)
        self._unwritten[user] = None
        return await self._written()

    async def forgive(self, rows: Sequence[ForgivenSpend]) -> str | None:
        self._unforgiven = [*self._unforgiven, *rows][-MAX_UNWRITTEN_FORGIVEN:]
        return await self._written()

    async def _written(self) -> str | None:
        why = await self._write()
        if why is not None:
            self._try_again()
        return why

    async def _write(self) -> str | None:
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                await self._write_all()
        except TimeoutError:
            return f"{self._store.where} did not answer in {STORE_TIMEOUT:g} s"
        except (LedgerUnavailable, RecordRejected) as error:
            return str(error)
        return None

    async def _write_all(self) -> None:
        """Write what waits. What was written without an answer is written again, which changes nothing."""
        if not self.loaded:
            # A user who was unblocked while the store was away must not come back with it.
            for user in (await self._store.blocked_users())[:MAX_BLOCKED_USERS]:
                if user not in self._unwritten:
                    self.blocked_users[user] = None
            self.loaded = True
        for user, at in list(self._unwritten.items()):
            await self._store.set_blocked(user, at)
            # Somebody may have decided otherwise while this was written; then the newer mark stays to be written.
            if self._unwritten.get(user, at) == at:
                self._unwritten.pop(user, None)
        rows = list(self._unforgiven)
        if rows:
            await self._store.record_forgiven(rows)
            # By comparison, not by count: more may have come during the write, and the oldest may have been cut off.
            self._unforgiven = [row for row in self._unforgiven if row not in rows]

    def _try_again(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._retry_until_written())

    async def _retry_until_written(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if await self._write() is None:
                self._emit("ledger", "What operators said of users is on record again.")
                return
