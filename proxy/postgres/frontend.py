"""What a client sends, on its way to the server: as it came, but for the names of prepared statements."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial

from proxy.postgres import outstanding as owed
from proxy.postgres import wire
from proxy.postgres.client_statements import UNKNOWN, Names, Turn, Unnamed
from proxy.postgres.outstanding import FAKE, Expect, Pipeline
from proxy.postgres.server_state import MOST_PREPARED, Backend
from proxy.postgres.session_state import FORGET, LOCAL, NONE, PREPARED, PROBED, RESETS, SETTINGS, Hints, inspect
from proxy.postgres.session_state import MOST_NAMES as MOST_MENTIONED
from proxy.postgres.statement_registry import Statement, Statements
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

# [merged from postgres/asking] A text that would keep its connection: whether it may go on, has to wait, or is refused.


# [merged from postgres/waiting] What a message hangs on that the server has not said yet: what a name means, which unnamed statement there is.


# [merged from postgres/executing] What a client has executed, as far as the door has to know of it: what it may leave behind, what it gives up.
def _nothing(_names: tuple[bytes, ...], _extended: bool, _: bytes) -> bytes:
    return b""


# [merged from postgres/preparing] Prepared statements of a client: each gets the name that the server knows, and is prepared again where the
# server at hand lacks it.
_PARSED = wire.message(wire.PARSED)
_CLOSED = wire.message(wire.CLOSED)
WRONG = b"refused"  # no SQL: the server fails as it must, and the client is told why
_STALE = wire.error("0A000", "cached plan must not change result type", routine="RevalidateCachedQuery")


class ProtocolError(Exception):
    """A client does not speak the protocol; the text says how."""


LONG = 64 * 1024  # bytes; what is longer goes on before it is whole, where its kind allows that
LONG_QUERY = 1 << 20  # the same of a Query, whose text is read where it is shorter
MOST_PARSE = 64 << 20

PORTAL = b"P"
_STREAMED = frozenset((BIND, COPY_DATA, FUNCTION))
_QUERY_LOCAL = Expect(QUERY, flags=LOCAL)
_EXECUTE_LOCAL = Expect(EXECUTE, flags=LOCAL)
_FLUSH = wire.message(FLUSH)


class Frontend:
    """DOC"""

    def __init__(
        self, statements: Statements, pipeline: Pipeline, *, ask: Callable[[], bool], slot: bool = False
    ) -> None:
        self._statements = statements
        self._pipeline = pipeline
        self.backend: Backend | None = None
        self.names = Names()
        self.unnamed = Unnamed()
        self.scope = b""
        self.unsynced = False
        self.ended = False
        self.rest = b""
        self._out: list[bytes] = []
        self._inside = 0  # bytes of a message under way that are still to come
        self._sunk = False  # and go nowhere
        self.stop = False  # the message at hand is the last until it is answered
        self.hold = False
        # pins
        self._ask = ask
        self.slot = slot
        self.asks = False
        self.wants = 0
        self.refused = b""
        # what it leaves behind
        self.flags = 0  # what this transaction may leave behind
        self.mentioned: dict[bytes, None] = {}  # parameters of the app's own
        self._local = False  # what is executed sets nothing but for its transaction
        self._bound = False  # something was bound since the last Sync
        self.given_up: dict[bytes, bytes] = {}  # the server's names of what was deallocated, and the client's
        self.portals: dict[bytes, tuple[Hints, Statement | None]] = {}  # those whose end the door has to know of
        self.foreign = False  # the server was opened with another NAME or ENCODING than the client
        self.put_back: Callable[[tuple[bytes, ...], bool, bytes], bytes] = (
            _nothing  # what a RESET led to the server's own
        )

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

    # ── prepared statements: what the client sends ───

    def _parse(self, data: bytes, pos: int, end: int) -> bool:
        backend, pipeline = self._linked(), self._pipeline
        stop = data.find(b"\0", pos + HEAD_SIZE, end)
        name, rest = data[pos + HEAD_SIZE : stop], data[stop + 1 : end]
        again = not name and rest == self.unnamed.rest
        if stop < 0 or (not again and rest.find(b"\0") < 0):
            raise ProtocolError("a Parse has no text")
        self.unsynced = True
        if not name:
            if self._deep():
                return False
            unnamed = self.unnamed
            hints = unnamed.hints if again else inspect(rest[: rest.find(b"\0")])
            if hints.pins and not self.slot:
                if not self._may_pin(hints.pins):
                    return False
                if self.refused:
                    rest = WRONG + b"\0\0\0"
                    self._turned(Expect(wire.PARSE, instead=self._refusal()), unnamed.parsed(backend, rest))
                    self._out.append(wire.parse(b"", rest))
                    return True
            if hints.deallocates and self._unsure(hints.deallocates, self.names.get(hints.deallocates)):
                return False
            self._turned(Expect(wire.PARSE), unnamed.parsed(backend, rest, hints))
            return False
        known = self.names.get(name)
        if self._unsure(name, known):
            return False
        if known is not None and known in backend.prepared:  # PostgreSQL refuses it, and says so better than we could
            pipeline.expect(Expect(wire.PARSE, statement=known, name=name))
            self._out.append(wire.parse(known.name, rest))
            return True
        # What was set in this very transaction may change what names mean: nobody else shares that.
        statement = self._statements.get(rest, self.scope if not self.flags & SETTINGS else b"%d" % id(self))
        if self._unsure(name, statement):
            return False
        if known is not None:  # it is to be refused, but for a reason that comes first
            if statement not in backend.prepared:
                self._send_parse(statement, name, skip=True)
            pipeline.expect(Expect(wire.PARSE, statement=statement, name=name))
            self._out.append(wire.parse(statement.name, rest))
            return True
        self.names.put(name, statement)
        if statement not in backend.prepared:
            self._send_parse(statement, name, skip=False)
        elif pipeline.status != wire.FAILED and not self.names.pending:
            pipeline.expect(Expect(FAKE, fake=_PARSED, undo=lambda: self.names.drop(name, statement)))
        else:  # nearly every text is refused in a failed transaction
            turn = self.unnamed.replaced(backend, UNKNOWN)
            self._turned(Expect(wire.PARSE), turn, lambda: self.names.drop(name, statement))
            self._out.append(wire.parse(b"", rest))
        return True

    def _bind(self, data: bytes, pos: int, here: int, end: int) -> bool:
        backend = self._linked()
        first = data.find(b"\0", pos + HEAD_SIZE, here)
        second = data.find(b"\0", first + 1, here)
        if first < 0 or second < 0:
            raise ProtocolError("a Bind names no portal and statement")
        self.unsynced = True
        name = data[first + 1 : second]
        statement = self.names.get(name) if name else None
        if self._unsure(name, statement):
            return False
        if statement is not None and statement.hints.pins and not self.slot and not self._may_pin(statement.hints.pins):
            return False
        hints = statement.hints if statement is not None else self.unnamed.hints if not name else NONE
        given = None
        if hints.deallocates:
            given = self._deallocates(hints.deallocates)
            if self.hold:
                return False
        if hints is not NONE or self.portals:
            self._minds(data[pos + HEAD_SIZE : first], hints, given)
        if self.refused:
            known, shown = self._statements.nobody, Expect(wire.BIND, instead=self._refusal())
        elif given is not None:
            self._turned(Expect(wire.PARSE, skip=True), self.unnamed.replaced(backend, UNKNOWN))
            self._out.append(wire.parse(b"", b'DEALLOCATE "' + given.name + b'"\0\0\0'))
            self._hinted(hints)
            self._binds(hints.flags)
            known, shown = b"", Expect(wire.BIND, statement=given, name=hints.deallocates)
        elif statement is None:
            if name:
                self._binds(0)
            else:
                self._unnamed()
            self._pipeline.expect(owed.BIND)
            return False
        elif statement.stale:
            known, shown = self._statements.nobody, Expect(wire.BIND, instead=_STALE)
        else:
            if statement in backend.prepared:
                backend.prepared.move_to_end(statement)
            elif self._prepare(statement, name):
                return False
            self._hinted(hints)
            self._binds(hints.flags)
            known, shown = statement.name, Expect(wire.BIND, statement=statement, name=name)
        self._pipeline.expect(shown)
        length = end - pos - 1 + len(known) - len(name)
        self._out.append(wire.HEAD.pack(wire.BIND, length) + data[pos + HEAD_SIZE : first + 1] + known)
        self._out.append(data[second:here])
        return True

    def _describe(self, name: bytes) -> bool:
        backend, pipeline = self._linked(), self._pipeline
        statement = self.names.get(name) if name else None
        if self._unsure(name, statement):
            return False
        if statement is None:
            if not name:
                self._unnamed()
            pipeline.expect(owed.DESCRIBE)
            return False
        if statement.stale:
            pipeline.expect(Expect(wire.DESCRIBE, instead=_STALE))
            self._out.append(wire.describe_statement(self._statements.nobody))
        else:
            if statement not in backend.prepared and self._prepare(statement, name):
                return False
            pipeline.expect(Expect(wire.DESCRIBE, statement=statement, name=name))
            self._out.append(wire.describe_statement(statement.name))
        return True

    def _close(self, name: bytes) -> bool:
        if not name:
            if self._deep():
                return False
            self._turned(Expect(wire.CLOSE), self.unnamed.parsed(self._linked(), None))
            return False
        if self._unsure(name):
            return False
        statement = self.names.pop(name, None)
        self.names.touch(name)
        if statement is None:
            self._pipeline.expect(owed.CLOSE)
            return False
        self._pipeline.expect(Expect(FAKE, fake=_CLOSED, undo=lambda: self.names.put(name, statement)))
        return True

    # ── statements on the server ─────────────────────────────────────────────────────────────

    def _prepare(self, statement: Statement, name: bytes) -> bool:
        """See that the server has the statement; True where its answer has to be waited for: who knows the shape
        of a result does not ask again, so it is compared where another connection prepares the text anew."""
        if statement in self._linked().prepared:
            return False
        self._send_parse(statement, name, skip=True)
        if statement.result is None:
            return False
        self.hold = True
        self._pipeline.expect(
            Expect(
                wire.DESCRIBE,
                skip=True,
                done=lambda described: self._described(statement, described),
                undo=self._go_on,
            )
        )
        self._out += (wire.describe_statement(statement.name), wire.message(wire.FLUSH))
        return True

    def _described(self, statement: Statement, described: bytes) -> bytes:
        self.hold = False
        for kind, body in wire.messages(described):
            if kind in (wire.ROW_DESCRIPTION, wire.NO_DATA):
                if statement.result != wire.shape(wire.message(kind, body)):
                    self._statements.renew(statement)
        return b""

    def _send_parse(self, statement: Statement, name: bytes, *, skip: bool) -> None:
        prepared = self._linked().prepared
        while len(prepared) >= MOST_PREPARED:
            old, _ = prepared.popitem(last=False)
            self._pipeline.expect(Expect(wire.CLOSE, skip=True, undo=partial(prepared.__setitem__, old, None)))
            self._out.append(wire.close_statement(old.name))
            self.names.touch(old.name)
        prepared[statement] = None
        self.names.touch(statement.name)

        def undo() -> None:
            prepared.pop(statement, None)
            if not skip:
                self.names.drop(name, statement)

        self._pipeline.expect(Expect(wire.PARSE, skip=skip, statement=statement, name=name, undo=undo))
        self._out.append(wire.parse(statement.name, statement.rest))

    def _unnamed(self) -> None:
        """See that the server has this client's unnamed statement, or none where it has none."""
        backend, unnamed = self._linked(), self.unnamed
        if unnamed.rest is None:
            if backend.unnamed is not None:  # another client's: the server is to say that there is none
                self._turned(Expect(wire.CLOSE, skip=True), unnamed.replaced(backend, None))
                self._out.append(wire.close_statement(b""))
            return
        hints = unnamed.hints
        self._hinted(hints)
        self._binds(hints.flags)
        if backend.unnamed is not unnamed.rest:
            self._turned(Expect(wire.PARSE, skip=True), unnamed.replaced(backend, unnamed.rest))
            self._out.append(wire.parse(b"", unnamed.rest))

    def _deallocates(self, name: bytes) -> Statement | None:
        """The statement that a text gives up, if it is one by the protocol; with `hold` that is to be seen."""
        statement, pipeline = self.names.get(name), self._pipeline
        if self._unsure(name, statement) or statement is None:
            return None
        if statement not in self._linked().prepared:
            if pipeline.queue:
                self._wait()
                return None
            if pipeline.status == wire.FAILED:
                return None  # the text is refused whatever it names
            # The server is to have something of that name; what it is does not matter any more.
            pipeline.expect(Expect(wire.PARSE, skip=True))
            self._out.append(wire.parse(statement.name, b"\0\0\0"))
        if len(self.given_up) < MOST_MENTIONED:
            self.given_up[statement.name] = name
        return statement

    def _deallocated(self, name: bytes, statement: Statement, _: bytes) -> bytes:
        self.names.drop(name, statement)
        self._linked().prepared.pop(statement, None)
        return b""

    # ── portals ──────────────────────────────────────────────────────────────────────────────

    def _minds(self, portal: bytes, hints: Hints, given: Statement | None) -> None:
        self.portals.pop(portal, None)
        if (hints.flags & FORGET or hints.resets) and len(self.portals) < MOST_MENTIONED:
            self.portals[portal] = hints, given

    def _executes(self, body: bytes) -> bool:
        """Whether what a portal does when it is executed is minded here."""
        found = self.portals.get(body[: body.find(b"\0")])
        if found is None:
            return False
        hints, given = found
        self._hinted(hints)
        if given is not None:
            done = partial(self._deallocated, hints.deallocates, given)
            self._pipeline.expect(Expect(wire.EXECUTE, statement=given, name=hints.deallocates, done=done))
            return True
        if not hints.resets or not self.foreign:
            return False
        # DISCARD ALL has ended its transaction, so there is none to put anything into.
        back = partial(self.put_back, hints.resets, not hints.flags & FORGET)
        self._pipeline.expect(Expect(wire.EXECUTE, flags=RESETS, done=back))
        self._stop(self._executed_on)
        return True

    def _executed_on(self, _: bytes) -> bytes:
        self.hold = False
        return b""

    def _stop(self, on: Callable[[bytes], bytes]) -> None:
        """The message at hand has to be answered before the next one goes."""
        self.stop = True
        self._pipeline.expect(Expect(FAKE, done=on, undo=self._go_on))

    # ── what it leaves behind ────────────────────────────────────────────────────────────────

    def _hinted(self, hints: Hints) -> None:
        if hints is NONE:
            return
        self.flags |= hints.flags & ~(LOCAL | PREPARED | FORGET)
        if hints.flags & FORGET:
            self.names.forgets = True
        for name in hints.names:
            if len(self.mentioned) < MOST_MENTIONED:
                self.mentioned[name] = None

    def _binds(self, flags: int) -> None:
        self._local = bool(flags & LOCAL) and (self._local or not self._bound)
        self._bound = True

    # ── waiting

    def _unsure(self, name: bytes, statement: Statement | None = None) -> bool:
        """Whether the message has to wait until it is known what a name means."""
        pipeline = self._pipeline
        if not pipeline.queue:
            self.names.answered()
            self.unnamed.settle()
        if not self.names.unsure(name, statement):
            return False
        self._wait()
        return True

    def _wait(self) -> None:
        self.hold = True
        self._pipeline.expect(Expect(FAKE, done=self._sure, undo=self._go_on))
        self._out.append(wire.message(wire.FLUSH))

    def _sure(self, _: bytes) -> bytes:
        self.names.answered()
        self.unnamed.settle()
        self.hold = False
        return b""

    def _turned(self, entry: Expect, turn: Turn, also: Callable[[], None] | None = None) -> None:
        """A message that changes the unnamed statement is sent."""
        backend, pipeline = self._linked(), self._pipeline

        def undo() -> None:
            self.unnamed.undo(turn, backend, skipped=pipeline.skips)
            if also is not None:
                also()

        entry.undo = undo
        self.names.parsed = True
        pipeline.expect(entry)

    def _deep(self) -> bool:
        """Whether a message has to wait because too much is not answered that it hangs on."""
        if not self._pipeline.queue:
            self.unnamed.settle()
        if not self.unnamed.deep:
            return False
        self._wait()
        return True

    def _linked(self) -> Backend:
        assert self.backend is not None
        return self.backend

    # ── pins

    def _may_pin(self, pins: int) -> bool:
        """Whether a text that pins may go on, to the server or to its refusal; else it waits."""
        if self.refused:
            return True
        if self._ask():
            self.slot = True
            return True
        self.hold = self.asks = True
        self.wants = pins
        return False

    def _go_on(self) -> None:
        self.hold = False

    def answered(self, refused: bytes = b"") -> None:
        """What `_may_pin` waited for: a slot, or the error that says that there is none."""
        self.hold = self.asks = False
        self.slot, self.refused = not refused, refused

    def _refusal(self) -> bytes:
        refused, self.refused = self.refused, b""
        return refused
