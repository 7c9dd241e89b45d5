"""Accepting connections from the listening socket, as many as there is room for; the rest wait in the kernel's backlog.

The loop's own servers would do if a process never ran out of file descriptors. When it does, asyncio's server stops
accepting for a second and logs that again and again, and libuv's closes whoever comes without a word, or itself.
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
NOBODY_WAITING = (
    BlockingIOError,
    InterruptedError,
    ConnectionAbortedError,
)  # there is nobody to accept, or nobody any more

OnAccept = Callable[[socket.socket, str], None]


class Acceptor:
    """Accepts clients while there is room.

    - `on_accept` gets each connection's socket and its peer's address.
    - While `is_full`, nobody is accepted. `on_full` is called once when somebody waits; then `resume` must be called.
    - `on_exhausted` is called if no file descriptor is left. It returns whether it freed one; if it did not, a spare
      descriptor serves to send `overload_response` to whoever waits.

    States: reading (the loop watches the socket), paused, closed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_accept: OnAccept,
        *,
        is_full: Callable[[], bool],
        on_full: Callable[[], object],
        on_exhausted: Callable[[OSError], bool],
        overload_response: Callable[[], bytes],
    ) -> None:
        """Raises OSError if the socket cannot listen."""
        self._loop = loop
        self._sock = sock
        self._on_accept = on_accept
        self._is_full = is_full
        self._on_full = on_full
        self._on_exhausted = on_exhausted
        self._overload_response = overload_response
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
            # The spare may have been used up while descriptors were short.
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
        """Accept one client, whether there is room or not; None if nobody waits. Raises OSError."""
        try:
            sock, peer = self._sock.accept()
        except NOBODY_WAITING:
            return None
        sock.setblocking(False)
        return sock, peer[0] if peer else ""

    def _on_readable(self) -> None:
        # Several in one iteration of the loop, since each iteration costs a poll; not all, so that open connections get
        # their turn.
        for turn in range(MAX_ACCEPTS_PER_TURN):
            if self._is_full():
                if not turn:  # the loop has just said that somebody waits
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
        # The client is answered with the spare's descriptor, since it would otherwise wait until its own timeout.
        os.close(self._spare)
        self._spare = None
        try:
            found = self.accept_one()
            if found is not None:
                _send_and_close(found[0], self._overload_response())
        except OSError:
            self._pause_briefly()
        self._reserve_spare()

    def _pause_briefly(self) -> None:
        """Stop accepting for a moment. A client's connection that closes calls `resume`, but nobody does for the
        descriptors of calls out and of the database, and these may be the only ones that are freed."""
        self.pause()
        self._loop.call_later(RETRY_SECONDS, self.resume)

    def _reserve_spare(self) -> None:
        if self._spare is not None:
            return
        try:
            # Any descriptor will do: it is only held in order to be closed when one is needed.
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = None


def _send_and_close(sock: socket.socket, response: bytes) -> None:
    with sock:
        try:
            sock.send(response)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(65536)  # closing with unread data sends a reset, which may discard the response
        except OSError:
            pass
