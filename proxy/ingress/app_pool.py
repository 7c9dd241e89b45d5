"""Connections to the app: kept a moment, looked at before they are used again.

An app closes an idle connection when it likes (uvicorn after 5 s, gunicorn after 2 s), and a request
that meets a connection just being closed is lost without anyone knowing whether it was read. So idle
connections are dropped after 1.5 s, before the app drops them; each is looked at for an end of file
before it is used (by the loop, which has asked the kernel since the connection came back, or else by us);
and a method that may not be repeated takes only one that was idle for under 0.5 s.

Servers close without a word in two more cases. After an exception: uvicorn sends a whole 500 that says keep-alive and
closes in the same moment, so a connection is not used again after an answer of 500 or above. And when a worker has
had its number of requests (gunicorn's `max_requests`, uvicorn's and hypercorn's limits): where a connection was seen
to end before its time, methods that may not be repeated have a fresh one for a while.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable

from proxy.errors import AppUnreachable, NoDescriptors, Refusal
from proxy.ingress.app_connection import AppConnection

MAX_IDLE = 1.5
MAX_IDLE_UNREPEATABLE = 0.5
SWEEP_SECONDS = 0.5
PEEK_FLAGS = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
CAUTION_SECONDS = 600.0  # after a connection ended before its time
CONNECT_TIMEOUT = 5.0  # loopback answers at once; a full accept queue does not


class AppPool:
    """Idle legs, newest last. One request has one leg: nothing waits behind another's answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: Callable[[], tuple[str, int]]) -> None:
        self.on_exhausted: Callable[[], object] = lambda: None  # told that no descriptor is left
        self._loop = loop
        self._address = address
        self._idle: deque[tuple[AppConnection, socket.socket]] = deque()
        self._sockets: dict[AppConnection, socket.socket] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._cautious_until = 0.0
        self.refused_connections = 0  # connections that the app refused
        self.tunnels = 0  # connections to the app that became one
        self._iteration = 0  # of the loop, as far as it matters: it polled all sockets between two
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
        """How many its connections take, tunnels included."""
        return len(self._sockets) + self.tunnels

    def acquire_idle(self, *, repeatable: bool) -> AppConnection | None:
        """The most recently used idle leg that is still good, or None."""
        now = self._loop.time()
        if not repeatable and now < self._cautious_until:
            return None
        oldest = now - (MAX_IDLE if repeatable else MAX_IDLE_UNREPEATABLE)
        while self._idle:
            leg, sock = self._idle[-1]
            if leg.idle_since < oldest and not leg.is_closed:
                return None  # all others were idle for longer; the sweep ends them
            if leg.idle_iteration == self._iteration and self._idle[0][0].idle_iteration != self._iteration:
                leg, sock = self._idle.popleft()  # one that the loop has looked at costs no look of ours
                if leg.idle_since < oldest:
                    self.discard(leg)
                    continue
            else:
                self._idle.pop()
            if not leg.is_closed and (leg.idle_iteration != self._iteration or _is_open(sock)):
                return leg
            self.discard_closed_early(leg)
            if not repeatable:
                return None
        return None

    def discard_closed_early(self, leg: AppConnection) -> None:
        """The app closed it before we did, or under a request that it may not have read."""
        self._cautious_until = self._loop.time() + CAUTION_SECONDS
        self.discard(leg)

    async def connect(self) -> AppConnection:
        """A fresh leg. Raises AppUnreachable, nothing sent."""
        host, port = self._address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.on_exhausted()
            raise NoDescriptors("No file descriptor is left for a connection to the app.", sent=False) from error
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._loop.sock_connect(sock, (host, port))
            _, leg = await self._loop.create_connection(lambda: AppConnection(self._loop, sock), sock=sock)
        except OSError as error:  # TimeoutError is one
            sock.close()
            self.refused_connections += 1
            reason = "took too long to accept the connection" if isinstance(error, TimeoutError) else "refused it"
            raise AppUnreachable(f"The app at {host}:{port} {reason}.", sent=False) from error
        except BaseException:
            sock.close()
            raise
        self._sockets[leg] = sock
        return leg

    def release(self, leg: AppConnection, *, repeatable: bool) -> None:
        """Keep a leg for the next request where it can serve one, else end it. `repeatable`: its request was; while
        those that are not have fresh legs, theirs would add up, with nobody to take them."""
        if self._closed or not leg.reusable or leg.status >= 500:
            self.discard(leg)
            return
        leg.idle_since = self._loop.time()
        if not repeatable and leg.idle_since < self._cautious_until:
            self.discard(leg)
            return
        leg.idle_iteration = self._iteration
        if not self._iteration_scheduled:
            self._iteration_scheduled = True
            self._loop.call_soon(self._count_iteration)
        self._idle.append((leg, self._sockets[leg]))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _count_iteration(self) -> None:
        self._iteration_scheduled = False
        self._iteration += 1

    def discard(self, leg: AppConnection) -> None:
        self._sockets.pop(leg, None)
        leg.abort()

    def detach(self, leg: AppConnection) -> None:
        """A leg that became a tunnel is no longer ours, but for its descriptor: until `tunnel_ended`."""
        self._sockets.pop(leg, None)
        self.tunnels += 1

    def release_tunnel(self) -> None:
        self.tunnels -= 1

    def close_idle(self) -> None:
        """End idle legs: the app was replaced, or is about to stop."""
        while self._idle:
            self.discard(self._idle.popleft()[0])

    def abort_requests(self, detail: str) -> int:
        """End what is under way: before its answer's head with a 502, later so that nobody takes it for whole. How
        many there were; tunnels stay."""
        idle = {leg for leg, _ in self._idle}
        left = [leg for leg in self._sockets if leg not in idle]
        for leg in left:
            leg.fail(Refusal("app-unreachable", 502, "Bad gateway", detail))
        return len(left)

    def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self.close_idle()

    def _sweep(self) -> None:
        oldest = self._loop.time() - MAX_IDLE
        while self._idle and (self._idle[0][0].is_closed or self._idle[0][0].idle_since < oldest):
            leg = self._idle.popleft()[0]
            if leg.is_closed:
                self.discard_closed_early(leg)
            else:
                self.discard(leg)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._idle else None


def _is_open(sock: socket.socket) -> bool:
    """Whether a connection is open and has nothing to say: no end of file, no unasked-for bytes."""
    try:
        sock.recv(1, PEEK_FLAGS)
    except (BlockingIOError, InterruptedError):
        return True
    except OSError:
        return False
    return False
