"""A body that is here before its request takes a place: who sends slowly holds nobody up but himself."""

from __future__ import annotations

from proxy.ingress.exchange import Body
from proxy.ingress.request_body import body_too_large


class BufferedBody:
    """A request's body of which the beginning was already read; the rest comes as it did before."""

    def __init__(self, rest: Body) -> None:
        self._rest = rest
        self._pieces: list[bytes] = []
        self.size = 0  # bytes read ahead

    async def fill(self, most: int, limit: int | None) -> None:
        """Read until all of it is here, or `most` bytes are. Raises Refusal where it is larger than `limit`, malformed
        or too slow."""
        while self.size < most and not self._rest.at_eof():
            data = await self._rest.readany()
            self._pieces.append(data)
            self.size += len(data)
            if limit is not None and self.size > limit:
                raise body_too_large(limit)

    @property
    def total_bytes(self) -> int:
        return self._rest.total_bytes

    def is_eof(self) -> bool:
        return self._rest.is_eof()

    def at_eof(self) -> bool:
        return not self._pieces and self._rest.at_eof()

    def read_nowait(self, n: int = -1) -> bytes:
        """All that is here; it is never asked for less."""
        assert n == -1
        pieces, self._pieces = self._pieces, []
        return b"".join((*pieces, self._rest.read_nowait()))

    async def readany(self) -> bytes:
        return self.read_nowait() if self._pieces else await self._rest.readany()

    def exception(self) -> BaseException | None:
        return self._rest.exception()
