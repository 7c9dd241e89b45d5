"""When a connection to the database is opened, and which kind: decided from values; the pool does the opening.

While connecting works, every client that waits has a connection opened for it, up to `pool.max`. While it does not,
one attempt is made at a time, after pauses that double up to MAX_PAUSE; each pause is drawn from the upper half of its
range, so that instances which lost the same database do not come back as one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from proxy.postgres.auth.startup import PoolKey, Settings, other_database
from proxy.postgres.connector import ConnectFailed

FIRST_PAUSE = 0.1  # seconds
MAX_PAUSE = 4.5  # seconds, so that there is an attempt at least every 5 s while clients wait
MAX_GREETINGS = 100  # pool keys whose greeting is remembered

ConnectionKind = tuple[PoolKey, str]  # what a connection is opened with: its key and its application_name


class ConnectAttempts:
    """`under_way` counts attempts by key; `failures` in a row, for the `reason` and `sqlstate` of the last one; no
    attempt before `retry_at`; `since` is when connecting began to work, or to fail (both in seconds of the clock)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.under_way: Counter[PoolKey] = Counter()
        self.failures = 0
        self.retry_at = 0.0
        self.reason = ""
        self.sqlstate = ""
        self.since = clock()

    def __len__(self) -> int:
        return self.under_way.total()

    def __repr__(self) -> str:
        return f"<ConnectAttempts {len(self)} under way, {self.failures} failures>"

    def may_try(self) -> bool:
        return self.failures == 0 or (not len(self) and self._clock() >= self.retry_at)

    def on_success(self) -> None:
        if self.failures:
            self.since = self._clock()
        self.failures = 0
        self.reason = ""

    def on_failure(self, error: ConnectFailed) -> None:
        """The database is away, or says no to everybody."""
        if not self.failures:
            self.since = self._clock()
        self.failures += 1
        self.reason, self.sqlstate = str(error), error.sqlstate
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10))
        self.retry_at = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311 no secret rests on it


@dataclass(slots=True)
class LaunchPlan:
    """`to_open` are counted as under way already; `make_room`: an idle connection is to end, so that one of another
    kind can be opened; `retry_in`: seconds until the launcher is to be asked again, if it wants to be."""

    to_open: list[ConnectionKind] = field(default_factory=list)
    make_room: bool = False
    retry_in: float | None = None


class Launcher:
    """`greetings` is what a connection of each key reported of itself when it was opened (ParameterStatus)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.attempts = ConnectAttempts(clock)
        self.greetings: dict[PoolKey, Settings] = {}
        self._last_kind: ConnectionKind = ((), "")  # that could be opened: connections opened ahead of need are of it

    def __repr__(self) -> str:
        return f"<Launcher {len(self.attempts)} opening, {len(self.greetings)} greetings>"

    def plan(
        self, demand: Iterable[ConnectionKind], *, servers: int, checking: Iterable[PoolKey], minimum: int, maximum: int
    ) -> LaunchPlan:
        """What to open for the `demand` of those who wait, in their order, given so many `servers`, of which those
        being checked (by key) may yet serve somebody."""
        plan, attempts = LaunchPlan(), self.attempts
        # What is on its way is set against the demand first, key by key.
        coming = Counter(attempts.under_way)
        coming.update(checking)
        wanted = list(demand)
        if attempts.failures and not wanted and not servers:
            wanted.append(self._last_kind)  # nobody waits, but somebody is to notice that it is back
        # Those that are opened ahead of need are as many as are missing after the demand is met.
        missing = minimum - servers - len(attempts)
        wanted += [self._last_kind] * max(0, missing - len(wanted))
        for kind in wanted:
            key = kind[0]
            if coming[key] > 0:
                coming[key] -= 1
                continue
            if servers + len(attempts) >= maximum:
                plan.make_room = True
                break
            if not attempts.may_try():
                # While an attempt is under way its end asks again; otherwise only the clock does.
                if not len(attempts):
                    plan.retry_in = max(0.01, attempts.retry_at - self._clock())
                break
            attempts.under_way[key] += 1
            plan.to_open.append(kind)
        return plan

    def on_opened(self, kind: ConnectionKind, reported: Settings) -> Settings:
        """The greeting to use for the connection: one object a key, so that who compares two is done at once."""
        self.attempts.on_success()
        key = kind[0]
        known = self.greetings.get(key)
        if known == reported:
            reported = known
        elif known is not None or len(self.greetings) < MAX_GREETINGS:
            self.greetings[key] = reported
        if not other_database(key):
            self._last_kind = kind
        return reported

    def is_client_specific(self, key: PoolKey, error: ConnectFailed) -> bool:
        """Whether the database says no to what the clients of this key alone asked for: a setting, a database of
        their own. All else is the whole pool's affair."""
        if not error.final:
            return False
        if other_database(key):
            # Whatever is wrong with another database (it is not there, it lets nobody in) is no outage of ours.
            return not error.sqlstate.startswith("08")
        # A key that was opened before is good; a wrong password (28) or no such database (3D) is everybody's trouble.
        return key not in self.greetings and not error.sqlstate.startswith(("28", "3D", "08"))

    def forget_key(self, key: PoolKey) -> bool:
        """Whether connections of this key could be had before."""
        return self.greetings.pop(key, None) is not None

    def forget_database(self, database: str) -> None:
        """Who comes to it next hears anew what there is, if anything."""
        for key in [key for key in self.greetings if other_database(key) == database]:
            del self.greetings[key]
