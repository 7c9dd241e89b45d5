"""Two connections that become one: raw bytes both ways, after a 101 or a CONNECT (RFC 9110 sections 7.8 and 9.3.6).

Nothing is parsed, so compression, fragments and close codes of a WebSocket stay those of its two ends. A tunnel is the
protocol of both transports: it needs no task, and passes a half-close on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast


class TunnelEnd(asyncio.Protocol):
    """One end of a tunnel: what it reads goes out at its peer, as fast as that one takes it.

        state        event            next state
        open         end of file      half-closed: the peer's writing half is closed, the peer goes on sending
        half-closed  the peer's end   closed
        either       connection lost  closed; the peer is closed too, or aborted after an error

    Backpressure needs no buffer: while the transport of one end is full, the transport of its peer is not read.
    """

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.transport: asyncio.Transport | None = None
        self.peer: TunnelEnd | None = None
        self.early = b""  # what came before the ends were joined
        self.bytes_received = 0
        self.at_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self.early += data
            return
        self.bytes_received += len(data)
        self.tunnel.on_data()
        if self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.at_eof = True
        if self.peer is None or self.peer.at_eof or self.peer.transport is None:
            return False
        # Some protocols send a last message after the other side has finished.
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
    """Two ends. `closed` is done when both are; `user` is whose tunnel it is; `on_data` is called whenever either side
    has sent something."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, user: str = "", on_data: Callable[[], None] = lambda: None
    ) -> None:
        self.user = user
        self.on_data = on_data
        self.client = TunnelEnd(self)
        self.server = TunnelEnd(self)
        self.closed: asyncio.Future[None] = loop.create_future()

    def join(
        self,
        client: asyncio.Transport,
        from_client: bytes,
        server: asyncio.Transport,
        from_server: bytes,
    ) -> None:
        """Start relaying, with the bytes that have already come from each side. Both transports must have the tunnel's
        ends for protocols.
        """
        self.client.transport, self.server.transport = client, server
        self.client.peer, self.server.peer = self.server, self.client
        for end, received in ((self.client, from_client), (self.server, from_server)):
            if received or end.early:
                end.data_received(received + end.early)
        for end, transport in ((self.client, client), (self.server, server)):
            # One of them may have been lost between the 101 and now, when nobody was told.
            if transport.is_closing():
                end.connection_lost(None)
            elif not transport.is_reading():
                transport.resume_reading()

    def on_end_closed(self, end: TunnelEnd, exc: Exception | None) -> None:
        other = end.peer
        if other is not None and other.transport is not None:
            # An end that broke must not look to the other side like one that closed in order.
            if exc is not None:
                other.transport.abort()
            else:
                other.transport.close()
        if self.client.transport is None and self.server.transport is None and not self.closed.done():
            self.closed.set_result(None)

    def abort(self) -> None:
        """Reset both connections. To be called again to no effect."""
        for end in (self.client, self.server):
            if end.transport is not None:
                end.transport.abort()
