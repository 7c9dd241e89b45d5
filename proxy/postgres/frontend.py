"""What a client sends, on its way to the server: as it came, but for the names of prepared statements.

A client names its statements as it likes, and its server changes from transaction to transaction. So each text gets
one name that all clients share (`statement_registry`), is prepared again on a server that lacks it, and what a client
called it is put back into what PostgreSQL says of it (54.2.3 Extended Query).

A message goes on as soon as it is read, unless what it becomes depends on something that is not known yet. Then the
client is `blocked`, and the message is read again from its begin when that is known:

===================  ===================================================  ==========================================
state                what is not known                                    goes on when
===================  ===================================================  ==========================================
forwarding           nothing                                              (it is not blocked)
awaiting a pin       whether it may have its connection for itself        `resolve_pin` says so
awaiting answers     what a name means, or which unnamed statement there  everything owed is answered, or undone
                     is: its Parse, Close or DEALLOCATE is unanswered
awaiting a shape     whether a text that is prepared anew still has the   its Describe is answered
                     result that the client knows
pausing              to what a RESET has led                              the message itself is answered
skipping to Sync     nothing: the server ignores all until the Sync       a Sync comes (it is not blocked)
===================  ===================================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial

from proxy.postgres import outstanding as replies
from proxy.postgres import pg_errors, wire
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
    is_plain_body,
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
    PASSWORD,
    QUERY,
    SYNC,
    TERMINATE,
    read_header,
)

STREAM_BYTES = 64 * 1024  # what is longer goes on before it is whole, if its kind allows that
STREAM_QUERY_BYTES = 1 << 20  # the same of a Query, whose text is read if it is shorter
MAX_PARSE_BYTES = 64 << 20
MAX_PLAIN_BYTES = 4096  # of a Parse that may go in one step
MAX_TRACKED = 100  # portals, and names of deallocated statements, in a transaction

REFUSED_TEXT = b"refused"  # no SQL: the server fails as it must, and the client is told why
_PORTAL = ord("P")
_STREAMED_KINDS = frozenset((BIND, COPY_DATA, FUNCTION_CALL))
_QUERY_LOCAL = ExpectedReply(QUERY, flags=LOCAL_SETTING)
_EXECUTE_LOCAL = ExpectedReply(EXECUTE, flags=LOCAL_SETTING)
_FLUSH = wire.message(FLUSH)
_PARSE_COMPLETE = wire.message(wire.PARSE_COMPLETE)
_CLOSE_COMPLETE = wire.message(wire.CLOSE_COMPLETE)
_BOUND = wire.message(wire.BIND_COMPLETE)
_PARSED_AND_BOUND = _PARSE_COMPLETE + _BOUND
# How a batch ends that executes the unnamed portal to its last row, and what is owed for that.
_EXECUTE_SYNC = wire.message(EXECUTE, b"\0\0\0\0\0") + wire.message(SYNC)
_DESCRIBE_EXECUTE_SYNC = wire.message(DESCRIBE, b"P\0") + _EXECUTE_SYNC
_EXECUTED: tuple[ExpectedReply, ...] = (replies.EXECUTE_REPLY, replies.SYNC_REPLY)
_DESCRIBED: tuple[ExpectedReply, ...] = (replies.DESCRIBE_REPLY, *_EXECUTED)
_MIN_BIND_SIZE = HEADER_SIZE + 2


class ProtocolError(Exception):
    """A client does not speak the protocol; the text says how."""


def restore_nothing(_names: tuple[bytes, ...], _extended: bool, _: bytes) -> bytes:
    """The `restore_settings` of a frontend without a session."""
    return b""


class Frontend:
    """`process_requests` reads whole messages as far as it can; `remainder` is what it left.

    `backend` is the server that is attached; `statements` and `unnamed` are what the client has prepared; `scope` is
    what else than its text the meaning of a statement hangs on (bytes of settings). `unsynced`: messages of the
    extended protocol were sent, and no Sync; `terminated`: the client has said goodbye; `blocked`: see above.

    `awaits_pin`: it has asked for a slot to pin its connection, for what `wanted_pins` says; `has_pin`: it has one;
    `pin_refusal`: the error that a text gets which waited in vain.

    `state_flags` and `custom_names` are what the transaction may leave behind (`session_state`); `deallocated` maps
    the server's names of statements that were given up to the client's; `tracked_portals` are those whose execution
    has to be known of. `settings_differ`: the server was opened with another application_name or client_encoding than
    the client asked for; `restore_settings` is called when a RESET has led to the server's own.
    """

    def __init__(
        self,
        registry: StatementRegistry,
        outstanding: OutstandingReplies,
        *,
        request_pin: Callable[[], bool],
        has_pin: bool = False,
    ) -> None:
        self._registry = registry
        self._outstanding = outstanding
        self.backend: ServerState | None = None
        self.statements = ClientStatements()
        self.unnamed = UnnamedStatement()
        self.scope = b""
        self.unsynced = False
        self.terminated = False
        self.remainder = b""
        self.blocked = False
        self._out: list[bytes] = []  # what the server gets, while messages are read
        self._bytes_to_stream = 0  # of a message under way that are still to come
        self._dropping = False  # and go nowhere
        self._pause_after = False  # the message at hand is the last until it is answered
        self._request_pin = request_pin
        self.has_pin = has_pin
        self.awaits_pin = False
        self.wanted_pins = 0
        self.pin_refusal = b""
        self.state_flags = 0
        self.custom_names: dict[bytes, None] = {}
        self._sets_locally = False  # what is executed sets nothing but for its transaction
        self._has_bound = False  # something was bound since the last Sync
        self.deallocated: dict[bytes, bytes] = {}
        self.tracked_portals: dict[bytes, tuple[Hints, PreparedStatement | None]] = {}
        # Of a batch that goes in one step: it goes only if nothing is owed, so that one of each is enough.
        self._plain_bind = ExpectedReply(BIND, plain_start=_BOUND)
        self._plain_parse = ExpectedReply(PARSE, plain_start=_PARSED_AND_BOUND, on_undone=self._undo_plain_parse)
        self._plain_change = UnnamedChange(None, NO_HINTS, None, None, by_client=True)
        self.settings_differ = False
        self.restore_settings: Callable[[tuple[bytes, ...], bool, bytes], bytes] = restore_nothing

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
        """What the server gets. Not to be called while `blocked`. Raises ProtocolError."""
        if len(data) > HEADER_SIZE and (plain := self.forward_plain(data, *read_header(data))):
            return plain
        size = len(data)
        # What is between `start` and `pos` has been read and goes on as it came: a batch is copied in as few pieces as
        # there are messages in it that change.
        pos = start = 0
        out = self._out = []
        if self._bytes_to_stream:
            pos = min(self._bytes_to_stream, size)
            self._bytes_to_stream -= pos
            start = pos if self._dropping else 0
        outstanding = self._outstanding
        while pos + HEADER_SIZE <= size:
            kind, length = read_header(data, pos)
            end = pos + 1 + length
            if length < 4 or kind not in FRONTEND_KINDS:
                raise ProtocolError(f"invalid frontend message type {kind}")
            if end > size and not self._may_stream(kind, length, size - pos):
                break
            if kind == TERMINATE:
                self.terminated = True
                break
            if outstanding.skipping_to_sync and kind != SYNC:
                # The server would skip it: so that nothing is expected for it, it is not even sent.
                out.append(data[start:pos])
                start = end
            elif (handler := _UNCHANGED_HANDLERS.get(kind)) is not None:
                handler(self, data, pos, end)
            else:
                sent = len(out)
                here = end if end <= size else size
                replaced = _HANDLERS[kind](self, data, pos, here, end)
                if self.blocked:
                    # What was injected ahead goes now, the message itself when the answer is there.
                    out.insert(sent, data[start:pos])
                    start = pos
                    break
                if replaced or len(out) > sent:
                    out.insert(sent, data[start:pos])
                    start = here if replaced else pos
            if end > size:
                # The rest of a long message follows the way of its begin when it comes.
                self._bytes_to_stream, self._dropping = end - size, start >= end
                pos = size
                break
            pos = end
            if self._pause_after:
                # A Flush has the server answer at once, though no Sync may come before the client is unblocked.
                self._pause_after, self.blocked = False, True
                out += (data[start:pos], _FLUSH)
                start = pos
                break
        self.remainder = data[pos:]
        if start < pos:
            if not out:
                return data[start:pos]  # `data` itself, if that is all of it
            out.append(data[start:pos])
        return out[0] if len(out) == 1 else b"".join(out)

    # ── what most send ───────────────────────────────────────────────────────────────────────
    # One request that is whole and leaves nothing behind goes in one step. Afterwards everything is as if its messages
    # had gone one by one, as the rest of this class has them. The gateway's CPU time for a batch with a Parse was 39 µs
    # one by one, and is 22 in one step (without: 33 and 24), its answer and the kernel's part included.

    def forward_plain(self, data: bytes, kind: int, length: int) -> bytes:
        """A Query, or a batch of the extended protocol: what the server gets, b"" if it is anything else. `kind` and
        `length` are of the first message."""
        backend, outstanding = self.backend, self._outstanding
        if (
            self.unsynced
            or self._bytes_to_stream
            or outstanding.skipping_to_sync
            or self.pin_refusal
            or backend is None
        ):
            return b""
        if kind != QUERY:
            return self._forward_plain_batch(data, kind, 1 + length, backend)
        if length != len(data) - 1 or not self._registry.is_plain_query(data):
            return b""
        self.statements.may_have_failed = True
        unnamed = self.unnamed
        if unnamed.last is not None or unnamed.body is not None:
            unnamed.on_query()
        backend.unnamed_body = None
        outstanding.idle = False
        outstanding.queue.append(replies.QUERY_REPLY)
        self.remainder = b""
        return data

    def _forward_plain_batch(self, data: bytes, kind: int, end: int, backend: ServerState) -> bytes:
        """What drivers send for one statement: its Parse without a name and the Bind of that, or the Bind of a name,
        then Describe, perhaps, Execute and Sync, of the portal without a name. The first message ends at `end`."""
        outstanding, statements, unnamed = self._outstanding, self.statements, self.unnamed
        queue = outstanding.queue
        if queue or self.tracked_portals:
            return b""
        if data.endswith(_DESCRIBE_EXECUTE_SYNC):
            rest, rest_at = _DESCRIBED, len(data) - len(_DESCRIBE_EXECUTE_SYNC)
        elif data.endswith(_EXECUTE_SYNC):
            rest, rest_at = _EXECUTED, len(data) - len(_EXECUTE_SYNC)
        else:
            return b""
        if kind == BIND and end == rest_at and not data[HEADER_SIZE]:
            name_end = data.find(b"\0", HEADER_SIZE + 1, end)
            name = data[HEADER_SIZE + 1 : name_end]
            statement = statements.get(name)
            if (
                statement is None
                or name_end < 0
                or statement.hints is not NO_HINTS
                or statement.stale
                or statement not in backend.prepared
            ):
                return b""
            statements.on_all_answered()
            unnamed.settle()
            backend.prepared.move_to_end(statement)
            length = end - 1 + len(statement.name) - len(name)
            data = wire.HEADER.pack(BIND, length) + b"\0" + statement.name + data[name_end:]
            entry = self._plain_bind
            entry.statement, entry.client_name = statement, name
            entry.plain_size = 1 + len(rest)
            queue.append(entry)
        elif (
            kind == PARSE
            and end + _MIN_BIND_SIZE <= rest_at
            and not data[HEADER_SIZE]
            and read_header(data, end) == (BIND, rest_at - end - 1)
            and not data[end + HEADER_SIZE]
            and not data[end + HEADER_SIZE + 1]
            and end <= MAX_PLAIN_BYTES
            and is_plain_body(body := data[HEADER_SIZE + 1 : end])
        ):
            unnamed.body, unnamed.hints = body, NO_HINTS
            unnamed.last = change = self._plain_change
            change.body = change.server_body = backend.unnamed_body = body
            change.skipped = False
            statements.unnamed_parsed = True
            entry = self._plain_parse
            entry.plain_size = 2 + len(rest)
            queue.append(entry)
            queue.append(replies.BIND_REPLY)
        else:
            return b""
        queue.extend(rest)
        outstanding.idle = False
        self.remainder = b""
        statements.on_sync()
        return data

    def _undo_plain_parse(self) -> None:
        self.unnamed.undo_change(self._plain_change, self._attached_server(), skipped=self._outstanding.undoing_skipped)

    def _may_stream(self, kind: int, length: int, here: int) -> bool:
        """Whether a message may go on though only `here` bytes of it came."""
        if kind in _STREAMED_KINDS:
            return length > STREAM_BYTES and here > STREAM_BYTES // 2
        if kind == QUERY:
            return length > STREAM_QUERY_BYTES and here > STREAM_BYTES
        if length > (MAX_PARSE_BYTES if kind == PARSE else STREAM_BYTES):
            raise ProtocolError(f"a message of type {chr(kind)} is {length} bytes long")
        return False

    # ── messages that always go on as they came ──────────────────────────────────────────────
    # Each handler gets the message at data[pos:end], of which the end may be still to come.

    def _process_sync(self, data: bytes, pos: int, end: int) -> None:
        self._outstanding.expect_sync()
        self.unsynced = self._sets_locally = self._has_bound = False
        self.statements.on_sync()

    def _process_execute(self, data: bytes, pos: int, end: int) -> None:
        self.unsynced = True
        if not self.tracked_portals or not self._execute_tracked(data[pos + HEADER_SIZE : end]):
            self._outstanding.expect(_EXECUTE_LOCAL if self._sets_locally else replies.EXECUTE_REPLY)

    def _process_copy_end(self, data: bytes, pos: int, end: int) -> None:
        self._outstanding.on_copy_end()

    def _process_function_call(self, data: bytes, pos: int, end: int) -> None:
        self._outstanding.expect(replies.FUNCTION_REPLY)

    def _pass_unanswered(self, data: bytes, pos: int, end: int) -> None:
        """CopyData and Flush, which the server does not answer."""

    # ── messages that may change, or have to wait ────────────────────────────────────────────
    # Each handler gets the message at data[pos:end], of which data[pos:here] has come, and says whether `_out` has it
    # in another form than it came. What it appends to `_out` otherwise goes ahead of the message.

    def _reject_message(self, data: bytes, pos: int, here: int, end: int) -> bool:
        raise ProtocolError(f"a message of type {chr(data[pos])} makes no sense here")

    def _process_describe(self, data: bytes, pos: int, here: int, end: int) -> bool:
        if end > pos + HEADER_SIZE and data[pos + HEADER_SIZE] == _PORTAL:
            self.unsynced = True
            self._outstanding.expect(replies.DESCRIBE_REPLY)
            return False
        return self._describe_statement(self._read_statement_name(data, pos, end))

    def _process_close(self, data: bytes, pos: int, here: int, end: int) -> bool:
        if end > pos + HEADER_SIZE and data[pos + HEADER_SIZE] == _PORTAL and data[end - 1] == 0:
            self.unsynced = True
            self._outstanding.expect(replies.CLOSE_REPLY)
            return False
        return self._close_statement(self._read_statement_name(data, pos, end))

    def _read_statement_name(self, data: bytes, pos: int, end: int) -> bytes:
        """Of a Describe or Close."""
        body = data[pos + HEADER_SIZE : end]
        if body[:1] != b"S" or body[-1:] != b"\0":
            raise ProtocolError(f"a message of type {chr(data[pos])} names neither statement nor portal")
        self.unsynced = True
        return body[1:-1]

    # ── the simple protocol ──────────────────────────────────────────────────────────────────

    def _process_query(self, data: bytes, pos: int, here: int, end: int) -> bool:
        if here < end:
            self.state_flags |= PROBE_FLAGS  # too long to be read: the database is asked whether it left anything
            self._expect_query(replies.QUERY_REPLY)
            return False
        text = data[pos + HEADER_SIZE : end - 1]
        hints = inspect_text(text)
        if hints.pin_flags and not self.has_pin and not self._may_forward_pin(hints.pin_flags):
            return False
        target = self._find_deallocated(hints.deallocates) if hints.deallocates else None
        if self.blocked:
            return False
        if self.pin_refusal:
            # The server fails at another text, so that its transaction fails too; the client is told why by us.
            self._expect_query(ExpectedReply(QUERY, error_instead=self._pop_refusal()))
            self._out.append(wire.query_message(REFUSED_TEXT))
            return True
        if hints.flags or hints.custom_names:
            self._record_hints(hints)
        if target is not None:
            # The client says the name that it knows; the server knows the statement by ours.
            done = partial(self._on_deallocated, hints.deallocates, target)
            self._expect_query(ExpectedReply(QUERY, statement=target, client_name=hints.deallocates, on_reply=done))
            self._out.append(wire.query_message(b'DEALLOCATE "' + target.name + b'"'))
            return True
        if hints.reset_names and self.settings_differ:
            self._expect_query(
                ExpectedReply(QUERY, flags=RESET, on_reply=partial(self.restore_settings, hints.reset_names, False))
            )
            self._pause_after_message(self._unblock_after_query)
            return False
        self._expect_query(replies.QUERY_REPLY if not hints.flags & LOCAL_SETTING else _QUERY_LOCAL)
        return False

    def _unblock_after_query(self, _: bytes) -> bytes:
        self.blocked = False
        # The ReadyForQuery of the RESET came before this entry was taken off the queue, so it did not count as idle.
        self._outstanding.idle = not self._outstanding.queue
        return b""

    def _expect_query(self, entry: ExpectedReply) -> None:
        """A Query is sent: it ends the unnamed statement, unless it is skipped with the batch that it is in."""
        self.statements.may_have_failed = True
        if self.unsynced:
            entry = copy(entry)  # it is shared, and gets an undo of its own
            self._expect_unnamed_change(entry, self.unnamed.replace_client(self._attached_server(), None))
        else:
            self.unnamed.on_query()
            self._attached_server().unnamed_body = None
            self._outstanding.expect(entry)

    # ── the extended protocol: prepared statements ───────────────────────────────────────────

    def _process_parse(self, data: bytes, pos: int, here: int, end: int) -> bool:
        name_end = data.find(b"\0", pos + HEADER_SIZE, end)
        name, body = data[pos + HEADER_SIZE : name_end], data[name_end + 1 : end]
        is_repeated = not name and body == self.unnamed.body
        if name_end < 0 or (not is_repeated and body.find(b"\0") < 0):
            raise ProtocolError("a Parse has no text")
        self.unsynced = True
        if name:
            return self._parse_named(name, body)
        if self._must_await_unnamed():
            return False
        backend, unnamed = self._attached_server(), self.unnamed
        hints = unnamed.hints if is_repeated else inspect_text(body[: body.find(b"\0")])
        if hints.pin_flags and not self.has_pin:
            if not self._may_forward_pin(hints.pin_flags):
                return False
            if self.pin_refusal:
                body = REFUSED_TEXT + b"\0\0\0"
                entry = ExpectedReply(PARSE, error_instead=self._pop_refusal())
                self._expect_unnamed_change(entry, unnamed.replace_client(backend, body))
                self._out.append(wire.parse_message(b"", body))
                return True
        if hints.deallocates and self._must_await_name(hints.deallocates, self.statements.get(hints.deallocates)):
            return False
        self._expect_unnamed_change(ExpectedReply(PARSE), unnamed.replace_client(backend, body, hints))
        return False

    def _parse_named(self, name: bytes, body: bytes) -> bool:
        backend, outstanding = self._attached_server(), self._outstanding
        known = self.statements.get(name)
        if self._must_await_name(name, known):
            return False
        if known is not None and known in backend.prepared:
            # A name that is taken: PostgreSQL refuses it, and says so better than we could.
            outstanding.expect(ExpectedReply(PARSE, statement=known, client_name=name))
            self._out.append(wire.parse_message(known.name, body))
            return True
        # What was set in this very transaction may change what names mean: nobody else shares such a text.
        scope = self.scope if not self.state_flags & SETTING else b"%d" % id(self)
        statement = self._registry.find_or_add(body, scope)
        if self._must_await_name(name, statement):
            return False
        if known is not None:  # it is refused since it is there already, unless its text is wrong
            if statement not in backend.prepared:
                self._send_parse(statement, name, hidden=True)
            outstanding.expect(ExpectedReply(PARSE, statement=statement, client_name=name))
            self._out.append(wire.parse_message(statement.name, body))
            return True

        def drop() -> None:
            self.statements.drop(name, statement)

        self.statements.define(name, statement)
        if statement not in backend.prepared:
            self._send_parse(statement, name, hidden=False)
        # It is prepared here already, by whichever client: the answer is known, and the server is not asked.
        elif outstanding.status != wire.STATUS_FAILED and not self.statements.may_have_failed:
            outstanding.expect(ExpectedReply(LOCAL_REPLY, local_reply=_PARSE_COMPLETE, on_undone=drop))
        else:
            # The transaction has failed, or may have: then nearly every text is refused. So the server is asked, with
            # the text as its unnamed statement.
            change = self.unnamed.replace_server(backend, UNKNOWN_STATEMENT)
            self._expect_unnamed_change(ExpectedReply(PARSE), change, drop)
            self._out.append(wire.parse_message(b"", body))
        return True

    def _process_bind(self, data: bytes, pos: int, here: int, end: int) -> bool:
        backend = self._attached_server()
        portal_end = data.find(b"\0", pos + HEADER_SIZE, here)
        name_end = data.find(b"\0", portal_end + 1, here)
        if portal_end < 0 or name_end < 0:
            raise ProtocolError("a Bind names no portal and statement")
        self.unsynced = True
        name = data[portal_end + 1 : name_end]
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
        target = None
        if hints.deallocates:
            target = self._find_deallocated(hints.deallocates)
            if self.blocked:
                return False
        if hints is not NO_HINTS or self.tracked_portals:
            self._track_portal(data[pos + HEADER_SIZE : portal_end], hints, target)
        if self.pin_refusal:
            # A statement that no server has makes the Bind fail as it must.
            server_name = self._registry.missing_name
            entry = ExpectedReply(BIND, error_instead=self._pop_refusal())
        elif target is not None:
            # A portal runs the text that it was bound to: a DEALLOCATE with the server's name is parsed for it.
            self._expect_unnamed_change(
                ExpectedReply(PARSE, hidden=True), self.unnamed.replace_server(backend, UNKNOWN_STATEMENT)
            )
            self._out.append(wire.parse_message(b"", b'DEALLOCATE "' + target.name + b'"\0\0\0'))
            self._record_hints(hints)
            self._record_bind(hints.flags)
            server_name, entry = b"", ExpectedReply(BIND, statement=target, client_name=hints.deallocates)
        elif statement is None:
            if name:
                self._record_bind(0)
            else:
                self._ensure_unnamed()
            self._outstanding.expect(replies.BIND_REPLY)
            return False
        elif statement.stale:
            server_name = self._registry.missing_name
            entry = ExpectedReply(BIND, error_instead=pg_errors.STALE_PLAN)
        else:
            if statement in backend.prepared:
                backend.prepared.move_to_end(statement)  # the ones used least recently are closed first
            elif self._ensure_prepared(statement, name):
                return False
            self._record_hints(hints)
            self._record_bind(hints.flags)
            server_name, entry = statement.name, ExpectedReply(BIND, statement=statement, client_name=name)
        self._outstanding.expect(entry)
        # Portal and values are the client's own; only the statement's name, and so the length, differ.
        length = end - pos - 1 + len(server_name) - len(name)
        self._out.append(wire.HEADER.pack(wire.BIND, length) + data[pos + HEADER_SIZE : portal_end + 1] + server_name)
        self._out.append(data[name_end:here])
        return True

    def _describe_statement(self, name: bytes) -> bool:
        backend, outstanding = self._attached_server(), self._outstanding
        statement = self.statements.get(name) if name else None
        if self._must_await_name(name, statement):
            return False
        if statement is None:
            if not name:
                self._ensure_unnamed()
            outstanding.expect(replies.DESCRIBE_REPLY)
            return False
        if statement.stale:
            outstanding.expect(ExpectedReply(DESCRIBE, error_instead=pg_errors.STALE_PLAN))
            self._out.append(wire.describe_statement_message(self._registry.missing_name))
        else:
            if statement not in backend.prepared and self._ensure_prepared(statement, name):
                return False
            outstanding.expect(ExpectedReply(DESCRIBE, statement=statement, client_name=name))
            self._out.append(wire.describe_statement_message(statement.name))
        return True

    def _close_statement(self, name: bytes) -> bool:
        if not name:
            if self._must_await_unnamed():
                return False
            self._expect_unnamed_change(
                ExpectedReply(CLOSE), self.unnamed.replace_client(self._attached_server(), None)
            )
            return False
        if self._must_await_name(name):
            return False
        # Only the name goes: the server keeps the statement, for this client's next Parse or another's.
        statement = self.statements.pop(name, None)
        self.statements.mark_changed(name)
        if statement is None:
            self._outstanding.expect(replies.CLOSE_REPLY)
            return False
        self._outstanding.expect(
            ExpectedReply(
                LOCAL_REPLY, local_reply=_CLOSE_COMPLETE, on_undone=lambda: self.statements.define(name, statement)
            )
        )
        return True

    # ── statements on the server ─────────────────────────────────────────────────────────────

    def _ensure_prepared(self, statement: PreparedStatement, name: bytes) -> bool:
        """See that the server has the statement; True if its answer has to be waited for: who knows the shape of a
        result does not ask again, so it is compared when another connection prepares the text anew."""
        if statement in self._attached_server().prepared:
            return False
        self._send_parse(statement, name, hidden=True)
        if statement.result_shape is None:
            return False
        self.blocked = True
        self._outstanding.expect(
            ExpectedReply(
                DESCRIBE,
                hidden=True,
                on_reply=lambda described: self._compare_result_shape(statement, described),
                on_undone=self._unblock,
            )
        )
        self._out += (wire.describe_statement_message(statement.name), _FLUSH)
        return True

    def _compare_result_shape(self, statement: PreparedStatement, described: bytes) -> bytes:
        self.blocked = False
        for kind, body in wire.split_messages(described):
            if kind in (wire.ROW_DESCRIPTION, wire.NO_DATA):
                if statement.result_shape != wire.result_shape(wire.message(kind, body)):
                    self._registry.retire(statement)
        return b""

    def _send_parse(self, statement: PreparedStatement, name: bytes, *, hidden: bool) -> None:
        prepared = self._attached_server().prepared
        # What is sent is taken for done at once, and undone if the server refuses or skips it.
        while len(prepared) >= MAX_PREPARED:
            old, _ = prepared.popitem(last=False)
            self._outstanding.expect(
                ExpectedReply(CLOSE, hidden=True, on_undone=partial(prepared.__setitem__, old, None))
            )
            self._out.append(wire.close_statement_message(old.name))
            self.statements.mark_changed(old.name)
        prepared[statement] = None
        self.statements.mark_changed(statement.name)

        def undo() -> None:
            prepared.pop(statement, None)
            if not hidden:
                self.statements.drop(name, statement)

        self._outstanding.expect(
            ExpectedReply(PARSE, hidden=hidden, statement=statement, client_name=name, on_undone=undo)
        )
        self._out.append(wire.parse_message(statement.name, statement.body))

    def _ensure_unnamed(self) -> None:
        """See that the server has this client's unnamed statement, or none if it has none."""
        backend, unnamed = self._attached_server(), self.unnamed
        if unnamed.body is None:
            if backend.unnamed_body is not None:  # another client's: the server is to say that there is none
                self._expect_unnamed_change(ExpectedReply(CLOSE, hidden=True), unnamed.replace_server(backend, None))
                self._out.append(wire.close_statement_message(b""))
            return
        hints = unnamed.hints
        self._record_hints(hints)
        self._record_bind(hints.flags)
        # By identity, so this client's own: another's equal text may have been parsed under other settings.
        if backend.unnamed_body is not unnamed.body:
            self._expect_unnamed_change(
                ExpectedReply(PARSE, hidden=True), unnamed.replace_server(backend, unnamed.body)
            )
            self._out.append(wire.parse_message(b"", unnamed.body))

    def _find_deallocated(self, name: bytes) -> PreparedStatement | None:
        """The statement that a text gives up, if it is one by the protocol; if `blocked` afterwards, that is to be
        seen."""
        statement, outstanding = self.statements.get(name), self._outstanding
        if self._must_await_name(name, statement) or statement is None:
            return None
        if statement not in self._attached_server().prepared:
            if outstanding.queue:
                self._await_answers()
                return None
            if outstanding.status == wire.STATUS_FAILED:
                return None  # the text is refused whatever it names
            # The server is to have something of that name; what it is does not matter any more.
            outstanding.expect(ExpectedReply(PARSE, hidden=True))
            self._out.append(wire.parse_message(statement.name, b"\0\0\0"))
        if len(self.deallocated) < MAX_TRACKED:
            self.deallocated[statement.name] = name
        return statement

    def _on_deallocated(self, name: bytes, statement: PreparedStatement, _: bytes) -> bytes:
        self.statements.drop(name, statement)
        self._attached_server().prepared.pop(statement, None)
        return b""

    # ── the extended protocol: portals ───────────────────────────────────────────────────────

    def _track_portal(self, portal: bytes, hints: Hints, target: PreparedStatement | None) -> None:
        self.tracked_portals.pop(portal, None)
        if (hints.flags & DISCARD or hints.reset_names) and len(self.tracked_portals) < MAX_TRACKED:
            self.tracked_portals[portal] = hints, target

    def _execute_tracked(self, body: bytes) -> bool:
        """Whether what a portal does when it is executed has to be known of, and is expected here."""
        found = self.tracked_portals.get(body[: body.find(b"\0")])
        if found is None:
            return False
        hints, target = found
        # They were recorded at the Bind too, but take effect now, perhaps in a later batch.
        self._record_hints(hints)
        if target is not None:
            done = partial(self._on_deallocated, hints.deallocates, target)
            self._outstanding.expect(
                ExpectedReply(EXECUTE, statement=target, client_name=hints.deallocates, on_reply=done)
            )
            return True
        if not hints.reset_names or not self.settings_differ:
            return False
        # DISCARD ALL has ended its transaction, so there is none to put anything into.
        back = partial(self.restore_settings, hints.reset_names, not hints.flags & DISCARD)
        self._outstanding.expect(ExpectedReply(EXECUTE, flags=RESET, on_reply=back))
        self._pause_after_message(self._unblock_after_execute)
        return True

    def _unblock_after_execute(self, _: bytes) -> bytes:
        self.blocked = False
        return b""

    def _pause_after_message(self, on_answer: Callable[[bytes], bytes]) -> None:
        """The message at hand has to be answered before the next one goes."""
        self._pause_after = True
        self._outstanding.expect(ExpectedReply(LOCAL_REPLY, on_reply=on_answer, on_undone=self._unblock))

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
        # A tag says SET for a SET LOCAL too. It is taken for local only if all that was bound since the Sync is.
        self._sets_locally = bool(flags & LOCAL_SETTING) and (self._sets_locally or not self._has_bound)
        self._has_bound = True

    # ── waiting for answers ──────────────────────────────────────────────────────────────────

    def _must_await_name(self, name: bytes, statement: PreparedStatement | None = None) -> bool:
        """Whether the message has to wait until it is known what a name means."""
        outstanding = self._outstanding
        if not outstanding.queue:  # nothing is owed: what was sent has become of it whatever it did
            self.statements.on_all_answered()
            self.unnamed.settle()
        if not self.statements.is_uncertain(name, statement):
            return False
        self._await_answers()
        return True

    def _await_answers(self) -> None:
        self.blocked = True
        self._outstanding.expect(ExpectedReply(LOCAL_REPLY, on_reply=self._on_all_answered, on_undone=self._unblock))
        self._out.append(_FLUSH)

    def _on_all_answered(self, _: bytes) -> bytes:
        self.statements.on_all_answered()
        self.unnamed.settle()
        self.blocked = False
        return b""

    def _expect_unnamed_change(
        self, entry: ExpectedReply, change: UnnamedChange, also_undo: Callable[[], None] | None = None
    ) -> None:
        """A message that changes the unnamed statement is sent."""
        backend, outstanding = self._attached_server(), self._outstanding

        def undo() -> None:
            self.unnamed.undo_change(change, backend, skipped=outstanding.undoing_skipped)
            if also_undo is not None:
                also_undo()

        entry.on_undone = undo
        self.statements.unnamed_parsed = True
        outstanding.expect(entry)

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

    # ── waiting for a pin ────────────────────────────────────────────────────────────────────

    def _may_forward_pin(self, pin_flags: int) -> bool:
        """Whether a text that pins its connection may go on, to the server or to its refusal; else it waits."""
        if self.pin_refusal:
            return True
        if self._request_pin():
            self.has_pin = True
            return True
        self.blocked = self.awaits_pin = True
        self.wanted_pins = pin_flags
        return False

    def _unblock(self) -> None:
        self.blocked = False

    def resolve_pin(self, refusal: bytes = b"") -> None:
        """What `_may_forward_pin` waited for: a slot, or the error that says that there is none."""
        self.blocked = self.awaits_pin = False
        self.has_pin, self.pin_refusal = not refusal, refusal

    def _pop_refusal(self) -> bytes:
        refusal, self.pin_refusal = self.pin_refusal, b""
        return refusal


_UNCHANGED_HANDLERS: dict[int, Callable[[Frontend, bytes, int, int], None]] = {
    EXECUTE: Frontend._process_execute,
    SYNC: Frontend._process_sync,
    FLUSH: Frontend._pass_unanswered,
    COPY_DATA: Frontend._pass_unanswered,
    COPY_DONE: Frontend._process_copy_end,
    COPY_FAIL: Frontend._process_copy_end,
    FUNCTION_CALL: Frontend._process_function_call,
}
_HANDLERS: dict[int, Callable[[Frontend, bytes, int, int, int], bool]] = {
    QUERY: Frontend._process_query,
    PARSE: Frontend._process_parse,
    BIND: Frontend._process_bind,
    DESCRIBE: Frontend._process_describe,
    CLOSE: Frontend._process_close,
    PASSWORD: Frontend._reject_message,
}
