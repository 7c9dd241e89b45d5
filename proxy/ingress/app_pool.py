"""The pool of connections to the app: idle ones are kept for a moment, and checked before they are used again.

An app closes an idle connection when it likes (uvicorn after 5 s, gunicorn after 2 s), and a request that meets a
connection which is just being closed is lost, without anybody knowing whether the app had read it. So
- idle connections are closed after 1.5 s, before the app closes them;
- each is checked for an end of file before it is used: by the event loop, if it has polled the socket since the
  connection came back, or else here;
- a method that may not be repeated takes only a connection that has been idle for less than 0.5 s.

Servers close without a warning in two more cases. After an exception uvicorn sends a whole 500 that says keep-alive and
closes in the same moment, so a connection is not used again after a status of 500 or above. And a worker ends after
its number of requests (gunicorn's `max_requests`, uvicorn's and hypercorn's limits): if a connection was seen to end
early, methods that may not be repeated use fresh ones for a while.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable

from proxy.errors import OutOfDescriptors, PeerUnreachable, Refusal
from proxy.http.upstream_connection import UpstreamConnection

MAX_IDLE = 1.5  # seconds for which a connection may be idle
MAX_IDLE_UNREPEATABLE = 0.5  # the same for a method that may not be repeated
SWEEP_SECONDS = 0.5  # between two sweeps over the idle connections
PEEK_FLAGS = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
CAUTION_SECONDS = 600.0  # of fresh connections for methods that may not be repeated, after one ended early
CONNECT_TIMEOUT = 5.0  # seconds; loopback answers at once, unless the app's accept queue is full


class AppPool:
    """Connections to the app. One carries one request at a time: no request waits behind another's response.

    - `on_exhausted` is called if no file descriptor is left for a new connection.
    - `refused_connections`: how many connections the app has refused so far.
    - `tunnels`: how many of the open connections have become tunnels.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, address: Callable[[], tuple[str, int]]) -> None:
        self.on_exhausted: Callable[[], object] = lambda: None
        self._loop = loop
        self._address = address
        self._idle: deque[tuple[UpstreamConnection, socket.socket]] = deque()
        self._sockets: dict[UpstreamConnection, socket.socket] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._cautious_until = 0.0
        self.refused_connections = 0
        self.tunnels = 0
        # Of the event loop, counted while connections come back: it polls all sockets between two iterations.
        self._iteration = 0
        self._iteration_scheduled = False

    def __repr__(self) -> str:
        return f"<Pool {len(self._sockets) - len(self._idle)} in use, {len(self._idle)} idle>"

    @property
    def in_use(self) -> int:
        return len(self._sockets) - len(self._idle)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def descriptors(self) -> int:
        """File descriptors that its connections take, tunnels included."""
        return len(self._sockets) + self.tunnels

    def acquire_idle(self, *, repeatable: bool) -> UpstreamConnection | None:
        """The most recently used idle connection that is still good, or None."""
        now = self._loop.time()
        # The app's workers come and go: any idle connection may be about to end.
        if not repeatable and now < self._cautious_until:
            return None
        # One that has been idle for longer may be closed by the app at this very moment.
        oldest = now - (MAX_IDLE if repeatable else MAX_IDLE_UNREPEATABLE)
        while self._idle:
            app_connection, sock = self._idle[-1]
            if app_connection.idle_since < oldest and not app_connection.is_closed:
                return None  # all others have been idle for longer; the sweep closes them
            if app_connection.idle_iteration == self._iteration and self._idle[0][0].idle_iteration != self._iteration:
                # The newest came back in this iteration, and checking it costs a system call. The oldest has been
                # polled by the loop since, so it needs none.
                app_connection, sock = self._idle.popleft()
                if app_connection.idle_since < oldest:
                    self.discard(app_connection)
                    continue
            else:
                self._idle.pop()
            # Polled since it came back, it would be known to have ended. Else a look at the socket tells.
            if not app_connection.is_closed and (app_connection.idle_iteration != self._iteration or _is_open(sock)):
                return app_connection
            self.discard_closed_early(app_connection)
            # One that ended early suggests that others are about to.
            if not repeatable:
                return None
        return None

    def discard_closed_early(self, app_connection: UpstreamConnection) -> None:
        """Discard a connection that the app closed first, perhaps under a request that it has not read."""
        self._cautious_until = self._loop.time() + CAUTION_SECONDS
        self.discard(app_connection)

    async def connect(self) -> UpstreamConnection:
        """A fresh connection. Raises PeerUnreachable, or NoDescriptors; nothing was sent."""
        host, port = self._address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            # The listener closes idle clients, so that the next request finds a descriptor.
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.on_exhausted()
            raise OutOfDescriptors("No file descriptor is left for a connection to the app.", sent=False) from error
        sock.setblocking(False)
        try:
            # Without it the kernel holds small writes back until earlier ones are acknowledged (Nagle's algorithm).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._loop.sock_connect(sock, (host, port))
            _, app_connection = await self._loop.create_connection(
                lambda: UpstreamConnection(self._loop, sock), sock=sock
            )
        except OSError as error:  # includes TimeoutError
            sock.close()
            self.refused_connections += 1
            reason = "took too long to accept the connection" if isinstance(error, TimeoutError) else "refused it"
            raise PeerUnreachable(f"The app at {host}:{port} {reason}.", sent=False) from error
        # Cancelled: the client left while the app was being connected to.
        except BaseException:
            sock.close()
            raise
        self._sockets[app_connection] = sock
        return app_connection

    def release(self, app_connection: UpstreamConnection, *, repeatable: bool) -> None:
        """Keep a connection for the next request if it can serve one, else close it.

        `repeatable` says whether its request was. Requests that are not use fresh connections during a time of caution;
        these would add up if they were kept, since nobody would take them.
        """
        # uvicorn closes behind a 500 that says keep-alive, see the module's docstring.
        if self._closed or not app_connection.reusable or app_connection.status >= 500:
            self.discard(app_connection)
            return
        app_connection.idle_since = self._loop.time()
        if not repeatable and app_connection.idle_since < self._cautious_until:
            self.discard(app_connection)
            return
        app_connection.idle_iteration = self._iteration
        # What call_soon gets runs in the loop's next iteration, after all sockets were polled once more.
        if not self._iteration_scheduled:
            self._iteration_scheduled = True
            self._loop.call_soon(self._count_iteration)
        self._idle.append((app_connection, self._sockets[app_connection]))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _count_iteration(self) -> None:
        self._iteration_scheduled = False
        self._iteration += 1

    def discard(self, app_connection: UpstreamConnection) -> None:
        self._sockets.pop(app_connection, None)
        app_connection.abort()

    def detach(self, app_connection: UpstreamConnection) -> None:
        """Let go of a connection that became a tunnel. Its descriptor counts until `release_tunnel`."""
        self._sockets.pop(app_connection, None)
        self.tunnels += 1

    def release_tunnel(self) -> None:
        self.tunnels -= 1

    def close_idle(self) -> None:
        """Close idle connections: the app was replaced, or is about to stop."""
        while self._idle:
            self.discard(self._idle.popleft()[0])

    def abort_requests(self, detail: str) -> int:
        """End the requests under way, and return how many there were. Tunnels stay.

        Those without a response get a 502 with `detail`; a response that has begun breaks off, so that nobody takes it
        for whole.
        """
        # Idle connections have no exchange that could fail.
        idle = {app_connection for app_connection, _ in self._idle}
        left = [app_connection for app_connection in self._sockets if app_connection not in idle]
        for app_connection in left:
            app_connection.fail(Refusal("app-unreachable", 502, "Bad gateway", detail))
        return len(left)

    def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self.close_idle()

    def _sweep(self) -> None:
        oldest = self._loop.time() - MAX_IDLE
        # Oldest first, so the sweep ends at the first connection that may stay.
        while self._idle and (self._idle[0][0].is_closed or self._idle[0][0].idle_since < oldest):
            app_connection = self._idle.popleft()[0]
            if app_connection.is_closed:
                self.discard_closed_early(app_connection)
            else:
                self.discard(app_connection)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._idle else None


def _is_open(sock: socket.socket) -> bool:
    """Whether a connection is open and silent: no end of file, and no bytes that nobody asked for."""
    try:
        sock.recv(1, PEEK_FLAGS)
    except (BlockingIOError, InterruptedError):
        return True
    except OSError:
        return False
    return False
