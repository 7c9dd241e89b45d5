"""One run of the app: a process in a process group of its own, from its start to the end of its last child."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from proxy.app.file_limit import spawn_process
from proxy.app.shell_command import is_shell
from proxy.errors import OutriggerError

NOT_FOUND = 127
NOT_EXECUTABLE = 126
POLL_SECONDS = 0.05


class AppCannotStart(OutriggerError):
    """The command cannot be executed; `status` is what a shell would exit with."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class AppProcess:
    """A started process. `pid` is its id and that of its group; `status` its exit status, None while it runs; `ended`
    is set when it has ended, though members of its group may outlive it. `stdout` and `stderr` are the pipes that its
    output comes from, if it is wrapped.

    `is_line`: it is a shell of ours. `reap` reaps orphans that have ended: a zombie still counts as a member of its
    group.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        *,
        wrap: bool,
        is_line: bool = False,
        reap: Callable[[int | None], None] = lambda ours: None,
    ) -> None:
        """Start it. Raises AppCannotStart."""
        self._program = argv[0]
        self._is_shell_line = is_line
        self._reap = reap
        self._stop_task: asyncio.Task[None] | None = None
        # Pipes of our own and not Popen's: the hooks inside the app are told their inodes, so that they mark no other
        # stream.
        ours = [os.pipe(), os.pipe()] if wrap else []
        out, err = [write for _, write in ours] or (None, None)
        env = dict(environ)
        if ours and "OUTRIGGER_METERED" in env:  # attribution is on
            env["OUTRIGGER_LINES"] = ",".join(str(os.fstat(read).st_ino) for read, _ in ours)
        # A background group that reads a terminal would be stopped by it.
        stdin = subprocess.DEVNULL if sys.stdin is not None and sys.stdin.isatty() else None
        try:
            self._process = spawn_process(list(argv), env=env, stdin=stdin, stdout=out, stderr=err, process_group=0)
        except (OSError, ValueError) as error:
            for read, _ in ours:
                os.close(read)
            missing = isinstance(error, FileNotFoundError)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise AppCannotStart(
                f"`{argv[0]}` cannot be started: {reason}; write a command that is on the app's PATH after `--`.",
                NOT_FOUND if missing else NOT_EXECUTABLE,
            ) from error
        finally:
            # Without this the read ends would never see the end of the app's output.
            for _, write in ours:
                os.close(write)
        self.pid = self._process.pid
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        if ours:
            self.stdout, self.stderr = (os.fdopen(read, "rb") for read, _ in ours)
        self.status: int | None = None
        self.ended = asyncio.Event()
        # Popen.wait blocks, so a thread of its own waits. It is a daemon: a gateway that ends does not wait for the
        # app.
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait_in_thread, args=(loop,), name="app-wait", daemon=True).start()

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        try:
            loop.call_soon_threadsafe(self._set_status, code)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _set_status(self, code: int) -> None:
        self.status = code if code >= 0 else 128 - code  # 128+N if signal N ended it, as in a shell
        self.ended.set()

    @property
    def is_running(self) -> bool:
        return self.status is None

    def kill_group(self) -> bool:
        """Send SIGKILL to what is left of the group; whether anything was."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    async def stop(self, patience: float, stop: signal.Signals) -> None:
        """Send the signal `stop`, wait up to `patience` seconds for the whole group to end, and kill what is left of
        it.

        The signal goes to the process that was started, which stops its own children. It goes to the whole group if
        nobody else would stop them: behind a shell of ours, where the group is the app; after a process that the
        signal itself ended (a shell of the app's own, or npm, which does not handle it); and if the process had ended
        before. A second call waits for the same end.
        """
        if self._stop_task is None:
            self._stop_task = asyncio.get_running_loop().create_task(self._stop_group(patience, stop))
        await asyncio.shield(self._stop_task)

    async def _stop_group(self, patience: float, stop: signal.Signals) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        # Asked before the signal: afterwards a shell may have ended, and cannot be recognized any more.
        shell = self.is_running and is_shell(self.pid, self._program)
        group_signalled = not self.is_running or (shell and self._is_shell_line)
        self._send_signal(stop, group=group_signalled)
        while _group_exists(self.pid) and (left := deadline - loop.time()) > 0:
            if not group_signalled and not self.is_running and (shell or self.status == 128 + stop):
                group_signalled = True
                self._send_signal(stop, group=True)
            try:
                async with asyncio.timeout(min(POLL_SECONDS, left)):
                    await (self.ended.wait() if self.is_running else asyncio.sleep(POLL_SECONDS))
            except TimeoutError:
                pass
            self._reap(self.pid if self.is_running else None)  # zombies would keep the group alive
        self.kill_group()
        await self.ended.wait()

    def _send_signal(self, number: signal.Signals, *, group: bool) -> None:
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
