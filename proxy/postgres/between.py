"""A client that has no server: what it may say without one, and how it is told that it gets none."""

from __future__ import annotations

from proxy.postgres import wire
from proxy.postgres.preparing import ProtocolError
from proxy.postgres.wire import HEAD_SIZE, read_head

_NOTHING = frozenset((wire.FLUSH, wire.COPY_DATA, wire.COPY_DONE, wire.COPY_FAIL))
_READY = wire.ready()


class Between:
    """`skip` takes off what needs no server: a Sync is answered; a Flush, and what is left of a COPY that failed,
    goes nowhere. After `refuse` the rest of an extended batch goes nowhere either, up to its Sync, which alone is
    answered by ReadyForQuery (as PostgreSQL does after an error)."""

    __slots__ = ("_after", "_sink", "_to_sync", "ended")

    def __init__(self) -> None:
        self._sink = 0  # bytes that are still to come and go nowhere
        self._after = b""  # what is said when they have come
        self._to_sync = False
        self.ended = False

    @property
    def busy(self) -> bool:
        """Whether something of before has not come to its end."""
        return self._to_sync or self._sink > 0

    def skip(self, data: bytes) -> tuple[bytes, bytes]:
        """What the client gets, and what of `data` needs a server. Raises ProtocolError."""
        return self._walk(data, b"")

    def refuse(self, data: bytes, error: bytes) -> tuple[bytes, bytes]:
        """The same where there is no server to be had: each message, or batch of them, gets the error."""
        return self._walk(data, error)

    def _walk(self, data: bytes, error: bytes) -> tuple[bytes, bytes]:
        said = b""
        pos, size = 0, len(data)
        if self._sink:
            pos = min(self._sink, size)
            self._sink -= pos
            if not self._sink:
                said, self._after = self._after, b""
        while pos + HEAD_SIZE <= size:
            kind, length = read_head(data, pos)
            if length < 4 or kind not in wire.FRONTEND:
                raise ProtocolError(f"invalid frontend message type {kind}")
            after = b""
            if kind == wire.TERMINATE:
                self.ended = True
                break
            if kind == wire.SYNC:
                self._to_sync = False
                after = _READY
            elif kind not in _NOTHING and not self._to_sync:
                if not error:
                    break
                self._to_sync = kind not in (wire.QUERY, wire.FUNCTION)
                after = error if self._to_sync else error + _READY
            pos += 1 + length
            if pos > size:
                self._sink, self._after = pos - size, after
                return said, b""
            said += after
        return said, data[pos:]
