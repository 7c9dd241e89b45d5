"""OUTRIGGER=off, the emergency switch: the app runs alone, as if the gateway were not there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from proxy.app.shell_command import SHELL, exec_last_command

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def exec_passthrough(words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become the app's command by exec, with nothing in it changed; exits with 127 or 126 if that fails.

    Of a shell line, the process becomes the last command. If only a shell can run the line, it is started in a process
    group of its own, which gets the signals that we get: a shell would keep them to itself. We end when the shell ends;
    after a signal, when all of the group have ended.
    """
    argv = list(words)
    if len(argv) == 1 and re.search(r"\s", argv[0].strip()):
        line = argv[0].strip()
        argv = [SHELL, "-c", exec_last_command(line)]
        if argv[2] == line and not re.match(r"exec\s", line):
            sys.exit(_run_in_shell(argv, environ))
    try:
        os.execvpe(argv[0], argv, dict(environ))
    except OSError as error:
        sys.stderr.write(f"outrigger: {argv[0]} cannot be started: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def _run_in_shell(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Its status; 128+N if signal N ended it. In a terminal it stays in our group, which gets the terminal's
    signals."""
    from proxy.app.reaper import become_subreaper, reap_children  # it imports asyncio, which nothing else needs here

    terminal = sys.stdin is not None and sys.stdin.isatty()
    # we reap those that end after the shell: a zombie stays a member of its group until it is reaped
    become_subreaper()
    process = subprocess.Popen(argv, env=dict(environ), process_group=None if terminal else 0)

    forwarded: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        forwarded.append(number)
        if not terminal:
            _signal_group(process.pid, number)
        elif number != signal.SIGINT:
            process.send_signal(number)

    for number in FORWARDED_SIGNALS:
        signal.signal(number, pass_on)
    status = process.wait()
    while forwarded and not terminal and _signal_group(process.pid, 0):  # the shell may be gone before the app
        time.sleep(0.05)
        reap_children(None)
    return status if status >= 0 else 128 - status


def _signal_group(group: int, number: int) -> bool:
    """Whether the group had a member."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
