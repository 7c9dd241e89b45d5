"""A listening socket and its connections, for those whom nobody has to be turned away from: the app that calls out, and
the operators. The public listener has limits and a sweep of its own (`proxy/ingress/listener.py`)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from proxy.errors import BindError
from proxy.http.acceptor import Acceptor
from proxy.http.client_connection import ClientConnection, RefusalWriter
from proxy.http.messages import IncomingRequest

STOP_SECONDS = 1.0  # that requests under way have when the listener stops
SETTLE_SECONDS = 5.0  # that each has then to end in order: to write down what a call cost, in a store that may be slow
NO_DESCRIPTOR = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"

Handle = Callable[[ClientConnection, IncomingRequest], Awaitable[bool]]


class Listener:
    """Accepts whoever comes at a bound socket, which it owns from `start` on.

    `handle` serves a request and returns whether its connection may serve another one; `refuse` answers what is no
    request. `key` is the policy's key of the address. With `evicts_idle`, idle connections are closed if no descriptor
    is left for a new one.
    """

    def __init__(
        self,
        key: str,
        handle: Handle,
        refuse: RefusalWriter,
        *,
        max_header: int,
        evicts_idle: bool,
        accepts_connect: bool = False,
    ) -> None:
        self._key = key
        self._handle = handle
        self._refuse = refuse
        self._max_header = max_header
        self._evicts_idle = evicts_idle
        self._accepts_connect = accepts_connect
        self._loop = asyncio.get_running_loop()
        self._acceptor: Acceptor | None = None
        self.connections: set[ClientConnection] = set()

    def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        try:
            self._acceptor = Acceptor(
                self._loop,
                sock,
                self._on_accept,
                is_full=lambda: False,
                on_full=lambda: None,
                on_exhausted=lambda error: self._evicts_idle and self._close_idle(),
                overload_response=lambda: NO_DESCRIPTOR,
            )
        except OSError as error:
            raise BindError(f"{self._key} cannot be listened on: {error}.") from error

    async def stop(self) -> None:
        """Take no more requests, and end those that are under way. When it returns, the task of each has ended (a call
        has settled what it cost), but for one that did not within SETTLE_SECONDS: an end that waits for ever is met by
        SIGKILL, which costs everybody more. Idempotent."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            acceptor.close()
        self._close_idle()
        serving = {task for connection in self.connections if (task := connection.serving_task) is not None}
        if serving:
            await asyncio.wait(serving, timeout=STOP_SECONDS)
        for connection in list(self.connections):
            if connection.tunnel is not None:
                connection.tunnel.abort()
            connection.abort()
        if serving:
            await asyncio.wait(serving, timeout=SETTLE_SECONDS)

    def _on_accept(self, sock: socket.socket, peer: str) -> None:
        connection = ClientConnection(
            self._loop,
            IncomingRequest,
            self._handle,
            self._refuse,
            self.connections.discard,
            max_header=self._max_header,
            accepts_connect=self._accepts_connect,
        )
        self.connections.add(connection)
        connection.open(sock, peer)

    def _close_idle(self) -> bool:
        """Close the connections that serve no request. True if there were any."""
        idle = [connection for connection in self.connections if connection.is_idle]
        for connection in idle:
            connection.close()
        return bool(idle)
