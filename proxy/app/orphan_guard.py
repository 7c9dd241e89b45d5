"""If the gateway is killed, the app is ended with it: a small shell waits on a pipe that closes with the gateway.

PR_SET_PDEATHSIG would reach the app's first process only, and only on Linux. The kernel closes the pipe
however the gateway ends, also by `kill -9`; the shell (under 1 MiB) then ends the app's process group, and those of its
descendants that have a session of their own.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

from proxy.process.hardening import minimal_environment

GRACE_SECONDS = 2  # seconds between the stop signal and SIGKILL

# It reads lines of: the group, whom its stop signal goes to, that signal, the app's orphans. The last line counts;
# group 0 means that there is nobody to end.
# `kill -s`, since dash takes the `--` after `kill -KILL` for a process.
SCRIPT = f"""
tree() {{
  for t in /proc/"$1"/task/*/children; do
    [ -r "$t" ] && for c in $(cat "$t"); do echo "$c"; tree "$c"; done
  done
}}
pid=0
while read -r a b c d; do pid=$a target=$b signal=$c orphans=$d; done
[ "$pid" = 0 ] && exit 0
all="$orphans $(for p in $pid $orphans; do tree "$p"; done)"
kill -s "$signal" -- "$target"
[ -n "$orphans" ] && kill -s TERM $orphans
i=0
told=
while [ $i -lt {GRACE_SECONDS * 10} ] && kill -s 0 -- "-$pid"; do
  if [ -z "$told" ] && ! kill -s 0 "$pid"; then told=1; kill -s "$signal" -- "-$pid"; fi
  sleep 0.1
  i=$((i+1))
done
kill -s KILL -- "-$pid"
for p in $all; do kill -s KILL "$p"; done
"""


class OrphanGuard:
    """The guard of one process group at a time. `pid` is that of the shell."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is not for it
            cwd="/",
            env=minimal_environment(),
            bufsize=0,
        )
        self.pid = self._process.pid
        self._last_line = b""

    def watch_group(
        self, group: int, *, whole: bool = False, stop: signal.Signals = signal.SIGTERM, orphans: Sequence[int] = ()
    ) -> None:
        """Set which group to end when the gateway ends; 0: none. The signal `stop` goes to its first process, or to the
        `whole` group."""
        target = f"-{group}" if whole else f"{group}"
        line = " ".join((f"{group} {target} {stop.name.removeprefix('SIG')}", *map(str, orphans))).encode() + b"\n"
        if line == self._last_line:
            return
        self._last_line = line
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            pass  # somebody killed the guard; the app is not worse off than without one

    def dismiss(self) -> None:
        """End the guard, since the group has ended. Waits for its shell."""
        self.watch_group(0)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
