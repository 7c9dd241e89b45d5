"""`python -m proxy` and `outrigger`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Signals come first: the rest takes a third of a second to import, and the kernel lets process 1 of a container
    have none that it has no handler for. Nothing has been started until the gateway puts its own in their place."""
    words = sys.argv[1:]
    if words and (words[0] in ("run", "--") or words[0].startswith("--policy")):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _exit_on_signal)
        signal.signal(signal.SIGHUP, _ignore_hangup)
        # Nearly all that a start makes lives as long as the process, and the collector looked through it again and
        # again: a twelfth of a start. It is on once everything is made (freeze_startup_objects).
        gc.disable()
    from proxy.cli import main as command

    sys.exit(command(words, os.environ))


def _exit_on_signal(_: int, __: FrameType | None) -> None:
    sys.exit(0)


def _ignore_hangup(_: int, __: FrameType | None) -> None:
    """The policy has yet to be read."""


if __name__ == "__main__":
    main()
