"""Writes the log's lines from a thread of its own, so that a slow reader of the log blocks nobody."""

from __future__ import annotations

import io
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import BinaryIO

MAX_PENDING_BYTES = 8 * 1024 * 1024
# seconds that the writer waits for more lines: at each wake-up it competes with the loop for the GIL
GATHER_SECONDS = 0.05
_MAX_WRITE_BYTES = 1024 * 1024
_BATCH_LINES = 64  # lines formatted before the loop has its turn: under 1 ms
_POLL_SECONDS = 0.2  # seconds between looks at a descriptor that accepts nothing


Line = bytes | Callable[[], bytes]  # a callable is formatted by the writer's thread, and must not raise


class LogWriter:
    """Takes whole lines from any thread without blocking; at most `bound` bytes wait, lines past that are dropped.

    The descriptor is never set non-blocking, since the app may share it, but somebody else may have set it so. Lines
    for a pipe are written in pieces of at most PIPE_BUF, which POSIX keeps together beside the lines of other writers
    (the app's own). `notice(n)` makes the line that reports n dropped lines. `dropped` counts the lines since the
    start.
    """

    def __init__(self, out: BinaryIO | int, *, notice: Callable[[int], bytes], bound: int = MAX_PENDING_BYTES) -> None:
        self._file: BinaryIO | None = None
        self._fd = -1
        self._max_write_bytes = _MAX_WRITE_BYTES
        if isinstance(out, int):
            self._fd = out
        else:
            try:
                self._fd = out.fileno()
            except io.UnsupportedOperation:
                self._file = out
        if self._fd >= 0 and stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            self._max_write_bytes = select.PIPE_BUF
        self._format_dropped = notice
        self._max_pending_bytes = bound
        self._lines: deque[tuple[Line, int]] = deque()
        self._pending_bytes = 0
        self._unreported_drops = 0
        self._is_awake = False
        self._partial_line = False
        self._closing = threading.Event()
        self._is_closing = False  # the same, for each line
        self._gave_up = False
        # Re-entrant: a finalizer that the garbage collector runs in the middle of write_line() may log as well.
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self.dropped = 0  # lines, since the start
        self._thread = threading.Thread(target=self._write_until_closed, name="log-writer", daemon=True)
        self._thread.start()

    def write_line(self, line: Line, size: int) -> bool:
        """Queue a line; False if it was dropped. Never waits for the reader. `size`: bytes that it takes in memory."""
        with self._lock:
            if self._pending_bytes + size > self._max_pending_bytes or self._is_closing:
                self._count_dropped(1)
                return False
            self._pending_bytes += size
            self._lines.append((line, size))
            # The writer looks for further lines before it sleeps again: one wake-up is enough for a burst.
            if self._is_awake:
                return True
            self._is_awake = True
        self._wake.put(None)
        return True

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits, for at most `timeout` seconds; whether all of it was written. Idempotent."""
        self._is_closing = True
        self._closing.set()
        self._wake.put(None)
        self._thread.join(timeout)
        self._gave_up = self._thread.is_alive()  # from now on the thread waits for no reader any more
        return not self._gave_up and not self._unreported_drops

    def _count_dropped(self, lines: int) -> None:
        self.dropped += lines
        self._unreported_drops += lines

    def _write_until_closed(self) -> None:
        while True:
            self._wake.get()
            self._closing.wait(GATHER_SECONDS)
            ending = self._closing.is_set()  # read before the lines: what was queued before close() is among them
            while batch := self._next_batch():
                self._write_batch(batch)
            if ending:
                return

    def _write_batch(self, batch: list[tuple[Line, int]]) -> None:
        left = len(batch)
        try:
            for lines in self._split_batch(batch):
                if self._write_all(b"".join(lines)):
                    left -= len(lines)
                    self._report_dropped()
        except Exception:  # noqa: S110  the thread's outermost seam: the lines are counted below
            pass
        with self._lock:
            # Given back only now: lines that are being written still take memory.
            self._count_dropped(left)
            self._pending_bytes -= sum(size for _, size in batch)

    def _next_batch(self) -> list[tuple[Line, int]]:
        with self._lock:
            batch = [self._lines.popleft() for _ in range(min(_BATCH_LINES, len(self._lines)))]
            self._is_awake = bool(batch)
        return batch

    def _split_batch(self, batch: list[tuple[Line, int]]) -> Iterator[list[bytes]]:
        """The lines of a batch, grouped for one write each: as many as fit, at least one."""
        piece: list[bytes] = []
        size = 0
        for line, _ in batch:
            data = line if isinstance(line, bytes) else line()
            if piece and size + len(data) > self._max_write_bytes:
                yield piece
                piece, size = [], 0
            piece.append(data)
            size += len(data)
        yield piece

    def _report_dropped(self) -> None:
        """Report what was dropped, now that lines flow again."""
        if not self._unreported_drops:
            return
        with self._lock:
            unsaid = self._unreported_drops
        if self._write_all(self._format_dropped(unsaid)):
            with self._lock:
                self._unreported_drops -= unsaid

    def _write_all(self, data: bytes) -> bool:
        """Write all of the data; False if it cannot be written: reader gone, disk full, descriptor closed."""
        if self._file is not None:
            try:
                self._file.write(data)
                self._file.flush()
            except (OSError, ValueError):  # ValueError: the file was closed
                return False
            return True
        # An earlier write ended in the middle of a line: the next one must not continue it.
        if self._partial_line:
            data = b"\n" + data
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                if self._gave_up:
                    return False
                self._wait_writable()
            except OSError:
                self._partial_line = self._partial_line or 0 < len(rest) < len(data)
                return False
        self._partial_line = False
        return True

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(_POLL_SECONDS * 1000)
