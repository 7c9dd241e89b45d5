"""Taking connections off the listening socket, as many as there is room for; the rest wait in the kernel's backlog.

The loop's own servers would do, but for the day on which no file descriptor is left: asyncio's stops accepting for a
second and says so again and again, libuv's closes whoever comes without a word, or itself.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

BACKLOG = 1024
MAX_ACCEPTS_PER_TURN = 64  # accepted in one turn of the loop
RETRY_SECONDS = 0.1  # seconds until the next try without a descriptor
OUT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
NOBODY_WAITING = (BlockingIOError, InterruptedError, ConnectionAbortedError)  # left to accept, or left already

OnAccept = Callable[[socket.socket, str], None]


class Acceptor:
    """`take` gets each connection and its peer's address. Where `is_full`, `on_full` is told that somebody waits, and
    nobody is accepted until `resume`. `on_exhausted` is told that no descriptor was left, and answers whether it made
    room; where it did not, one descriptor that is kept for this serves to answer `apology` to whoever waits."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        take: OnAccept,
        *,
        is_full: Callable[[], bool],
        on_full: Callable[[], object],
        on_exhausted: Callable[[OSError], bool],
        apology: Callable[[], bytes],
    ) -> None:
        """Raises OSError where it cannot listen."""
        self._loop = loop
        self._sock = sock
        self._on_accept = take
        self._is_full = is_full
        self._on_full = on_full
        self._on_exhausted = on_exhausted
        self._overload_response = apology
        self._spare: int | None = None
        self._reading = False
        self._closed = False
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self.resume()

    @property
    def paused(self) -> bool:
        return not (self._reading or self._closed)

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        if self.paused:
            self._reserve_spare()
            self._reading = True
            self._loop.add_reader(self._sock, self._on_readable)

    def close(self) -> None:
        if not self._closed:
            self.pause()
            self._closed = True
            self._sock.close()
            if self._spare is not None:
                os.close(self._spare)

    def accept_one(self) -> tuple[socket.socket, str] | None:
        """One who waits, whether there is room or not; None where nobody does. Raises OSError."""
        try:
            sock, peer = self._sock.accept()
        except NOBODY_WAITING:
            return None
        sock.setblocking(False)
        return sock, peer[0] if peer else ""

    def _on_readable(self) -> None:
        for turn in range(MAX_ACCEPTS_PER_TURN):
            if self._is_full():
                if not turn:  # somebody does wait: the loop has just said so
                    self._on_full()
                    self.pause()
                return
            try:
                found = self.accept_one()
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                self._on_out_of_descriptors(error)
                return
            if found is None:
                return
            self._on_accept(*found)

    def _on_out_of_descriptors(self, error: OSError) -> None:
        made_room = self._on_exhausted(error)
        if made_room or self._spare is None:
            self._pause_briefly()
            return
        os.close(self._spare)
        self._spare = None
        try:
            found = self.accept_one()
            if found is not None:
                _apologize(found[0], self._overload_response())
        except OSError:
            self._pause_briefly()
        self._reserve_spare()

    def _pause_briefly(self) -> None:
        """Until something has closed: a connection, of which `resume` tells, or what nobody tells us of (calls out, the
        database), which may be all that there is."""
        self.pause()
        self._loop.call_later(RETRY_SECONDS, self.resume)

    def _reserve_spare(self) -> None:
        if self._spare is not None:
            return
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = None


def _apologize(sock: socket.socket, answer: bytes) -> None:
    with sock:
        try:
            sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(65536)  # what is left unread would make a reset of our close, which may eat the answer
        except OSError:
            pass
