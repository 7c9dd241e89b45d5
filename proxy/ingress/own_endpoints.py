"""The gateway's own endpoints on the public listener: under /_outrigger/, and at the paths in `listen.claim`."""

from __future__ import annotations

import time
from collections.abc import Iterable

from proxy.http.client_connection import ClientConnection
from proxy.http.problem import http_date
from proxy.ingress.exchange import Exchange
from proxy.ingress.ports import OwnEndpointHandler, OwnResponse
from proxy.ingress.response_writer import connection_line
from proxy.ingress.task_endpoints import TaskEndpoints

PREFIX = "/_outrigger"
CTL_PATH = "/ctl"  # the only path that is claimed together with the paths below it
MAX_BODY = 64 * 1024  # bytes; of a longer body only the beginning is read


class OwnEndpoints:
    """Answers by `handler`, which knows the endpoints, and answers 404 to any other path."""

    def __init__(self, handler: OwnEndpointHandler, claim: Iterable[str], tasks: TaskEndpoints) -> None:
        self._handler = handler
        self._tasks = tasks
        self.set_claimed_paths(claim)

    def set_claimed_paths(self, paths: Iterable[str]) -> None:
        """Answer these paths at the root too, instead of those claimed before."""
        self._paths = frozenset((PREFIX, *paths))
        # Only the control endpoint has paths below it; to claim `/metrics` must not take `/metrics/x` from the app.
        self._prefixes = (f"{PREFIX}/", f"{CTL_PATH}/") if CTL_PATH in self._paths else f"{PREFIX}/"

    def claims(self, path: str) -> bool:
        """Whether a path is one of the gateway's own."""
        return path in self._paths or path.startswith(self._prefixes)

    async def handle(self, connection: ClientConnection, x: Exchange) -> bool:
        """Answer the request. True if its connection may serve another one. Raises Refusal."""
        if self._tasks.claims(x.path):
            return await self._tasks.handle(connection, x)
        answer = await self._handler(
            x.method,
            x.path,
            x.target.partition("?")[2],
            x.header,
            await _read_body(x),
            x.client_ip,
            x.request_id,
            x.client.proto == "https",
        )
        return write_response(connection, x, answer)


def write_response(connection: ClientConnection, x: Exchange, answer: OwnResponse) -> bool:
    """Write a complete response. True if the connection may serve another request."""
    status, headers, body = answer
    keep_alive = not (x.should_close or connection.draining or connection.body_incomplete)
    lines = [b"HTTP/1.1 %d \r\n" % status]
    lines.append(b"Date: %s\r\n" % http_date(int(time.time())))
    lines += [f"{name}: {value}\r\n".encode() for name, value in headers]
    lines.append(b"X-Request-Id: %s\r\n" % x.request_id.encode())
    lines.append(connection_line(x, keep_alive=keep_alive))
    lines.append(b"\r\n")
    lines.append(body)
    connection.write(b"".join(lines))
    return keep_alive


async def _read_body(x: Exchange) -> bytes:
    pieces: list[bytes] = []
    size = 0
    # No endpoint needs more, and anybody can send to them.
    while not x.body.at_eof() and size <= MAX_BODY:
        piece = await x.body.readany()
        size += len(piece)
        pieces.append(piece)
    return b"".join(pieces)
