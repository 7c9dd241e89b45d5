"""A request's body on its way to the app, while the answer may already be coming."""

from __future__ import annotations

import asyncio

from proxy.errors import AppUnreachable, Refusal
from proxy.ingress.app_connection import Leg
from proxy.ingress.client_connection import Connection
from proxy.ingress.exchange import Exchange


class Upload:
    """`whole`: all of the body is here and goes with the head; else `start` streams it."""

    def __init__(self, x: Exchange, connection: Connection) -> None:
        self._x = x
        self._connection = connection
        self._task: asyncio.Task[None] | None = None
        self.whole = x.body.is_eof()
        self.done = self.whole
        self.done_at = 0.0
        self.moved_at = 0.0
        self.waits_for_client = False
        self._first: bytes | None = None

    def first(self) -> bytes:
        """What goes out with the head, framed: all of a whole body, nothing of another."""
        if not self.whole:
            return b""
        if self._first is None:
            data = self._x.body.read_nowait()
            self._x.bytes_in = len(data)
            if self._x.max_body is not None and len(data) > self._x.max_body:
                raise body_too_large(self._x.max_body)
            if self._x.chunked:
                data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
            self._first = data
        return self._first

    def start(self, leg: Leg) -> None:
        self._task = asyncio.get_running_loop().create_task(self._pump(leg))

    def stop(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def end(self) -> bool:
        """Wait until all of it was sent; False where the rest will never be."""
        if self._task is not None:
            await asyncio.wait((self._task,))
        return self.done

    async def _pump(self, leg: Leg) -> None:
        x, body, loop = self._x, self._x.body, asyncio.get_running_loop()
        limit = x.max_body
        try:
            while not body.at_eof():
                self.waits_for_client = True
                data = await body.readany()
                self.waits_for_client = False
                if not data:
                    continue
                x.bytes_in += len(data)
                if limit is not None and x.bytes_in > limit:
                    raise body_too_large(limit)
                if x.chunked:
                    leg.write_chunk(data)
                else:
                    leg.write(data)
                if leg.writing_paused:
                    await leg.drain()
                self.moved_at = loop.time()
            if x.chunked:
                leg.write(b"0\r\n\r\n")
            self.done = True
            self.done_at = loop.time()
            if x.holds is not None and x.holds.share is not None:
                x.holds.share.give()
        except Refusal as refusal:  # the body is malformed, too large or too late
            leg.expire(refusal)
        except (AppUnreachable, ConnectionError):
            pass  # whoever waits for the answer is told
        finally:
            self.waits_for_client = False


def body_too_large(limit: int) -> Refusal:
    detail = f"The request's body is larger than {limit} bytes (max_body)."
    return Refusal("body-too-large", 413, "Content too large", detail, close=True)
