"""Processes that the app detached: whoever of its descendants loses its parent becomes our child.

As process 1 of a container that is so by itself, elsewhere on Linux by asking for it (PR_SET_CHILD_SUBREAPER,
prctl(2)). We wait for those that end: one that nobody waits for stays a zombie, and a zombie is still of its group.
Those that run on when the app has ended are ended as well: they have a session of their own, which no signal to the
app's group reaches, and would otherwise outlive us, or meet the next app with its port or its lock taken.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from proxy.app.memory_usage import process_parents

WATCH_SECONDS = 0.5  # seconds between two looks; one system call, and our own list of children
POLL_SECONDS = 0.05
MIN_GRACE = 0.5  # seconds that they have at least, however long the app itself took
APP_MARK = b"OUTRIGGER_EGRESS="  # what every descendant of the app has in its environment
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Whether orphans among our descendants come to us from now on."""
    if os.getpid() == 1:
        return True
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


class OrphanReaper:
    """`spared` children of ours are none of the app's, nor is whom they started."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._excluded: set[int] = set(self._list_children())

    def exclude(self, pid: int) -> None:
        self._excluded.add(pid)

    async def watch(self, ours: Callable[[], int | None], told: Callable[[list[int]], None]) -> None:
        """For ever: bury who has ended, and tell who there is. `ours` is the child that somebody else waits for."""
        while True:
            reap_children(ours())
            told([pid for pid in self._list_children() if pid not in self._excluded and pid != ours()])
            await asyncio.sleep(WATCH_SECONDS)

    async def end_orphans(self, patience: float, tell: Callable[[int], None]) -> None:
        """The app has ended: SIGTERM to whom it left behind, SIGKILL after `patience` seconds. `tell` gets how many
        they are, where there are any."""
        reap_children(None)
        left = self.find_orphans()
        if not left:
            return
        tell(len(left))
        _send_signal(left, signal.SIGTERM)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max(patience, MIN_GRACE)
        while (left := self.find_orphans()) and loop.time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            reap_children(None)
        while left:  # each that is killed may leave us its own
            _send_signal(left, signal.SIGKILL)
            await asyncio.sleep(0.01)
            reap_children(None)
            left = self.find_orphans()

    def kill_orphans(self) -> None:
        _send_signal(self.find_orphans(), signal.SIGKILL)

    def find_orphans(self) -> list[int]:
        """Whom an app that has ended left behind, zombies apart."""
        try:
            everybody = process_parents(self._proc)
        except OSError:
            return []
        us, children = os.getpid(), dict[int, list[int]]()
        for pid, (parent, _) in everybody.items():
            children.setdefault(parent, []).append(pid)
        waiting = [pid for pid in children.get(us, ()) if pid not in self._excluded and self._belongs_to_app(pid)]
        found = []
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting += children.get(pid, ())
        return found

    def _belongs_to_app(self, pid: int) -> bool:
        """Process 1 inherits from whoever else works in the container, too (`docker exec`)."""
        if os.getpid() != 1:
            return True
        try:
            return APP_MARK in (self._proc / str(pid) / "environ").read_bytes()
        except OSError:
            return False

    def _list_children(self) -> Iterable[int]:
        """Ours, by the kernel's own list of each of our threads; empty where it keeps none."""
        found: list[int] = []
        for file in (self._proc / "self" / "task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except (OSError, ValueError):
                continue
        return sorted(found)


def reap_children(ours: int | None) -> None:
    """Every child that has ended but for `ours`, whose status is not to be taken from who waits for it."""
    try:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == ours:
                return  # gone in a moment
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass  # there is none at all


def _send_signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
