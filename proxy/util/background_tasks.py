"""Tasks that nobody awaits: they are kept from the garbage collector, and their failures are reported.

The event loop holds only weak references to its tasks, so one that nobody else refers to may vanish before it has
finished (see the note at `asyncio.create_task` in the Python documentation).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class BackgroundTasks:
    """The tasks of one owner, which cancels them when it closes.

    A task that raises is reported to the event loop's exception handler as soon as it has ended, and so reaches the
    log (`asyncio`'s logger) and Sentry; being cancelled is no failure. `loop` is the running one if it is not given.
    """

    __slots__ = ("_loop", "_tasks")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"<BackgroundTasks {len(self._tasks)} running>"

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a coroutine without waiting for it."""
        loop = self._loop or asyncio.get_running_loop()
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def cancel(self) -> None:
        """Ask every task to end; does not wait for it."""
        for task in self._tasks:
            task.cancel()

    async def wait(self) -> None:
        """Wait until those that run now have ended, however they end."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def close(self) -> None:
        """Cancel them all and wait for their end."""
        self.cancel()
        await self.wait()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            context = {"message": f"A background task failed: {task!r}", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
