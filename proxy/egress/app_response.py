"""Where an answer goes: to the app, over its connection."""

from __future__ import annotations

from http import HTTPStatus
from typing import Protocol

from proxy.egress.headers import Fields
from proxy.http.client_connection import ClientConnection
from proxy.http.messages import IncomingRequest

BODYLESS_STATUSES = (204, 304)  # RFC 9110 sections 15.3.5 and 15.4.5


class ResponseHead:
    """An answer's head without its framing; `length` is None if the body's end is not known yet."""

    __slots__ = ("fields", "length", "reason", "status")

    def __init__(self, status: int, reason: str, fields: Fields, length: int | None = None) -> None:
        self.status = status
        self.reason = reason
        self.fields = fields
        self.length = length


class ResponseWriter(Protocol):
    """Where an answer is written to: the app, or the readers of a shared call."""

    async def write_head(self, head: ResponseHead) -> None: ...
    async def write(self, data: bytes, *, is_last: bool = False) -> None: ...


class AppResponse:
    """The app's side of one call: an answer that is set whole, or a head and then its body in parts.

    Attributes:
        started: whether the app has an answer, or is about to get one.
        keep_alive: whether the connection may serve another call behind it.
    """

    def __init__(self, connection: ClientConnection, request: IncomingRequest) -> None:
        self._connection = connection
        self._request = request
        self._pending: list[bytes] = []  # a head that waits for the beginning of its body
        self._chunked = self._bodyless = False
        self._is_framed = True  # the app can see where the body ends, or that it broke off
        self.started = False
        self.keep_alive = False

    async def write_head(self, head: ResponseHead) -> None:
        """Write the head of an answer whose body follows in parts. Raises ConnectionError if the app is gone."""
        self._check_open()
        self._begin(head, head.length)
        # One packet for both if the body begins in this turn of the loop, as it does for all that was held back.
        self._connection.loop.call_soon(self._flush)

    def set_whole(self, head: ResponseHead, body: bytes) -> None:
        """Set an answer with its whole body, in place of another one that was set; `finish` writes it."""
        # To HEAD the length of the body that a GET would have (RFC 9110 section 9.3.2), if it is known.
        stated = head.length if self._request.method == "HEAD" and head.length is not None else len(body)
        self._begin(head, stated)
        if body and not self._bodyless:
            self._pending.append(body)

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Waits while the app reads slowly. What `is_last` goes out with the end. Raises ConnectionError if the app is
        gone."""
        self._check_open()
        if not data or self._bodyless:
            return
        pieces = (b"%x\r\n" % len(data), data, b"\r\n") if self._chunked else (data,)
        if self._pending or is_last:
            self._pending.extend(pieces)
            if not is_last:
                self._flush()
        elif self._chunked:
            self._connection.write(b"".join(pieces))
        else:
            self._connection.write(data)
        if self._connection.writing_paused:
            await self._connection.drain()

    def finish(self) -> None:
        """Write what is left: an answer that was set whole, or the end of one that was written in parts."""
        if self._chunked:
            self._pending.append(b"0\r\n\r\n")
            self._chunked = False
        self._flush()

    def abort(self) -> None:
        """Break off: never a clean end over half a body."""
        self._pending = []
        self.keep_alive = False
        if self._is_framed:
            self._connection.abort()
        else:
            self._connection.abort_response(framed=False)

    def _begin(self, head: ResponseHead, length: int | None) -> None:
        connection, request = self._connection, self._request
        self._bodyless = request.method == "HEAD" or head.status in BODYLESS_STATUSES
        # HTTP/1.0 knows no chunks: a body without a length ends with the connection (RFC 9112 section 6.3).
        self._chunked = length is None and not self._bodyless and not request.http10
        self._is_framed = length is not None or self._bodyless or self._chunked
        self.keep_alive = self._is_framed and not (
            request.should_close or connection.draining or connection.body_incomplete
        )
        lines = [f"HTTP/1.1 {head.status} {head.reason or standard_reason(head.status)}"]
        lines += [f"{name}: {value}" for name, value in head.fields]
        if self._chunked:
            lines.append("Transfer-Encoding: chunked")
        elif length is not None and head.status not in BODYLESS_STATUSES:
            lines.append(f"Content-Length: {length}")
        if not self.keep_alive:
            lines.append("Connection: close")
        elif request.http10:
            lines.append("Connection: keep-alive")
        lines.append("\r\n")
        self._pending = ["\r\n".join(lines).encode("utf-8", "surrogateescape")]
        self.started = connection.response_started = True

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            self._connection.write(b"".join(pending) if len(pending) > 1 else pending[0])

    def _check_open(self) -> None:
        if self._connection.is_gone:
            raise ConnectionResetError("The app has left.")


def standard_reason(status: int) -> str:
    """The reason phrase of RFC 9110; empty for a status without one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
