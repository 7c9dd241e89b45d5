"""A connection whose replies come in the order of its commands, so that many can be under way (RESP and PostgreSQL).

Commands of one turn of the event loop leave in one write: a busy instance pays one system call for many decisions.
Nothing here knows a time-out: who waits decides how long, and then aborts the connection, since a reply that is late
holds up every reply behind it.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from proxy.store.interface import StoreAway


class PipelinedConnection(asyncio.Protocol):
    """`on_lost` is called once, with the reason, when the connection has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        # One for each command without a reply, oldest first, with what its reply is read by.
        self._waiting: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._ended: str | None = None  # why

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._ended or 'open'}, {len(self._waiting)} under way>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @abstractmethod
    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection broke: {exc}" if exc is not None and str(exc) else "it closed the connection")

    def abort(self, reason: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _send(self, data: bytes, context: Any = None, reply: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Send a command with the others of this turn; its reply comes in the future."""
        if reply is None:
            reply = self._loop.create_future()
        if self._ended is not None:
            reply.set_exception(StoreAway(self._ended))
            return reply
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)
        self._waiting.append((reply, context))
        return reply

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _end(self, reason: str) -> None:
        if self._ended is not None:
            return
        self._ended = reason
        self._outgoing.clear()
        while self._waiting:
            reply, _ = self._waiting.popleft()
            # Who was cancelled meanwhile does not wait any more.
            if not reply.done():
                reply.set_exception(StoreAway(reason))
                reply.exception()  # seen: whoever waits raises it, and nobody may be waiting
        self._on_lost(reason)
