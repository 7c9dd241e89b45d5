"""What a client sends, on its way to the server: as it came, but for the names of prepared statements."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial

from proxy.postgres import outstanding as owed
from proxy.postgres import wire
from proxy.postgres.client_statements import UNKNOWN_STATEMENT, ClientStatements, UnnamedChange, UnnamedStatement
from proxy.postgres.outstanding import LOCAL_REPLY, ExpectedReply, OutstandingReplies
from proxy.postgres.server_state import MAX_PREPARED, ServerState
from proxy.postgres.session_state import (
    DISCARD,
    LOCAL_SETTING,
    MAX_CUSTOM_NAMES,
    NO_HINTS,
    PROBE_FLAGS,
    RESET,
    SETTING,
    SQL_PREPARED,
    Hints,
    inspect_text,
)
from proxy.postgres.statement_registry import PreparedStatement, StatementRegistry
from proxy.postgres.wire import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DESCRIBE,
    EXECUTE,
    FLUSH,
    FRONTEND_KINDS,
    FUNCTION_CALL,
    HEADER_SIZE,
    PARSE,
    QUERY,
    SYNC,
    TERMINATE,
    read_header,
)


def restore_nothing(_names: tuple[bytes, ...], _extended: bool, _: bytes) -> bytes:
    return b""


# server at hand lacks it.
_PARSE_COMPLETE = wire.message(wire.PARSE_COMPLETE)
_CLOSE_COMPLETE = wire.message(wire.CLOSE_COMPLETE)
REFUSED_TEXT = b"refused"  # no SQL: the server fails as it must, and the client is told why
_STALE_PLAN = wire.error_response("0A000", "cached plan must not change result type", routine="RevalidateCachedQuery")


class ProtocolError(Exception):
    """A client does not speak the protocol; the text says how."""


STREAM_BYTES = 64 * 1024  # bytes; what is longer goes on before it is whole, where its kind allows that
STREAM_QUERY_BYTES = 1 << 20  # the same of a Query, whose text is read where it is shorter
MAX_PARSE_BYTES = 64 << 20

_PORTAL = b"P"
_STREAMED_KINDS = frozenset((BIND, COPY_DATA, FUNCTION_CALL))
_QUERY_LOCAL = ExpectedReply(QUERY, flags=LOCAL_SETTING)
_EXECUTE_LOCAL = ExpectedReply(EXECUTE, flags=LOCAL_SETTING)
_FLUSH = wire.message(FLUSH)


class Frontend:
    """DOC"""

    def __init__(
        self,
        statements: StatementRegistry,
        pipeline: OutstandingReplies,
        *,
        ask: Callable[[], bool],
        slot: bool = False,
    ) -> None:
        self._registry = statements
        self._outstanding = pipeline
        self.backend: ServerState | None = None
        self.statements = ClientStatements()
        self.unnamed = UnnamedStatement()
        self.scope = b""
        self.unsynced = False
        self.terminated = False
        self.remainder = b""
        self._out: list[bytes] = []
        self._bytes_to_stream = 0  # bytes of a message under way that are still to come
        self._discarding = False  # and go nowhere
        self.pause_after = False  # the message at hand is the last until it is answered
        self.blocked = False
        # pins
        self._request_pin = ask
        self.has_pin = slot
        self.awaits_pin = False
        self.wanted_pins = 0
        self.pin_refusal = b""
        # what it leaves behind
        self.state_flags = 0  # what this transaction may leave behind
        self.custom_names: dict[bytes, None] = {}  # parameters of the app's own
        self._sets_locally = False  # what is executed sets nothing but for its transaction
        self._has_bound = False  # something was bound since the last Sync
        self.deallocated: dict[bytes, bytes] = {}  # the server's names of what was deallocated, and the client's
        self.tracked_portals: dict[
            bytes, tuple[Hints, PreparedStatement | None]
        ] = {}  # those whose end the door has to know of
        self.settings_differ = False  # the server was opened with another NAME or ENCODING than the client
        self.restore_settings: Callable[[tuple[bytes, ...], bool, bytes], bytes] = (
            restore_nothing  # what a RESET led to the server's own
        )

    @property
    def mid_message(self) -> bool:
        """Whether a message is half sent."""
        return self._bytes_to_stream > 0

    def can_forward(self, data: bytes) -> bool:
        """Whether enough of a message is there to be sent. Raises ProtocolError."""
        if len(data) < HEADER_SIZE:
            return False
        kind, length = read_header(data)
        return length < len(data) or self._may_stream(kind, length, len(data))

    def process_requests(self, data: bytes) -> bytes:
        """What the server gets. Not to be called while `hold`. Raises ProtocolError."""
        size = len(data)
        if (
            size > HEADER_SIZE
            and data[0] == QUERY
            and read_header(data)[1] == size - 1
            and self._forward_plain_query(data)
        ):
            return data
        pos = start = 0
        out = self._out = []
        if self._bytes_to_stream:
            pos = min(self._bytes_to_stream, size)
            self._bytes_to_stream -= pos
            start = pos if self._discarding else 0
        pipeline = self._outstanding
        while pos + HEADER_SIZE <= size:
            kind, length = read_header(data, pos)
            end = pos + 1 + length
            if length < 4 or kind not in FRONTEND_KINDS:
                raise ProtocolError(f"invalid frontend message type {kind}")
            if end > size and not self._may_stream(kind, length, size - pos):
                break
            if pipeline.skipping_to_sync and kind != SYNC and kind != TERMINATE:
                out.append(data[start:pos])  # the server would skip it
                start = end
            elif kind == SYNC:
                pipeline.expect_sync()
                self.unsynced = self._sets_locally = self._has_bound = False
                self.statements.on_sync()
            elif kind == EXECUTE:
                self.unsynced = True
                if not self.tracked_portals or not self._execute_tracked(data[pos + HEADER_SIZE : end]):
                    pipeline.expect(owed.EXECUTE_REPLY if not self._sets_locally else _EXECUTE_LOCAL)
            elif kind in (COPY_DATA, FLUSH):
                pass
            elif kind == DESCRIBE and data[pos + HEADER_SIZE : pos + HEADER_SIZE + 1] == _PORTAL:
                self.unsynced = True
                pipeline.expect(owed.DESCRIBE_REPLY)
            elif kind in (COPY_DONE, COPY_FAIL):
                pipeline.on_copy_end()
            elif kind == TERMINATE:
                self.terminated = True
                break
            else:
                took = len(out)
                here = end if end <= size else size
                if kind == BIND:
                    changed = self._process_bind(data, pos, here, end)
                elif kind == QUERY:
                    changed = self._process_query(data, pos, here, end)
                elif kind == PARSE:
                    changed = self._process_parse(data, pos, end)
                else:
                    changed = self._process_other(kind, data, pos, end)
                if self.blocked:
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
                self._bytes_to_stream, self._discarding = end - size, start >= end
                pos = size
                break
            pos = end
            if self.pause_after:
                self.pause_after, self.blocked = False, True
                out += (data[start:pos], _FLUSH)
                start = pos
                break
        self.remainder = data[pos:]
        if start >= pos:
            return out[0] if len(out) == 1 else b"".join(out)
        if not out:
            return data if start == 0 and pos == size else data[start:pos]
        out.append(data[start:pos])
        return b"".join(out)

    def _forward_plain_query(self, data: bytes) -> bool:
        """One Query that leaves nothing behind, which is what most send."""
        pipeline = self._outstanding
        if (
            self.unsynced
            or self._bytes_to_stream
            or pipeline.skipping_to_sync
            or self.pin_refusal
            or inspect_text(data[HEADER_SIZE:-1]) is not NO_HINTS
        ):
            return False
        self.statements.may_have_failed = True
        self.unnamed.on_query()
        self._attached_server().unnamed_body = None
        pipeline.idle = False
        pipeline.queue.append(owed.QUERY_REPLY)
        self.remainder = b""
        return True

    def _may_stream(self, kind: int, length: int, here: int) -> bool:
        """Whether a message may go on though only `here` bytes of it came."""
        if kind in _STREAMED_KINDS:
            return length > STREAM_BYTES and here > STREAM_BYTES // 2
        if kind == QUERY:
            return length > STREAM_QUERY_BYTES and here > STREAM_BYTES
        if length > (MAX_PARSE_BYTES if kind == PARSE else STREAM_BYTES):
            raise ProtocolError(f"a message of type {chr(kind)} is {length} bytes long")
        return False

    def _process_other(self, kind: int, data: bytes, pos: int, end: int) -> bool:
        """A message that needs a closer look; True where `_out` has it in another form than it came."""
        if kind in (DESCRIBE, CLOSE):
            body = data[pos + HEADER_SIZE : end]
            if body[:1] not in (b"S", b"P") or body[-1:] != b"\0":
                raise ProtocolError(f"a message of type {chr(kind)} names neither statement nor portal")
            self.unsynced = True
            if body[:1] == b"S":
                return (self._process_describe if kind == DESCRIBE else self._process_close)(body[1:-1])
            self._outstanding.expect(owed.DESCRIBE_REPLY if kind == DESCRIBE else owed.CLOSE_REPLY)
            return False
        if kind == FUNCTION_CALL:
            self._outstanding.expect(owed.FUNCTION_REPLY)
            return False
        raise ProtocolError(f"a message of type {chr(kind)} makes no sense here")

    # ── the simple protocol ──────────────────────────────────────────────────────────────────

    def _process_query(self, data: bytes, pos: int, here: int, end: int) -> bool:
        if here < end:
            self.state_flags |= PROBE_FLAGS  # too long to be read: the database is asked whether it left anything
            self._expect_query(owed.QUERY_REPLY)
            return False
        text = data[pos + HEADER_SIZE : end - 1]
        hints = inspect_text(text)
        if hints.pin_flags and not self.has_pin and not self._may_forward_pin(hints.pin_flags):
            return False
        given = self._find_deallocated(hints.deallocates) if hints.deallocates else None
        if self.blocked:
            return False
        if self.pin_refusal:
            self._expect_query(ExpectedReply(QUERY, instead=self._pop_refusal()))
            self._out.append(wire.query_message(REFUSED_TEXT))
            return True
        if hints.flags or hints.custom_names:
            self._record_hints(hints)
        if given is not None:
            done = partial(self._on_deallocated, hints.deallocates, given)
            self._expect_query(ExpectedReply(QUERY, statement=given, name=hints.deallocates, done=done))
            self._out.append(wire.query_message(b'DEALLOCATE "' + given.name + b'"'))
            return True
        if hints.reset_names and self.settings_differ:
            self._expect_query(
                ExpectedReply(QUERY, flags=RESET, done=partial(self.restore_settings, hints.reset_names, False))
            )
            self._pause_after_message(self._unblock_after_query)
            return False
        self._expect_query(owed.QUERY_REPLY if not hints.flags & LOCAL_SETTING else _QUERY_LOCAL)
        return False

    def _unblock_after_query(self, _: bytes) -> bytes:
        self.blocked = False
        self._outstanding.idle = not self._outstanding.queue
        return b""

    def _expect_query(self, entry: ExpectedReply) -> None:
        """A Query is sent: it ends the unnamed statement, unless it is skipped with the batch that it is in."""
        self.statements.may_have_failed = True
        if self.unsynced:
            entry = copy(entry)
            self._expect_unnamed_change(entry, self.unnamed.replace_client(self._attached_server(), None))
        else:
            self.unnamed.on_query()
            self._attached_server().unnamed_body = None
            self._outstanding.expect(entry)

    # ── prepared statements: what the client sends ───

    def _process_parse(self, data: bytes, pos: int, end: int) -> bool:
        backend, pipeline = self._attached_server(), self._outstanding
        stop = data.find(b"\0", pos + HEADER_SIZE, end)
        name, rest = data[pos + HEADER_SIZE : stop], data[stop + 1 : end]
        again = not name and rest == self.unnamed.body
        if stop < 0 or (not again and rest.find(b"\0") < 0):
            raise ProtocolError("a Parse has no text")
        self.unsynced = True
        if not name:
            if self._must_await_unnamed():
                return False
            unnamed = self.unnamed
            hints = unnamed.hints if again else inspect_text(rest[: rest.find(b"\0")])
            if hints.pin_flags and not self.has_pin:
                if not self._may_forward_pin(hints.pin_flags):
                    return False
                if self.pin_refusal:
                    rest = REFUSED_TEXT + b"\0\0\0"
                    self._expect_unnamed_change(
                        ExpectedReply(wire.PARSE, instead=self._pop_refusal()), unnamed.replace_client(backend, rest)
                    )
                    self._out.append(wire.parse_message(b"", rest))
                    return True
            if hints.deallocates and self._must_await_name(hints.deallocates, self.statements.get(hints.deallocates)):
                return False
            self._expect_unnamed_change(ExpectedReply(wire.PARSE), unnamed.replace_client(backend, rest, hints))
            return False
        known = self.statements.get(name)
        if self._must_await_name(name, known):
            return False
        if known is not None and known in backend.prepared:  # PostgreSQL refuses it, and says so better than we could
            pipeline.expect(ExpectedReply(wire.PARSE, statement=known, name=name))
            self._out.append(wire.parse_message(known.name, rest))
            return True
        # What was set in this very transaction may change what names mean: nobody else shares that.
        statement = self._registry.find_or_add(rest, self.scope if not self.state_flags & SETTING else b"%d" % id(self))
        if self._must_await_name(name, statement):
            return False
        if known is not None:  # it is to be refused, but for a reason that comes first
            if statement not in backend.prepared:
                self._send_parse(statement, name, skip=True)
            pipeline.expect(ExpectedReply(wire.PARSE, statement=statement, name=name))
            self._out.append(wire.parse_message(statement.name, rest))
            return True
        self.statements.define(name, statement)
        if statement not in backend.prepared:
            self._send_parse(statement, name, skip=False)
        elif pipeline.status != wire.STATUS_FAILED and not self.statements.may_have_failed:
            pipeline.expect(
                ExpectedReply(LOCAL_REPLY, fake=_PARSE_COMPLETE, undo=lambda: self.statements.drop(name, statement))
            )
        else:  # nearly every text is refused in a failed transaction
            turn = self.unnamed.replace_server(backend, UNKNOWN_STATEMENT)
            self._expect_unnamed_change(ExpectedReply(wire.PARSE), turn, lambda: self.statements.drop(name, statement))
            self._out.append(wire.parse_message(b"", rest))
        return True

    def _process_bind(self, data: bytes, pos: int, here: int, end: int) -> bool:
        backend = self._attached_server()
        first = data.find(b"\0", pos + HEADER_SIZE, here)
        second = data.find(b"\0", first + 1, here)
        if first < 0 or second < 0:
            raise ProtocolError("a Bind names no portal and statement")
        self.unsynced = True
        name = data[first + 1 : second]
        statement = self.statements.get(name) if name else None
        if self._must_await_name(name, statement):
            return False
        if (
            statement is not None
            and statement.hints.pin_flags
            and not self.has_pin
            and not self._may_forward_pin(statement.hints.pin_flags)
        ):
            return False
        hints = statement.hints if statement is not None else self.unnamed.hints if not name else NO_HINTS
        given = None
        if hints.deallocates:
            given = self._find_deallocated(hints.deallocates)
            if self.blocked:
                return False
        if hints is not NO_HINTS or self.tracked_portals:
            self._track_portal(data[pos + HEADER_SIZE : first], hints, given)
        if self.pin_refusal:
            known, shown = self._registry.missing_name, ExpectedReply(wire.BIND, instead=self._pop_refusal())
        elif given is not None:
            self._expect_unnamed_change(
                ExpectedReply(wire.PARSE, skip=True), self.unnamed.replace_server(backend, UNKNOWN_STATEMENT)
            )
            self._out.append(wire.parse_message(b"", b'DEALLOCATE "' + given.name + b'"\0\0\0'))
            self._record_hints(hints)
            self._record_bind(hints.flags)
            known, shown = b"", ExpectedReply(wire.BIND, statement=given, name=hints.deallocates)
        elif statement is None:
            if name:
                self._record_bind(0)
            else:
                self._ensure_unnamed()
            self._outstanding.expect(owed.BIND_REPLY)
            return False
        elif statement.stale:
            known, shown = self._registry.missing_name, ExpectedReply(wire.BIND, instead=_STALE_PLAN)
        else:
            if statement in backend.prepared:
                backend.prepared.move_to_end(statement)
            elif self._ensure_prepared(statement, name):
                return False
            self._record_hints(hints)
            self._record_bind(hints.flags)
            known, shown = statement.name, ExpectedReply(wire.BIND, statement=statement, name=name)
        self._outstanding.expect(shown)
        length = end - pos - 1 + len(known) - len(name)
        self._out.append(wire.HEADER.pack(wire.BIND, length) + data[pos + HEADER_SIZE : first + 1] + known)
        self._out.append(data[second:here])
        return True

    def _process_describe(self, name: bytes) -> bool:
        backend, pipeline = self._attached_server(), self._outstanding
        statement = self.statements.get(name) if name else None
        if self._must_await_name(name, statement):
            return False
        if statement is None:
            if not name:
                self._ensure_unnamed()
            pipeline.expect(owed.DESCRIBE_REPLY)
            return False
        if statement.stale:
            pipeline.expect(ExpectedReply(wire.DESCRIBE, instead=_STALE_PLAN))
            self._out.append(wire.describe_statement_message(self._registry.missing_name))
        else:
            if statement not in backend.prepared and self._ensure_prepared(statement, name):
                return False
            pipeline.expect(ExpectedReply(wire.DESCRIBE, statement=statement, name=name))
            self._out.append(wire.describe_statement_message(statement.name))
        return True

    def _process_close(self, name: bytes) -> bool:
        if not name:
            if self._must_await_unnamed():
                return False
            self._expect_unnamed_change(
                ExpectedReply(wire.CLOSE), self.unnamed.replace_client(self._attached_server(), None)
            )
            return False
        if self._must_await_name(name):
            return False
        statement = self.statements.pop(name, None)
        self.statements.mark_changed(name)
        if statement is None:
            self._outstanding.expect(owed.CLOSE_REPLY)
            return False
        self._outstanding.expect(
            ExpectedReply(LOCAL_REPLY, fake=_CLOSE_COMPLETE, undo=lambda: self.statements.define(name, statement))
        )
        return True

    # ── statements on the server ─────────────────────────────────────────────────────────────

    def _ensure_prepared(self, statement: PreparedStatement, name: bytes) -> bool:
        """See that the server has the statement; True where its answer has to be waited for: who knows the shape
        of a result does not ask again, so it is compared where another connection prepares the text anew."""
        if statement in self._attached_server().prepared:
            return False
        self._send_parse(statement, name, skip=True)
        if statement.result_shape is None:
            return False
        self.blocked = True
        self._outstanding.expect(
            ExpectedReply(
                wire.DESCRIBE,
                skip=True,
                done=lambda described: self._compare_result_shape(statement, described),
                undo=self._unblock,
            )
        )
        self._out += (wire.describe_statement_message(statement.name), wire.message(wire.FLUSH))
        return True

    def _compare_result_shape(self, statement: PreparedStatement, described: bytes) -> bytes:
        self.blocked = False
        for kind, body in wire.split_messages(described):
            if kind in (wire.ROW_DESCRIPTION, wire.NO_DATA):
                if statement.result_shape != wire.result_shape(wire.message(kind, body)):
                    self._registry.retire(statement)
        return b""

    def _send_parse(self, statement: PreparedStatement, name: bytes, *, skip: bool) -> None:
        prepared = self._attached_server().prepared
        while len(prepared) >= MAX_PREPARED:
            old, _ = prepared.popitem(last=False)
            self._outstanding.expect(
                ExpectedReply(wire.CLOSE, skip=True, undo=partial(prepared.__setitem__, old, None))
            )
            self._out.append(wire.close_statement_message(old.name))
            self.statements.mark_changed(old.name)
        prepared[statement] = None
        self.statements.mark_changed(statement.name)

        def undo() -> None:
            prepared.pop(statement, None)
            if not skip:
                self.statements.drop(name, statement)

        self._outstanding.expect(ExpectedReply(wire.PARSE, skip=skip, statement=statement, name=name, undo=undo))
        self._out.append(wire.parse_message(statement.name, statement.body))

    def _ensure_unnamed(self) -> None:
        """See that the server has this client's unnamed statement, or none where it has none."""
        backend, unnamed = self._attached_server(), self.unnamed
        if unnamed.body is None:
            if backend.unnamed_body is not None:  # another client's: the server is to say that there is none
                self._expect_unnamed_change(ExpectedReply(wire.CLOSE, skip=True), unnamed.replace_server(backend, None))
                self._out.append(wire.close_statement_message(b""))
            return
        hints = unnamed.hints
        self._record_hints(hints)
        self._record_bind(hints.flags)
        if backend.unnamed_body is not unnamed.body:
            self._expect_unnamed_change(
                ExpectedReply(wire.PARSE, skip=True), unnamed.replace_server(backend, unnamed.body)
            )
            self._out.append(wire.parse_message(b"", unnamed.body))

    def _find_deallocated(self, name: bytes) -> PreparedStatement | None:
        """The statement that a text gives up, if it is one by the protocol; with `hold` that is to be seen."""
        statement, pipeline = self.statements.get(name), self._outstanding
        if self._must_await_name(name, statement) or statement is None:
            return None
        if statement not in self._attached_server().prepared:
            if pipeline.queue:
                self._await_answers()
                return None
            if pipeline.status == wire.STATUS_FAILED:
                return None  # the text is refused whatever it names
            # The server is to have something of that name; what it is does not matter any more.
            pipeline.expect(ExpectedReply(wire.PARSE, skip=True))
            self._out.append(wire.parse_message(statement.name, b"\0\0\0"))
        if len(self.deallocated) < MAX_CUSTOM_NAMES:
            self.deallocated[statement.name] = name
        return statement

    def _on_deallocated(self, name: bytes, statement: PreparedStatement, _: bytes) -> bytes:
        self.statements.drop(name, statement)
        self._attached_server().prepared.pop(statement, None)
        return b""

    # ── portals ──────────────────────────────────────────────────────────────────────────────

    def _track_portal(self, portal: bytes, hints: Hints, given: PreparedStatement | None) -> None:
        self.tracked_portals.pop(portal, None)
        if (hints.flags & DISCARD or hints.reset_names) and len(self.tracked_portals) < MAX_CUSTOM_NAMES:
            self.tracked_portals[portal] = hints, given

    def _execute_tracked(self, body: bytes) -> bool:
        """Whether what a portal does when it is executed is minded here."""
        found = self.tracked_portals.get(body[: body.find(b"\0")])
        if found is None:
            return False
        hints, given = found
        self._record_hints(hints)
        if given is not None:
            done = partial(self._on_deallocated, hints.deallocates, given)
            self._outstanding.expect(ExpectedReply(wire.EXECUTE, statement=given, name=hints.deallocates, done=done))
            return True
        if not hints.reset_names or not self.settings_differ:
            return False
        # DISCARD ALL has ended its transaction, so there is none to put anything into.
        back = partial(self.restore_settings, hints.reset_names, not hints.flags & DISCARD)
        self._outstanding.expect(ExpectedReply(wire.EXECUTE, flags=RESET, done=back))
        self._pause_after_message(self._unblock_after_execute)
        return True

    def _unblock_after_execute(self, _: bytes) -> bytes:
        self.blocked = False
        return b""

    def _pause_after_message(self, on: Callable[[bytes], bytes]) -> None:
        """The message at hand has to be answered before the next one goes."""
        self.pause_after = True
        self._outstanding.expect(ExpectedReply(LOCAL_REPLY, done=on, undo=self._unblock))

    # ── what it leaves behind ────────────────────────────────────────────────────────────────

    def _record_hints(self, hints: Hints) -> None:
        if hints is NO_HINTS:
            return
        self.state_flags |= hints.flags & ~(LOCAL_SETTING | SQL_PREPARED | DISCARD)
        if hints.flags & DISCARD:
            self.statements.discard_pending = True
        for name in hints.custom_names:
            if len(self.custom_names) < MAX_CUSTOM_NAMES:
                self.custom_names[name] = None

    def _record_bind(self, flags: int) -> None:
        self._sets_locally = bool(flags & LOCAL_SETTING) and (self._sets_locally or not self._has_bound)
        self._has_bound = True

    # ── waiting

    def _must_await_name(self, name: bytes, statement: PreparedStatement | None = None) -> bool:
        """Whether the message has to wait until it is known what a name means."""
        pipeline = self._outstanding
        if not pipeline.queue:
            self.statements.on_all_answered()
            self.unnamed.settle()
        if not self.statements.is_uncertain(name, statement):
            return False
        self._await_answers()
        return True

    def _await_answers(self) -> None:
        self.blocked = True
        self._outstanding.expect(ExpectedReply(LOCAL_REPLY, done=self._on_all_answered, undo=self._unblock))
        self._out.append(wire.message(wire.FLUSH))

    def _on_all_answered(self, _: bytes) -> bytes:
        self.statements.on_all_answered()
        self.unnamed.settle()
        self.blocked = False
        return b""

    def _expect_unnamed_change(
        self, entry: ExpectedReply, turn: UnnamedChange, also: Callable[[], None] | None = None
    ) -> None:
        """A message that changes the unnamed statement is sent."""
        backend, pipeline = self._attached_server(), self._outstanding

        def undo() -> None:
            self.unnamed.undo_change(turn, backend, skipped=pipeline.undoing_skipped)
            if also is not None:
                also()

        entry.on_undone = undo
        self.statements.unnamed_parsed = True
        pipeline.expect(entry)

    def _must_await_unnamed(self) -> bool:
        """Whether a message has to wait because too much is not answered that it hangs on."""
        if not self._outstanding.queue:
            self.unnamed.settle()
        if not self.unnamed.too_many_unanswered:
            return False
        self._await_answers()
        return True

    def _attached_server(self) -> ServerState:
        assert self.backend is not None
        return self.backend

    # ── pins

    def _may_forward_pin(self, pins: int) -> bool:
        """Whether a text that pins may go on, to the server or to its refusal; else it waits."""
        if self.pin_refusal:
            return True
        if self._request_pin():
            self.has_pin = True
            return True
        self.blocked = self.awaits_pin = True
        self.wanted_pins = pins
        return False

    def _unblock(self) -> None:
        self.blocked = False

    def resolve_pin(self, refused: bytes = b"") -> None:
        """What `_may_pin` waited for: a slot, or the error that says that there is none."""
        self.blocked = self.awaits_pin = False
        self.has_pin, self.pin_refusal = not refused, refused

    def _pop_refusal(self) -> bytes:
        refused, self.pin_refusal = self.pin_refusal, b""
        return refused
