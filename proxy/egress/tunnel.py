"""aiohttp's connections as the sides of a tunnel, after a 101 or a CONNECT.

aiohttp hands a connection's bytes to whoever sets a parser on its protocol; a `TunnelSide` is a parser that takes them
as they are. The protocols stay aiohttp's, which must see each connection's end, so `proxy.http.tunnel.Tunnel`, which
replaces them, cannot be used here. Whatever aiohttp does not document is used in this file alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import web

from proxy.egress.headers import Fields
from proxy.http.tunnel import copy_both_ways

MAX_READ_AHEAD = 256 * 1024  # bytes that the other side has not taken yet; above it reading pauses


class TunnelSide:
    """One side of a tunnel: reads what its connection brings, and writes with backpressure. `sent` counts bytes."""

    def __init__(self, protocol: Any, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._chunks: list[bytes] = []
        self._size = 0
        self._ended = False
        self._paused = False
        self._more = asyncio.Event()
        self.sent = 0

    # The methods that aiohttp's protocols call on a parser.
    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._chunks.append(bytes(data))
        self._size += len(data)
        if self._size > MAX_READ_AHEAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._more.set()
        return False, b""

    def feed_eof(self) -> None:
        self._ended = True
        self._more.set()

    async def read(self) -> bytes:
        """The bytes that have come since the last read; empty at the end."""
        while not self._chunks and not self._ended and not self._transport.is_closing():
            self._more.clear()
            await self._more.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Raises ConnectionError if the other side has left."""
        if self._transport.is_closing():
            raise ConnectionResetError("the other side is gone")
        self.sent += len(data)
        self._transport.write(data)
        await self._protocol._drain_helper()

    def close(self) -> None:
        self._transport.close()


def open_app_side(request: web.BaseRequest, head: bytes) -> TunnelSide:
    """The app's side, answered with `head`. Bytes that came behind its head are not lost. Raises ConnectionError."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the app is gone")
    transport.write(head)
    side = TunnelSide(request.protocol, transport)
    request.protocol.set_parser(side)  # type: ignore[arg-type]  # made for its WebSocketReader
    return side


def open_upstream_side(response: aiohttp.ClientResponse) -> TunnelSide:
    """The upstream's side, after its 101. Raises ConnectionError."""
    connection = response.connection
    if connection is None or connection.protocol is None or connection.transport is None:
        raise ConnectionResetError("the upstream is gone")
    side = TunnelSide(connection.protocol, connection.transport)
    protocol = connection.protocol
    aiohttp_connection_lost = protocol.connection_lost

    def connection_lost(error: BaseException | None) -> None:
        side.feed_eof()
        aiohttp_connection_lost(error)

    protocol.connection_lost = connection_lost  # type: ignore[method-assign,assignment]  # no other way to learn of the end
    protocol.set_parser(side, aiohttp.EMPTY_PAYLOAD)
    return side


async def relay_upgrade(request: web.BaseRequest, response: aiohttp.ClientResponse, added: Fields) -> tuple[int, int]:
    """Pass the upstream's 101 on, with `added` fields, and from here on everything.

    Returns how many bytes went to the upstream, and how many came back.
    """
    lines = [f"HTTP/1.1 101 {response.reason or 'Switching Protocols'}\r\n".encode()]
    lines += [b"%s: %s\r\n" % pair for pair in response.raw_headers]
    lines += [f"{name}: {value}\r\n".encode() for name, value in added]
    upstream = open_upstream_side(response)
    try:
        app = open_app_side(request, b"".join(lines) + b"\r\n")
        await copy_both_ways(app.read, app.write, upstream.read, upstream.write)
        return upstream.sent, app.sent
    finally:
        upstream.close()
        response.close()
        if request.transport is not None:
            request.transport.close()
