"""An answer on its way to the client: its head, then its body as it arrives, framed anew.

The app's bytes are written the moment they come. When the client does not keep up, the app is not read.
"""

from __future__ import annotations

from proxy.ingress.app_connection import AppConnection
from proxy.ingress.client_connection import ClientConnection
from proxy.ingress.exchange import Exchange, HeaderList
from proxy.ingress.headers import response_header_lines


class ResponseWriter:
    """The `Sink` of a app_connection. `keep` says whether the client's connection may serve another request."""

    def __init__(self, connection: ClientConnection, x: Exchange, app_connection: AppConnection) -> None:
        self._connection = connection
        self._x = x
        self._leg = app_connection
        self._bodyless = app_connection.bodyless
        self._chunked = not (app_connection.bodyless or app_connection.content_length is not None or x.http10)
        self.is_framed = app_connection.bodyless or app_connection.content_length is not None or self._chunked
        self.keep_alive = self.is_framed and not (x.should_close or connection.draining or connection.body_incomplete)
        self._pending: list[bytes] = []  # the head, until the first of the body joins it

    def write_head(self) -> None:
        """Make the head; it is written with what of the body is already here."""
        x, app_connection = self._x, self._leg
        lines = [b"HTTP/1.1 %d %s\r\n" % (app_connection.status, app_connection.reason)]
        lines += response_header_lines(x, app_connection.headers)
        if self._chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        lines.append(connection_line(x, keep=self.keep_alive))
        lines.append(b"\r\n")
        self._pending = lines
        x.status = app_connection.status
        x.response_started = self._connection.response_started = True
        self._connection.on_writable = app_connection.resume_reading

    def write_body(self, data: bytes) -> bool:
        if self._bodyless:
            return True
        self._x.bytes_out += len(data)
        pieces = (b"%x\r\n" % len(data), data, b"\r\n") if self._chunked else (data,)
        if self._pending:
            self._pending.extend(pieces)
        elif self._chunked:
            self._connection.writelines(list(pieces))
        else:
            self._connection.write(data)
        return not self._connection.writing_paused

    def flush(self) -> bool:
        """Write what waits for company. False: the client is behind."""
        if self._pending:
            pending, self._pending = self._pending, []
            self._connection.write(b"".join(pending))
        return not self._connection.writing_paused

    def finish(self) -> None:
        """The answer is whole: write what says so, with the trailers it came with."""
        if self._chunked:
            tail = b"0\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in self._leg.trailers) + b"\r\n"
            if self._pending:
                self._pending.append(tail)
            else:
                self._connection.write(tail)
        self.flush()
        self._connection.on_writable = None


def connection_line(x: Exchange, *, keep: bool) -> bytes:
    if not keep:
        return b"Connection: close\r\n"
    return b"Connection: keep-alive\r\n" if x.http10 else b""


def render_informational_head(status: int, reason: bytes, headers: HeaderList) -> bytes:
    """A 1xx answer as it came (RFC 9110 section 15.2: a proxy must forward it)."""
    lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, reason, lines)
