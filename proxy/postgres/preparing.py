"""Prepared statements of a client: each gets the name that the server knows, and is prepared again where the
server at hand lacks it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from proxy.postgres import expect as owed
from proxy.postgres import wire
from proxy.postgres.executing import Executing
from proxy.postgres.expect import FAKE, Expect
from proxy.postgres.outstanding import Pipeline
from proxy.postgres.server_state import MOST_PREPARED
from proxy.postgres.session_state import MOST_NAMES as MOST_MENTIONED
from proxy.postgres.session_state import NONE, SETTINGS, inspect
from proxy.postgres.statement_registry import Statement, Statements
from proxy.postgres.unnamed import UNKNOWN
from proxy.postgres.wire import HEAD_SIZE

_PARSED = wire.message(wire.PARSED)
_CLOSED = wire.message(wire.CLOSED)
WRONG = b"refused"  # no SQL: the server fails as it must, and the client is told why
_STALE = wire.error("0A000", "cached plan must not change result type", routine="RevalidateCachedQuery")


class ProtocolError(Exception):
    """A client does not speak the protocol; the text says how."""


class Preparing(Executing):
    """The half of a frontend that knows statements."""

    def __init__(
        self, statements: Statements, pipeline: Pipeline, *, ask: Callable[[], bool], slot: bool = False
    ) -> None:
        super().__init__(pipeline, ask=ask, slot=slot)
        self._statements = statements
        self.unsynced = False
        self.scope = b""

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
