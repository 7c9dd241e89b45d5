"""What a client sends, on its way to the server: as it came, but for the names of prepared statements."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial

from proxy.postgres import expect as owed
from proxy.postgres import wire
from proxy.postgres.expect import Expect
from proxy.postgres.outstanding import Pipeline
from proxy.postgres.preparing import WRONG, Preparing, ProtocolError
from proxy.postgres.session_state import LOCAL, NONE, PROBED, RESETS, inspect
from proxy.postgres.statement_registry import Statements
from proxy.postgres.wire import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DESCRIBE,
    EXECUTE,
    FLUSH,
    FRONTEND,
    FUNCTION,
    HEAD_SIZE,
    PARSE,
    QUERY,
    SYNC,
    TERMINATE,
    read_head,
)

LONG = 64 * 1024  # bytes; what is longer goes on before it is whole, where its kind allows that
LONG_QUERY = 1 << 20  # the same of a Query, whose text is read where it is shorter
MOST_PARSE = 64 << 20

PORTAL = b"P"
_STREAMED = frozenset((BIND, COPY_DATA, FUNCTION))
_QUERY_LOCAL = Expect(QUERY, flags=LOCAL)
_EXECUTE_LOCAL = Expect(EXECUTE, flags=LOCAL)
_FLUSH = wire.message(FLUSH)


class Frontend(Preparing):
    """`take` reads whole messages as far as it can; `rest` is what it left. `ended`: the client said that it
    leaves."""

    def __init__(
        self, statements: Statements, pipeline: Pipeline, *, ask: Callable[[], bool], slot: bool = False
    ) -> None:
        super().__init__(statements, pipeline, ask=ask, slot=slot)
        self._inside = 0  # bytes of a message under way that are still to come
        self._sunk = False  # and go nowhere
        self.ended = False
        self.rest = b""

    @property
    def inside(self) -> bool:
        """Whether a message is half sent."""
        return self._inside > 0

    def ready(self, data: bytes) -> bool:
        """Whether enough of a message is there to be sent. Raises ProtocolError."""
        if len(data) < HEAD_SIZE:
            return False
        kind, length = read_head(data)
        return length < len(data) or self._early(kind, length, len(data))

    def take(self, data: bytes) -> bytes:
        """What the server gets. Not to be called while `hold`. Raises ProtocolError."""
        size = len(data)
        if size > HEAD_SIZE and data[0] == QUERY and read_head(data)[1] == size - 1 and self._alone(data):
            return data
        pos = start = 0
        out = self._out = []
        if self._inside:
            pos = min(self._inside, size)
            self._inside -= pos
            start = pos if self._sunk else 0
        pipeline = self._pipeline
        while pos + HEAD_SIZE <= size:
            kind, length = read_head(data, pos)
            end = pos + 1 + length
            if length < 4 or kind not in FRONTEND:
                raise ProtocolError(f"invalid frontend message type {kind}")
            if end > size and not self._early(kind, length, size - pos):
                break
            if pipeline.failed and kind != SYNC and kind != TERMINATE:
                out.append(data[start:pos])  # the server would skip it
                start = end
            elif kind == SYNC:
                pipeline.synced()
                self.unsynced = self._local = self._bound = False
                self.names.synced()
            elif kind == EXECUTE:
                self.unsynced = True
                if not self.portals or not self._executes(data[pos + HEAD_SIZE : end]):
                    pipeline.expect(owed.EXECUTE if not self._local else _EXECUTE_LOCAL)
            elif kind in (COPY_DATA, FLUSH):
                pass
            elif kind == DESCRIBE and data[pos + HEAD_SIZE : pos + HEAD_SIZE + 1] == PORTAL:
                self.unsynced = True
                pipeline.expect(owed.DESCRIBE)
            elif kind in (COPY_DONE, COPY_FAIL):
                pipeline.copied()
            elif kind == TERMINATE:
                self.ended = True
                break
            else:
                took = len(out)
                here = end if end <= size else size
                if kind == BIND:
                    changed = self._bind(data, pos, here, end)
                elif kind == QUERY:
                    changed = self._query(data, pos, here, end)
                elif kind == PARSE:
                    changed = self._parse(data, pos, end)
                else:
                    changed = self._message(kind, data, pos, end)
                if self.hold:
                    # What was injected ahead goes now, the message itself when the answer is there.
                    injected = out[took:]
                    del out[took:]
                    out.append(data[start:pos])
                    out += injected
                    start = pos
                    break
                if changed or len(out) > took:
                    out.insert(took, data[start:pos])
                    start = here if changed else pos
            if end > size:
                self._inside, self._sunk = end - size, start >= end
                pos = size
                break
            pos = end
            if self.stop:
                self.stop, self.hold = False, True
                out += (data[start:pos], _FLUSH)
                start = pos
                break
        self.rest = data[pos:]
        if start >= pos:
            return out[0] if len(out) == 1 else b"".join(out)
        if not out:
            return data if start == 0 and pos == size else data[start:pos]
        out.append(data[start:pos])
        return b"".join(out)

    def _alone(self, data: bytes) -> bool:
        """One Query that leaves nothing behind, which is what most send."""
        pipeline = self._pipeline
        if self.unsynced or self._inside or pipeline.failed or self.refused or inspect(data[HEAD_SIZE:-1]) is not NONE:
            return False
        self.names.pending = True
        self.unnamed.ended()
        self._linked().unnamed = None
        pipeline.rested = False
        pipeline.queue.append(owed.QUERY)
        self.rest = b""
        return True

    def _early(self, kind: int, length: int, here: int) -> bool:
        """Whether a message may go on though only `here` bytes of it came."""
        if kind in _STREAMED:
            return length > LONG and here > LONG // 2
        if kind == QUERY:
            return length > LONG_QUERY and here > LONG
        if length > (MOST_PARSE if kind == PARSE else LONG):
            raise ProtocolError(f"a message of type {chr(kind)} is {length} bytes long")
        return False

    def _message(self, kind: int, data: bytes, pos: int, end: int) -> bool:
        """A message that needs a closer look; True where `_out` has it in another form than it came."""
        if kind in (DESCRIBE, CLOSE):
            body = data[pos + HEAD_SIZE : end]
            if body[:1] not in (b"S", b"P") or body[-1:] != b"\0":
                raise ProtocolError(f"a message of type {chr(kind)} names neither statement nor portal")
            self.unsynced = True
            if body[:1] == b"S":
                return (self._describe if kind == DESCRIBE else self._close)(body[1:-1])
            self._pipeline.expect(owed.DESCRIBE if kind == DESCRIBE else owed.CLOSE)
            return False
        if kind == FUNCTION:
            self._pipeline.expect(owed.FUNCTION)
            return False
        raise ProtocolError(f"a message of type {chr(kind)} makes no sense here")

    # ── the simple protocol ──────────────────────────────────────────────────────────────────

    def _query(self, data: bytes, pos: int, here: int, end: int) -> bool:
        if here < end:
            self.flags |= PROBED  # too long to be read: the database is asked whether it left anything
            self._queried(owed.QUERY)
            return False
        text = data[pos + HEAD_SIZE : end - 1]
        hints = inspect(text)
        if hints.pins and not self.slot and not self._may_pin(hints.pins):
            return False
        given = self._deallocates(hints.deallocates) if hints.deallocates else None
        if self.hold:
            return False
        if self.refused:
            self._queried(Expect(QUERY, instead=self._refusal()))
            self._out.append(wire.query(WRONG))
            return True
        if hints.flags or hints.names:
            self._hinted(hints)
        if given is not None:
            done = partial(self._deallocated, hints.deallocates, given)
            self._queried(Expect(QUERY, statement=given, name=hints.deallocates, done=done))
            self._out.append(wire.query(b'DEALLOCATE "' + given.name + b'"'))
            return True
        if hints.resets and self.foreign:
            self._queried(Expect(QUERY, flags=RESETS, done=partial(self.put_back, hints.resets, False)))
            self._stop(self._queried_on)
            return False
        self._queried(owed.QUERY if not hints.flags & LOCAL else _QUERY_LOCAL)
        return False

    def _queried_on(self, _: bytes) -> bytes:
        self.hold = False
        self._pipeline.rested = not self._pipeline.queue
        return b""

    def _queried(self, entry: Expect) -> None:
        """A Query is sent: it ends the unnamed statement, unless it is skipped with the batch that it is in."""
        self.names.pending = True
        if self.unsynced:
            entry = copy(entry)
            self._turned(entry, self.unnamed.parsed(self._linked(), None))
        else:
            self.unnamed.ended()
            self._linked().unnamed = None
            self._pipeline.expect(entry)
