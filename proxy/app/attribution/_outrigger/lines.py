"""Lines that the app prints during a request bear its token, for the gateway alone: where it wraps them, standard
output and error are pipes of its own, and it takes the mark out again. Nothing else is ever marked.

Bytes that the app writes past sys.stdout and sys.stderr are not, nor what its children print.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .shim import Shim

MOST = 1000  # lines that are begun at once


def mark(shim: Shim, pipes: str) -> None:
    """`pipes` are the inodes of the gateway's, with a comma between."""
    for stream in (sys.stdout, sys.stderr):
        try:
            _follow(shim, stream, {int(inode) for inode in pipes.split(",")})
        except Exception:  # no such stream, or one that is closed: there is nothing to mark
            continue


def _same(number: int, pipes: set[int]) -> bool:
    """Asked each time, since the app may have put a file in the pipe's place."""
    try:
        return os.fstat(number).st_ino in pipes
    except OSError:
        return False


def _follow(shim: Shim, stream: Any, pipes: set[int]) -> None:
    number = stream.fileno()
    if not _same(number, pipes):
        return
    original = stream.write
    begun: set[str] = set()  # whose line has been begun and not ended

    def write(text: Any) -> Any:
        token = shim.current.get()
        if token is None or not isinstance(text, str) or not text or not _same(number, pipes):
            return original(text)
        sign = "\x1e" + token + "\x1f"
        head, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
        marked = ("" if token in begun else sign) + head.replace("\n", "\n" + sign) + end
        if end:
            begun.discard(token)
        elif len(begun) < MOST:
            begun.add(token)
        original(marked)
        return len(text)

    stream.write = write
