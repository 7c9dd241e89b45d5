"""Orphans, the processes that the app detached: a descendant of ours that loses its parent becomes our child.

That is so by itself for process 1 of a container, and elsewhere on Linux on request (PR_SET_CHILD_SUBREAPER, prctl(2)).
We reap those that end: without that they would stay zombies, which still count as members of their group. Those that
run on after the app has ended are ended as well: they have a session of their own, which no signal to the app's group
reaches, and would outlive the gateway, or hold the port or the lock that the next app needs.
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

WATCH_SECONDS = 0.5  # seconds between two looks; each is one system call and a read of our own list of children
POLL_SECONDS = 0.05
MIN_GRACE = 0.5  # seconds that orphans have at least, however long the app itself took to stop
APP_MARK = b"OUTRIGGER_EGRESS="  # a variable that every descendant of the app has
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Become the parent of orphaned descendants; whether that was possible."""
    if os.getpid() == 1:
        return True
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


class OrphanReaper:
    """Reaps and ends the app's orphans. Children that the gateway has at its start, or that are excluded later, are not
    the app's, and neither are their descendants."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._excluded: set[int] = set(self._list_children())

    def exclude_child(self, pid: int) -> None:
        self._excluded.add(pid)

    async def watch_orphans(self, ours: Callable[[], int | None], on_running: Callable[[list[int]], None]) -> None:
        """Until it is cancelled: reap those that have ended, and call `on_running` with those that run. `ours` is the
        child that somebody else waits for."""
        while True:
            reap_children(ours())
            on_running([pid for pid in self._list_children() if pid not in self._excluded and pid != ours()])
            await asyncio.sleep(WATCH_SECONDS)

    async def end_orphans(self, patience: float, on_found: Callable[[int], None]) -> None:
        """End what an ended app left behind: SIGTERM, and SIGKILL after `patience` seconds. `on_found` is called with
        how many they are, if there are any."""
        # The app itself has been waited for: every child that has ended may be reaped now.
        reap_children(None)
        left = self.find_orphans()
        if not left:
            return
        on_found(len(left))
        _send_signal(left, signal.SIGTERM)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max(patience, MIN_GRACE)
        while (left := self.find_orphans()) and loop.time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            reap_children(None)
        while left:  # each that is killed may leave us its own children
            _send_signal(left, signal.SIGKILL)
            await asyncio.sleep(0.01)
            reap_children(None)
            left = self.find_orphans()

    def kill_orphans(self) -> None:
        _send_signal(self.find_orphans(), signal.SIGKILL)

    def find_orphans(self) -> list[int]:
        """What an ended app left behind, zombies included only if they have not been reaped."""
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
        """Process 1 also inherits the orphans of others who work in the container (`docker exec`)."""
        if os.getpid() != 1:
            return True
        try:
            return APP_MARK in (self._proc / str(pid) / "environ").read_bytes()
        except OSError:
            return False

    def _list_children(self) -> Iterable[int]:
        """Our children, from the kernel's list for each of our threads; none if it keeps no such list."""
        found: list[int] = []
        for file in (self._proc / "self" / "task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except (OSError, ValueError):
                continue
        return sorted(found)


def reap_children(ours: int | None) -> None:
    """Reap every child that has ended, except `ours`: its status is for the one that waits for it."""
    try:
        # WNOWAIT looks without reaping, since the one that ended may be `ours`.
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == ours:
                return  # the one that waits for it reaps it in a moment
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass  # there is none at all


def _send_signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
