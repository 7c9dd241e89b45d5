"""Lines that the app prints during a request are marked with its token. Only the gateway ever sees the mark: lines
are marked if standard output and error are pipes that the gateway reads, and it takes the mark out again.

What the app writes past `sys.stdout` and `sys.stderr`, and what its children print, is not marked.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .shim import Shim

MAX_OPEN_LINES = 1000  # lines that are begun at once


def mark_output(shim: Shim, pipes: str) -> None:
    """`pipes` are the inodes of the gateway's pipes, with a comma between."""
    for stream in (sys.stdout, sys.stderr):
        try:
            _mark_stream(shim, stream, {int(inode) for inode in pipes.split(",")})
        except Exception:  # there is no such stream, or it is closed
            continue


def _is_own_pipe(number: int, pipes: set[int]) -> bool:
    """Asked each time, since the app may have put a file in the place of the pipe."""
    try:
        return os.fstat(number).st_ino in pipes
    except OSError:
        return False


def _mark_stream(shim: Shim, stream: Any, pipes: set[int]) -> None:
    number = stream.fileno()
    if not _is_own_pipe(number, pipes):
        return
    original = stream.write
    begun: set[str] = set()  # tokens whose line has begun and not ended

    def write(text: Any) -> Any:
        token = shim.current.get()
        if token is None or not isinstance(text, str) or not text or not _is_own_pipe(number, pipes):
            return original(text)
        # Record and unit separators, which text hardly ever has: `print` writes a line in pieces, so the mark goes in
        # once per line.
        sign = "\x1e" + token + "\x1f"
        head, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
        marked = ("" if token in begun else sign) + head.replace("\n", "\n" + sign) + end
        if end:
            begun.discard(token)
        elif len(begun) < MAX_OPEN_LINES:
            begun.add(token)
        original(marked)
        return len(text)

    stream.write = write
