"""The policy's file while the gateway runs: whether it changed, and which keys a reload cannot change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from proxy.policy.loading import FileStamp
from proxy.policy.schema.policy import Policy

# Keys that were bound, opened or chosen at the start. Those that the app was started with wait only for the app's next
# start (proxy/operations/pending_changes.py).
FIXED_KEYS = (
    "app.port",
    "app.url",
    "listen.public",
    "listen.admin",
    "listen.egress",
    "postgres.listen",
    "ledger.url",
    "postgres.url",
    "postgres.tls",
    "sentry.dsn",
    "sentry.environment",
    "store.url",
    "store.prefix",
    "store.money",
    "store.region",
    "tasks.url",
)


class FileWatcher:
    """Polls a file, since editors, containers and network disks have no other sign of a change in common.

    A change counts only if the file looked the same in two polls in a row: an editor that empties the file before it
    writes is not caught in between. A missing file is no change until it is back. `stamp` is the file's when it was
    last read; without one the file is looked at now.
    """

    def __init__(
        self,
        path: Path,
        stamp: FileStamp | None = None,
        *,
        interval: float = 0.5,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        stat: Callable[[Path], os.stat_result] = os.stat,
    ) -> None:
        self._path = path
        self._interval = interval
        self._sleep = sleep
        self._stat = stat
        # The stamp of the reading, not of now: a save between reading and watching is a change.
        self._current = stamp if stamp is not None else self._read_stamp()
        self._last_seen = self._current

    def __repr__(self) -> str:
        return f"<Watcher {self._path} every {self._interval:g} s>"

    async def changes(self) -> AsyncIterator[None]:
        """Yields once for every change, for ever."""
        while True:
            await self._sleep(self._interval)
            if self.has_changed():
                yield

    def has_changed(self) -> bool:
        """One poll: whether the file differs from the one in force, and is not still being written."""
        seen = self._read_stamp()
        # Two polls in a row with the same stamp: the writer is done, or at least has paused.
        is_settled = seen == self._last_seen
        self._last_seen = seen
        if seen is None or not is_settled or seen == self._current:
            return False
        self._current = seen
        return True

    def _read_stamp(self) -> FileStamp | None:
        try:
            return FileStamp.from_stat(self._stat(self._path))
        except OSError:
            return None


def find_fixed_changes(old: Policy, new: Policy) -> tuple[str, ...]:
    """The keys in which the policies differ and that a reload cannot change."""
    return tuple(key for key in FIXED_KEYS if _value_at(old, key) != _value_at(new, key))


def keep_fixed_keys(old: Policy, new: Policy) -> Policy:
    """The new policy, with the old values of the keys that a reload cannot change."""
    for key in find_fixed_changes(old, new):
        section, name = key.split(".")
        # Sections are frozen: the section is copied with the old value, then the policy with the section.
        new = replace(new, **{section: replace(getattr(new, section), **{name: _value_at(old, key)})})
    return new


def _value_at(policy: Policy, key: str) -> Any:
    return reduce(getattr, key.split("."), policy)
