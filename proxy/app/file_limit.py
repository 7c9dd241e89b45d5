"""How many files a process may hold open: we take as many as we may, the app gets what we were started with."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MAX_FILES = 1 << 20  # where there is no limit at all
INHERITED_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)  # what whoever started us gave us


def raise_file_limit() -> int:
    """Raise the soft limit to the hard one, as any process may; the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # macOS has another bound, which it does not tell
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def spawn_process(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A child with the limit that we were started with: programs that close or select all they may hold would be slow,
    or fail, with hundreds of thousands. Raises what Popen does."""
    try:
        with _inherited_limit():
            return subprocess.Popen(argv, **options)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # We hold more files than that: the child is told as soon as it is there.
    process = subprocess.Popen(argv, **options)
    try:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, INHERITED_LIMIT)
    except (AttributeError, OSError):
        pass  # it has ended, or this is no Linux
    return process


@contextmanager
def _inherited_limit() -> Iterator[None]:
    now = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (INHERITED_LIMIT[0], now[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, now)
