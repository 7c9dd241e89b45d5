"""The gateway's own endpoints on the public listener: under /_outrigger/, and where `listen.claim` says."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.ingress.connection import Connection
from proxy.ingress.downstream import connection_line
from proxy.ingress.exchange import Exchange
from proxy.ingress.ours import Answer, Ours

PREFIX = "/_outrigger"
MAX_BODY = 64 * 1024


class Desk:
    """Answers from `ours`, and with 404 what `ours` does not know."""

    def __init__(self, ours: Ours, claim: Iterable[str]) -> None:
        self._ours = ours
        self.claim = frozenset(claim)

    def takes(self, path: str) -> bool:
        return path in self.claim or (path.startswith(PREFIX) and path[len(PREFIX) :][:1] in ("", "/"))

    async def answer(self, connection: Connection, x: Exchange) -> bool:
        path = x.path if x.path in self.claim else x.path[len(PREFIX) :] or "/"
        answer = await self._ours(
            x.method,
            path,
            x.target.partition("?")[2],
            x.header,
            await _body(x),
            x.client_ip,
            x.request_id,
            x.client.proto == "https",
        )
        return write(connection, x, answer)


def write(connection: Connection, x: Exchange, answer: Answer) -> bool:
    status, headers, body = answer
    keep = not (x.should_close or connection.draining or connection.body_missing)
    lines = [b"HTTP/1.1 %d \r\n" % status]
    lines += [f"{name}: {value}\r\n".encode() for name, value in headers]
    lines.append(b"X-Request-Id: %s\r\n" % x.request_id.encode())
    lines.append(connection_line(x, keep=keep))
    lines.append(b"\r\n")
    lines.append(body)
    connection.write(b"".join(lines))
    return keep


async def _body(x: Exchange) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while not x.body.at_eof() and size <= MAX_BODY:
        piece = await x.body.readany()
        size += len(piece)
        pieces.append(piece)
    return b"".join(pieces)
