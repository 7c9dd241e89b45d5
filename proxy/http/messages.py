"""A request as it comes in over a connection, before anybody has said what it is for."""

from __future__ import annotations

from typing import Any, Protocol

from multidict import CIMultiDictProxy

HeaderList = list[tuple[bytes, bytes]]
RawHeaders = tuple[tuple[bytes, bytes], ...]


class Body(Protocol):
    """A request's body as it comes in. Reading it is what lets more of it come."""

    @property
    def total_bytes(self) -> int:
        """Bytes that have come so far, read or not."""

    def is_eof(self) -> bool:
        """Whether all of it has come."""

    def at_eof(self) -> bool:
        """Whether all of it has been read."""

    def read_nowait(self, n: int = -1) -> bytes: ...
    async def readany(self) -> bytes: ...
    def exception(self) -> BaseException | None: ...


class IncomingRequest:
    """The head of a request, and its body.

    - `method`, `target` (as sent; bytes that are not UTF-8 are surrogates), `headers`, `raw_headers`;
    - `body`, `chunked`, `http10`, `upgrade` (the protocol asked for, if it may be passed on);
    - `should_close`: the client wants the connection to end, or its protocol does;
    - `peer`, the address of the other end, and `received_at` on the loop's clock;
    - `facts`: what whoever serves it has made of its head. If the same head comes again, it has them from the start.
    """

    __slots__ = (
        "body",
        "chunked",
        "facts",
        "headers",
        "http10",
        "method",
        "peer",
        "raw_headers",
        "received_at",
        "should_close",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        method: str,
        target: str,
        headers: CIMultiDictProxy[str],
        raw_headers: RawHeaders,
        body: Body,
        *,
        peer: str,
        received: float,
        http10: bool = False,
        chunked: bool = False,
        should_close: bool = False,
        upgrade: str | None = None,
        facts: Any = None,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.raw_headers = raw_headers
        self.body = body
        self.peer = peer
        self.received_at = received
        self.http10 = http10
        self.chunked = chunked
        self.should_close = should_close
        self.upgrade = upgrade
        self.facts = facts
