"""When a connection to the database is opened: at once while that works, and with growing pauses, one at a time,
while it does not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

from proxy.postgres.auth.startup import Key
from proxy.postgres.connector import Connected, ConnectFailed

FIRST = 0.1  # seconds
LONGEST = 4.5  # so that there is a try at least every 5 s while clients wait


class Opening:
    """`ready` says whether one more may be tried now. A pause is drawn from the upper half of its range, so that
    instances which lost the same database do not come back as one."""

    def __init__(self, connect: Callable[[Key, str], Awaitable[Connected]], clock: Callable[[], float]) -> None:
        self._connect = connect
        self._clock = clock
        self.under_way: Counter[Key] = Counter()
        self.failures = 0
        self.retry_at = 0.0
        self.reason = ""
        self.code = ""
        self.since = clock()  # when it began to work, or to fail

    def __len__(self) -> int:
        return self.under_way.total()

    def __repr__(self) -> str:
        return f"<Opening {len(self)} under way, {self.failures} failures>"

    def ready(self) -> bool:
        return self.failures == 0 or (not self.under_way.total() and self._clock() >= self.retry_at)

    async def open(self, key: Key, name: str) -> Connected | ConnectFailed:
        """`under_way` is counted up by the caller, before this begins to run."""
        try:
            found = await self._connect(key, name)
        except ConnectFailed as error:
            return error
        finally:
            self.under_way[key] -= 1
        if self.failures:
            self.since = self._clock()
        self.failures = 0
        self.reason = ""
        return found

    def failed(self, error: ConnectFailed) -> None:
        """The database is away, or says no to everybody."""
        if not self.failures:
            self.since = self._clock()
        self.failures += 1
        self.reason, self.code = str(error), error.code
        pause = min(LONGEST, FIRST * 2.0 ** min(self.failures - 1, 10))
        self.retry_at = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311 no secret rests on it
