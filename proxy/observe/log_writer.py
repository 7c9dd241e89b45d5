"""Where lines leave the process: a thread writes them, so that a slow reader of the log holds up nobody."""

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
LINGER = 0.05  # seconds that the writer waits for more lines: each wake-up fights the loop for the interpreter
_CHUNK = 1024 * 1024
_BATCH = 64  # lines written out before the loop has its turn: under 1 ms
_RETRY = 0.2  # seconds between looks at a descriptor that takes nothing


Line = bytes | Callable[[], bytes]  # the latter is made by the thread that writes it, and must not raise


class LogWriter:
    """Takes whole lines from any thread, at once; at most `bound` bytes wait, what is more is dropped.

    The descriptor is never set non-blocking (the app may share it), but may be. Lines for a pipe go out in
    pieces of at most PIPE_BUF, which POSIX keeps whole beside the lines of other writers (the app's own).
    `notice(n)` makes the line that tells of n dropped lines, once lines flow again.
    """

    def __init__(self, out: BinaryIO | int, *, notice: Callable[[int], bytes], bound: int = MAX_PENDING_BYTES) -> None:
        self._file: BinaryIO | None = None
        self._fd = -1
        self._piece = _CHUNK
        if isinstance(out, int):
            self._fd = out
        else:
            try:
                self._fd = out.fileno()
            except io.UnsupportedOperation:
                self._file = out
        if self._fd >= 0 and stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            self._piece = select.PIPE_BUF
        self._notice = notice
        self._bound = bound
        self._lines: deque[tuple[Line, int]] = deque()
        self._held = 0
        self._unsaid = 0
        self._awake = False
        self._torn = False
        self._closing = threading.Event()
        self._gave_up = False
        # Re-entrant: a finalizer that the collector runs in the middle of put() may log as well.
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self.dropped = 0  # lines, since the start
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: Line, size: int) -> bool:
        """False when the line was dropped. Never waits for the reader. `size`: bytes that it holds in memory."""
        with self._lock:
            if self._held + size > self._bound or self._closing.is_set():
                self._count(1)
                return False
            self._held += size
            self._lines.append((line, size))
            if self._awake:
                return True
            self._awake = True
        self._wake.put(None)
        return True

    def close(self, timeout: float = 2.0) -> bool:
        """Writes what waits, for at most `timeout` seconds; whether all of it went out. Idempotent."""
        self._closing.set()
        self._wake.put(None)
        self._thread.join(timeout)
        self._gave_up = self._thread.is_alive()
        return not self._gave_up and not self._unsaid

    def _count(self, lines: int) -> None:
        self.dropped += lines
        self._unsaid += lines

    def _run(self) -> None:
        while True:
            self._wake.get()
            self._closing.wait(LINGER)
            ending = self._closing.is_set()  # asked first: what came before it is among the lines by now
            while batch := self._take():
                self._deliver(batch)
            if ending:
                return

    def _deliver(self, batch: list[tuple[Line, int]]) -> None:
        left = len(batch)
        try:
            for lines in self._pieces(batch):
                if self._write(b"".join(lines)):
                    left -= len(lines)
                    self._tell()
        except Exception:  # noqa: S110  the thread's outermost seam: told by what is counted below
            pass
        with self._lock:
            self._count(left)
            self._held -= sum(size for _, size in batch)

    def _take(self) -> list[tuple[Line, int]]:
        with self._lock:
            batch = [self._lines.popleft() for _ in range(min(_BATCH, len(self._lines)))]
            self._awake = bool(batch)
        return batch

    def _pieces(self, batch: list[tuple[Line, int]]) -> Iterator[list[bytes]]:
        """Lines for one write each: as many as fit a piece, at least one."""
        piece: list[bytes] = []
        size = 0
        for line, _ in batch:
            data = line if isinstance(line, bytes) else line()
            if piece and size + len(data) > self._piece:
                yield piece
                piece, size = [], 0
            piece.append(data)
            size += len(data)
        yield piece

    def _tell(self) -> None:
        """Says what was dropped, now that lines flow again."""
        if not self._unsaid:
            return
        with self._lock:
            unsaid = self._unsaid
        if self._write(self._notice(unsaid)):
            with self._lock:
                self._unsaid -= unsaid

    def _write(self, data: bytes) -> bool:
        """False when the data cannot be written: reader gone, disk full, descriptor closed."""
        if self._file is not None:
            try:
                self._file.write(data)
                self._file.flush()
            except (OSError, ValueError):  # ValueError: the file was closed
                return False
            return True
        if self._torn:
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
                self._torn = self._torn or 0 < len(rest) < len(data)
                return False
        self._torn = False
        return True

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(_RETRY * 1000)
