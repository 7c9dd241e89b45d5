"""One run of the app: a process in a group of its own, from its start to its last child's end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from proxy.app.orphans import is_heir, reap
from proxy.errors import OutriggerError

NOT_FOUND = 127
NOT_EXECUTABLE = 126
POLL = 0.05


class CannotStart(OutriggerError):
    """The command cannot be executed; `status` is what a shell would exit with."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class AppProcess:
    """`ended` is set when the process started has; members of its group may outlive it."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], *, wrap: bool) -> None:
        """Raises CannotStart."""
        ours = [os.pipe(), os.pipe()] if wrap else []
        out, err = [write for _, write in ours] or (None, None)
        env = dict(environ)
        if ours and "OUTRIGGER_METERED" in env:  # attribution is on
            env["OUTRIGGER_LINES"] = ",".join(str(os.fstat(read).st_ino) for read, _ in ours)
        # A background group that reads a terminal would be stopped by it.
        stdin = subprocess.DEVNULL if sys.stdin is not None and sys.stdin.isatty() else None
        try:
            self._process = subprocess.Popen(list(argv), env=env, stdin=stdin, stdout=out, stderr=err, process_group=0)
        except (OSError, ValueError) as error:
            for read, _ in ours:
                os.close(read)
            missing = isinstance(error, FileNotFoundError)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CannotStart(
                f"`{argv[0]}` cannot be started: {reason}; write a command that is on the app's PATH after `--`.",
                NOT_FOUND if missing else NOT_EXECUTABLE,
            ) from error
        finally:
            for _, write in ours:
                os.close(write)
        self.pid = self._process.pid
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        if ours:
            self.stdout, self.stderr = (os.fdopen(read, "rb") for read, _ in ours)
        self.status: int | None = None
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(loop,), name="app-wait", daemon=True).start()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        try:
            loop.call_soon_threadsafe(self._reaped, code)
        except RuntimeError:
            pass  # the loop has closed: nobody waits any more

    def _reaped(self, code: int) -> None:
        self.status = code if code >= 0 else 128 - code  # ended by signal N: 128+N, as a shell says it
        self.ended.set()

    @property
    def running(self) -> bool:
        return self.status is None

    def terminate(self) -> None:
        """SIGTERM to the process started, not to its group: its children are its own business."""
        if self.running:
            try:
                os.kill(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass

    def kill_group(self) -> bool:
        """SIGKILL to whoever is left of the group; whether there was anybody."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    async def stop(self, patience: float) -> None:
        """SIGTERM, up to `patience` seconds for the whole group to end, SIGKILL for what is left of it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        self.terminate()
        try:
            async with asyncio.timeout_at(deadline):
                await self.ended.wait()
                while _group_lives(self.pid):
                    if is_heir():
                        reap(None)
                    await asyncio.sleep(POLL)
        except TimeoutError:
            pass
        self.kill_group()
        await self.ended.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
