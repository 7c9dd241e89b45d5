"""A request's body: read ahead before its request is admitted, sent to the app while the response may be coming."""

from __future__ import annotations

import asyncio

from aiohttp.streams import EMPTY_PAYLOAD

from proxy.errors import PeerUnreachable, Refusal
from proxy.http.messages import Body
from proxy.http.request_errors import body_too_large
from proxy.http.upstream_connection import UpstreamConnection
from proxy.ingress.exchange import Exchange


class RequestUpload:
    """The body on its way to the app.

    - `fits_with_head`: all of it has come, and goes out with the head; else `start` streams it.
    - `done`: all of it was sent. `done_at`, `progress_at`: on the loop's clock, 0 before.
    - `waits_for_client`: it is the client, and not the app, that keeps it from going on.
    """

    __slots__ = (
        "_initial",
        "_task",
        "_x",
        "done",
        "done_at",
        "fits_with_head",
        "progress_at",
        "waits_for_client",
    )

    def __init__(self, x: Exchange | None) -> None:
        """Without an exchange it is the upload of no body at all."""
        self._x = x
        self._task: asyncio.Task[None] | None = None
        self.fits_with_head = x is None or x.body.is_eof()
        self.done = self.fits_with_head
        self.done_at = 0.0
        self.progress_at = 0.0
        self.waits_for_client = False
        self._initial: bytes | None = None if x is not None else b""

    def initial_bytes(self) -> bytes:
        """What goes out with the head, framed: all of a body that has come, nothing of another. Raises Refusal (413).

        The result is kept, since a request may be sent twice.
        """
        if not self.fits_with_head:
            return b""
        if self._initial is None:
            x = self._exchange
            # A small body goes out together with its head: one write, and mostly one packet.
            data = x.body.read_nowait()
            x.bytes_in = len(data)
            if x.max_body is not None and len(data) > x.max_body:
                raise body_too_large(x.max_body)
            # It leaves in the framing in which it came, since some apps treat the two differently.
            if x.chunked:
                data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
            self._initial = data
        return self._initial

    @property
    def _exchange(self) -> Exchange:
        assert self._x is not None
        return self._x

    def start(self, app_connection: UpstreamConnection) -> None:
        """Stream the body to the app in a task of its own."""
        self._task = asyncio.get_running_loop().create_task(self._pump(app_connection))

    def stop(self) -> None:
        """Send no more of it. To be called again to no effect."""
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def wait_done(self) -> bool:
        """Wait until all of it was sent; False if the rest never will be."""
        if self._task is not None:
            await asyncio.wait((self._task,))
        return self.done

    async def _pump(self, app_connection: UpstreamConnection) -> None:
        """Copy the body, no faster than the app reads."""
        x, loop = self._exchange, asyncio.get_running_loop()
        body = x.body
        limit = x.max_body
        try:
            while not body.at_eof():
                # Tells the route's timeout whose time is running.
                self.waits_for_client = True
                data = await body.readany()
                self.waits_for_client = False
                if not data:
                    continue
                x.bytes_in += len(data)
                if limit is not None and x.bytes_in > limit:
                    raise body_too_large(limit)
                if x.chunked:
                    app_connection.write_chunk(data)
                else:
                    app_connection.write(data)
                # While this waits the body is not read, so TCP's flow control makes the client wait.
                if app_connection.writing_paused:
                    await app_connection.drain()
                self.progress_at = loop.time()
            if x.chunked:
                app_connection.write(b"0\r\n\r\n")
            self.done = True
            self.done_at = loop.time()
            if x.held is not None and x.held.share is not None:
                x.held.share.release()  # the app has all of the body: nothing is waited for any more
        # The request's task waits for the head of the response, so that is where it learns of it.
        except Refusal as refusal:  # the body is malformed, too large or too late
            app_connection.fail(refusal)
        except (PeerUnreachable, ConnectionError):
            pass  # whoever waits for the response gets the error
        finally:
            self.waits_for_client = False


_OF_NO_BODY = RequestUpload(None)  # it has nothing to keep, so one does for all requests without a body


def make_upload(x: Exchange) -> RequestUpload:
    return _OF_NO_BODY if x.body is EMPTY_PAYLOAD else RequestUpload(x)


class BufferedBody:
    """A body whose beginning was read ahead, so that a slow sender delays nobody but itself.

    It can be read like the body that it wraps; the rest comes from there. `buffered_bytes` is how much was read ahead.
    """

    def __init__(self, rest: Body) -> None:
        self._rest = rest
        self._pieces: list[bytes] = []
        self.buffered_bytes = 0

    async def fill(self, max_bytes: int, limit: int | None) -> None:
        """Read until all of it has come, or `max_bytes` have. Raises Refusal if it is larger than `limit`, malformed or
        late.
        """
        while self.buffered_bytes < max_bytes and not self._rest.at_eof():
            data = await self._rest.readany()
            self._pieces.append(data)
            self.buffered_bytes += len(data)
            # Checked for each piece: a chunked body states no length beforehand.
            if limit is not None and self.buffered_bytes > limit:
                raise body_too_large(limit)

    @property
    def total_bytes(self) -> int:
        return self._rest.total_bytes

    def is_eof(self) -> bool:
        return self._rest.is_eof()

    def at_eof(self) -> bool:
        return not self._pieces and self._rest.at_eof()

    def read_nowait(self, n: int = -1) -> bytes:
        """All that has come; nobody asks for less."""
        assert n == -1
        pieces, self._pieces = self._pieces, []
        return b"".join((*pieces, self._rest.read_nowait()))

    async def readany(self) -> bytes:
        return self.read_nowait() if self._pieces else await self._rest.readany()

    def exception(self) -> BaseException | None:
        return self._rest.exception()
