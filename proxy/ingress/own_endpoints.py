"""The gateway's own endpoints on the public listener: under /_outrigger/, and where `listen.claim` says."""

from __future__ import annotations

import time
from collections.abc import Iterable

from proxy.http.problem import http_date
from proxy.ingress.client_connection import ClientConnection
from proxy.ingress.exchange import Exchange
from proxy.ingress.ports import OwnEndpointHandler, OwnResponse
from proxy.ingress.response_writer import connection_line

PREFIX = "/_outrigger"
CTL_PATH = "/ctl"  # the one path of ours that is claimed with what is below it
MAX_BODY = 64 * 1024


class OwnEndpoints:
    """Answers from `ours`, which says 404 where it knows no better."""

    def __init__(self, ours: OwnEndpointHandler, claim: Iterable[str]) -> None:
        self._handler = ours
        self.set_claimed_paths(claim)

    def set_claimed_paths(self, paths: Iterable[str]) -> None:
        """Take these at the root too, in place of those before."""
        self._paths = frozenset((PREFIX, *paths))
        self._prefixes = (f"{PREFIX}/", f"{CTL_PATH}/") if CTL_PATH in self._paths else f"{PREFIX}/"

    def claims(self, path: str) -> bool:
        return path in self._paths or path.startswith(self._prefixes)

    async def handle(self, connection: ClientConnection, x: Exchange) -> bool:
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
    status, headers, body = answer
    keep = not (x.should_close or connection.draining or connection.body_incomplete)
    lines = [b"HTTP/1.1 %d \r\n" % status]
    lines.append(b"Date: %s\r\n" % http_date(int(time.time())))
    lines += [f"{name}: {value}\r\n".encode() for name, value in headers]
    lines.append(b"X-Request-Id: %s\r\n" % x.request_id.encode())
    lines.append(connection_line(x, keep=keep))
    lines.append(b"\r\n")
    lines.append(body)
    connection.write(b"".join(lines))
    return keep


async def _read_body(x: Exchange) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while not x.body.at_eof() and size <= MAX_BODY:
        piece = await x.body.readany()
        size += len(piece)
        pieces.append(piece)
    return b"".join(pieces)
