"""The limit of open files (RLIMIT_NOFILE, setrlimit(2)): the gateway raises its own, the app gets the one that the
gateway was started with."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MAX_FILES = 1 << 20  # files, if the hard limit is infinite
INHERITED_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)  # (soft, hard), as the gateway was started with


def raise_file_limit() -> int:
    """Raise the soft limit to the hard one, as any process may; the soft limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # macOS has a lower bound that it does not report
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def spawn_process(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child with the limit that the gateway was started with. Programs that close every descriptor they may
    hold, or use select(2), would be slow or fail with hundreds of thousands. Raises what Popen does."""
    try:
        with _inherited_limit():
            return subprocess.Popen(argv, **options)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # The gateway holds more files than that limit: the child's limit is set as soon as the child exists.
    process = subprocess.Popen(argv, **options)
    try:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, INHERITED_LIMIT)
    except (AttributeError, OSError):
        pass  # it has ended, or this is not Linux
    return process


@contextmanager
def _inherited_limit() -> Iterator[None]:
    # A child inherits the limit of its parent at the fork. Only the soft one is lowered: it can be raised again.
    now = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (INHERITED_LIMIT[0], now[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, now)
