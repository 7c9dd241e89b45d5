"""Whoever kills the gateway kills the app with it: a shell that waits on a pipe, and a group to end.

PR_SET_PDEATHSIG would reach the app's first process only, and only on Linux. The kernel closes the pipe
however the gateway ends, `kill -9` included; the shell (under 1 MiB) then ends the app's group.
"""

from __future__ import annotations

import subprocess

GRACE = 2  # seconds between SIGTERM to the app and SIGKILL to its group

# `kill -s`, since dash takes the `--` after `kill -KILL` for a process.
SCRIPT = f"""
pid=0
while read -r line; do pid=$line; done
[ "$pid" = 0 ] && exit 0
kill -TERM "$pid"
i=0
while [ $i -lt {GRACE * 10} ] && kill -s 0 -- "-$pid"; do sleep 0.1; i=$((i+1)); done
kill -s KILL -- "-$pid"
"""


class Warden:
    """Watches over one group at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is not for it
            cwd="/",
            bufsize=0,
        )

    def watch(self, group: int) -> None:
        """End this group when the gateway ends; 0: none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"%d\n" % group)
        except BrokenPipeError:
            pass  # somebody killed the warden; the app is not worse off than without one

    def dismiss(self) -> None:
        """The group has ended: so may the warden."""
        self.watch(0)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
