"""After a 101: raw bytes both ways, so that compression, fragments and close codes stay the app's own."""

from __future__ import annotations

import asyncio
from typing import cast


class TunnelEnd(asyncio.Protocol):
    """One end: what it reads goes out at the other, as fast as that one takes it."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.transport: asyncio.Transport | None = None
        self.peer: TunnelEnd | None = None
        self.bytes_received = 0
        self.at_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.at_eof = True
        if self.peer is None or self.peer.at_eof or self.peer.transport is None:
            return False
        self.peer.transport.write_eof()
        return True  # half-closed: the other direction may go on

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.tunnel.on_end_closed(self, exc)


class Tunnel:
    """Two ends and the future that both are closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, user: str = "") -> None:
        self.user = user
        self.client = TunnelEnd(self)
        self.app = TunnelEnd(self)
        self.closed: asyncio.Future[None] = loop.create_future()

    def join(
        self,
        client: asyncio.Transport,
        from_client: bytes,
        app: asyncio.Transport,
        from_app: bytes,
    ) -> None:
        """Start relaying. Both transports already have our ends for protocols."""
        self.client.transport, self.app.transport = client, app
        self.client.peer, self.app.peer = self.app, self.client
        if from_client:
            self.client.data_received(from_client)
        if from_app:
            self.app.data_received(from_app)
        for end, transport in ((self.client, client), (self.app, app)):
            if transport.is_closing():
                end.connection_lost(None)
            elif not transport.is_reading():
                transport.resume_reading()

    def on_end_closed(self, end: TunnelEnd, exc: Exception | None) -> None:
        other = end.peer
        if other is not None and other.transport is not None:
            # An end that broke must not look like one that closed.
            if exc is not None:
                other.transport.abort()
            else:
                other.transport.close()
        if self.client.transport is None and self.app.transport is None and not self.closed.done():
            self.closed.set_result(None)

    def abort(self) -> None:
        for end in (self.client, self.app):
            if end.transport is not None:
                end.transport.abort()
