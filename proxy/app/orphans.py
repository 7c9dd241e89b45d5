"""Process 1 of a container inherits its orphans and has to wait for them. One that nobody waits for stays a zombie,
and a zombie is still of its group: the app would seem to take all of `stop_timeout` to end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

EVERY = 0.5  # seconds; one system call


def is_heir() -> bool:
    return os.getpid() == 1


async def inherit(ours: Callable[[], int | None]) -> None:
    """For ever; `ours` is the child that somebody else waits for."""
    while True:
        reap(ours())
        await asyncio.sleep(EVERY)


def reap(ours: int | None) -> None:
    """Every child that has ended but for `ours`, whose status is not to be taken from who waits for it."""
    try:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == ours:
                return  # gone in a moment
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass  # there is none at all
