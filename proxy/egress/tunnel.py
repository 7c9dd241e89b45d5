"""Two connections that become one: raw bytes both ways, after a 101 or a CONNECT.

aiohttp hands a connection over to whoever sets a parser on its protocol; ours takes the bytes as they are.
What it does not state in its documentation is used in this file alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from proxy.egress.headers import Fields
from proxy.errors import AttemptFailed

HIGH = 256 * 1024  # bytes read ahead of the other side before reading pauses


class Side:
    """One end: reads what its connection brings, writes with backpressure."""

    def __init__(self, protocol: Any, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._chunks: list[bytes] = []
        self._size = 0
        self._ended = False
        self._paused = False
        self._more = asyncio.Event()
        self.sent = 0

    # what aiohttp's protocols ask of a parser
    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._chunks.append(bytes(data))
        self._size += len(data)
        if self._size > HIGH and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._more.set()
        return False, b""

    def feed_eof(self) -> None:
        self._ended = True
        self._more.set()

    async def read(self) -> bytes:
        """What has come; empty at the end."""
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
        if self._transport.is_closing():
            raise ConnectionResetError("the other side is gone")
        self.sent += len(data)
        self._transport.write(data)
        await self._protocol._drain_helper()

    def close(self) -> None:
        self._transport.close()


def of_app(request: web.BaseRequest, head: bytes) -> Side:
    """The app's side, answered with `head`; bytes that came behind its own head are not lost."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the app is gone")
    transport.write(head)
    side = Side(request.protocol, transport)
    request.protocol.set_parser(side)  # type: ignore[arg-type]  # made for its WebSocketReader
    return side


def of_upstream(response: aiohttp.ClientResponse) -> Side:
    connection = response.connection
    if connection is None or connection.protocol is None or connection.transport is None:
        raise ConnectionResetError("the upstream is gone")
    side = Side(connection.protocol, connection.transport)
    protocol = connection.protocol
    lost = protocol.connection_lost

    def connection_lost(error: BaseException | None) -> None:
        side.feed_eof()
        lost(error)

    protocol.connection_lost = connection_lost  # type: ignore[method-assign,assignment]  # told of the end by no other way
    protocol.set_parser(side, aiohttp.EMPTY_PAYLOAD)
    return side


async def pump(request: web.BaseRequest, response: aiohttp.ClientResponse, said: Fields) -> tuple[int, int]:
    """The upstream said 101: pass that on with what we `said` of it, and from here on everything. Bytes to the
    upstream and back."""
    lines = [f"HTTP/1.1 101 {response.reason or 'Switching Protocols'}\r\n".encode()]
    lines += [b"%s: %s\r\n" % pair for pair in response.raw_headers]
    lines += [f"{name}: {value}\r\n".encode() for name, value in said]
    upstream = of_upstream(response)
    try:
        app = of_app(request, b"".join(lines) + b"\r\n")
        await both(app.read, app.write, upstream.read, upstream.write)
        return upstream.sent, app.sent
    finally:
        upstream.close()
        response.close()
        if request.transport is not None:
            request.transport.close()


Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


async def both(
    read_a: Read, write_a: Write, read_b: Read, write_b: Write, moved: Callable[[], None] = lambda: None
) -> None:
    """Copy both ways until either side ends, and what it sent last has been passed on."""

    async def copy(read: Read, write: Write) -> None:
        try:
            while data := await read():
                moved()
                await write(data)
        except (ConnectionError, AttemptFailed):
            pass

    tasks = [asyncio.ensure_future(copy(read_a, write_b)), asyncio.ensure_future(copy(read_b, write_a))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
