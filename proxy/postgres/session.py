"""A client's session: a state machine over protocol messages (PostgreSQL documentation, 54.2 Message Flow).

Decisions are synchronous, and nothing here does I/O. `process_requests` takes what the client sent and gives what its
server gets, `process_replies` the other way round; what the session injects for the server besides is fetched with
`pop_injected`. Whoever calls them does the I/O, and looks afterwards, if `needs_attention`, whether the server is
`releasable` and whether there is a `fatal_error`; no message of the client's may go on while it is `blocked`.

When nothing is owed and no transaction is open, the server is given back, but not before the session has learnt what
the transaction left behind that outlives it:

==============  ======================================================  ================================================
state           what the server does                                    goes on to
==============  ======================================================  ================================================
detached        (none is attached)                                      set up, serving (it is as wanted)
set up          it is set to the client's settings (SET, RESET)         serving, broken (it refused them)
serving         the client's messages                                   serving, probed, releasable, cleaned up
probed          it is asked what it holds: settings to carry, a         releasable, pinned, broken (no slot is left)
                temporary table, LISTEN, a lock … that pin it
pinned          the client's messages; it is no one else's              serving, cleaned up
cleaned up      the client has gone: COPY and Sync are ended, then      releasable, broken (that did not help)
                ROLLBACK (step 1), then DISCARD ALL (step 2)
releasable      nothing                                                 detached
broken          it is closed, and `fatal_error` ends the client
==============  ======================================================  ================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from proxy.postgres import pg_errors, session_state, wire
from proxy.postgres.auth.startup import (
    APPLICATION_NAME,
    CLIENT_ENCODING,
    Settings,
    StartupMessage,
    fake_pid,
    other_database,
    share_settings,
)
from proxy.postgres.frontend import Frontend
from proxy.postgres.outstanding import ExpectedReply, OutstandingReplies
from proxy.postgres.server_state import ServerState
from proxy.postgres.session_state import COMPUTED_SETTING, DISCARD, LIBRARY, PROBE_FLAGS, SCHEMA, SETTING
from proxy.postgres.statement_registry import PreparedStatement, StatementRegistry
from proxy.postgres.wire import STATUS_IDLE

SCOPE_SETTINGS = (b"search_path", b"role", b"session_authorization")  # they decide whose tables a name means
NOTHING_TO_SET = (b"", b"")
SESSION_MODE = 1 << 30  # a pin that is no state: the client keeps its server until it leaves
# Fails whatever the transaction did that no Sync has ended yet: a portal that nobody has.
_FAILING_EXECUTE = wire.message(wire.EXECUTE, b"outrigger_none\0\0\0\0\0")
_COPY_FAIL = wire.message(wire.COPY_FAIL, b"the client has left\0")
_SYNC = wire.message(wire.SYNC)
_FLUSH = wire.message(wire.FLUSH)


class Session:
    """`settings` are what the client has set, `shown_parameters` what it was told (ParameterStatus), `pinned` the
    flags of its state that no other connection has. `announced_pid` is what it was told is the process that serves it.

    `request_pin` asks for a slot among the connections that may be pinned (False: none is free now), `release_pin`
    gives it back; with `keeps_server` the session has its connection for itself anyway. `failed`: the transaction has
    seen an error; `ordinary`: its last transaction left nothing to see to when it had ended, and nothing but requests
    and answers of the usual kind has come since (`Frontend.forward_plain`, `OutstandingReplies.pass_plain_answer`), so
    that nothing is to be seen to when this one has ended either; `client_gone`: only cleaning up is left to do.
    """

    def __init__(
        self,
        number: int,
        startup: StartupMessage,
        shown_parameters: Mapping[bytes, bytes],
        registry: StatementRegistry,
        *,
        request_pin: Callable[[], bool],
        release_pin: Callable[[], None],
        keeps_server: bool = False,
    ) -> None:
        self.number = number
        self.announced_pid = fake_pid(number)
        self.startup = startup
        self.shown_parameters = share_settings(shown_parameters)
        self.outstanding = OutstandingReplies(self)
        self.frontend = Frontend(registry, self.outstanding, request_pin=request_pin, has_pin=keeps_server)
        self._registry = registry
        self._request_pin = request_pin
        self._release_pin = release_pin
        encoding = startup.encoding or shown_parameters.get(b"server_encoding", b"UTF8").decode()
        scope = other_database(startup.pool_key), dict(startup.pool_key).get("search_path", "")
        self.frontend.scope = self._base_scope = "\0".join(scope).encode("utf-8", "surrogateescape")
        self.frontend.restore_settings = self._restore_settings
        own_name = startup.application_name.encode("utf-8", "surrogateescape")
        self._own_settings = share_settings({APPLICATION_NAME: own_name, CLIENT_ENCODING: encoding.encode()})
        self.settings: Settings = self._own_settings
        self._mode_pin = SESSION_MODE if keeps_server else 0
        self.pinned = self._mode_pin
        self.backend: ServerState | None = None
        self.client_gone = False
        self.releasable = False
        self.fatal_error = b""
        self.needs_attention = False
        self.ordinary = False
        self.failed = False
        self._injected = b""
        self._cleanup_step = 0
        self._just_set_up = False
        self._probing = 0  # what the database was asked about and has not told yet

    def __repr__(self) -> str:
        held = f", pinned by {self.pin_reasons}" if self.pinned & ~SESSION_MODE else ""
        return f"<Session {self.number} {self.backend or 'unlinked'}{held}>"

    @property
    def pin_reasons(self) -> str:
        """What its state is that keeps its connection, in words."""
        return session_state.describe_pins(self.pinned)

    @property
    def blocked(self) -> bool:
        return self.frontend.blocked

    @property
    def has_client_work(self) -> bool:
        """Whether the server does something for the client, and not for us alone: then there is what to cancel."""
        return any(not entry.hidden for entry in self.outstanding.queue)

    def pop_injected(self) -> bytes:
        """What the server gets besides the client's messages."""
        injected, self._injected = self._injected, b""
        self.needs_attention = False
        return injected

    # ── a server ─────────────────────────────────────────────────────────────────────────────

    def attach_server(self, backend: ServerState, *, always: bool = False) -> tuple[bytes, bytes]:
        """This server from now on: what it gets ahead of all else, and what the client is told.

        With `always` it is reset whatever is known of it, if another client had it before.
        """
        self.backend = self.frontend.backend = backend
        # Whether a RESET on this server leads elsewhere than on a connection of the client's own.
        self.frontend.settings_differ = (
            self._own_settings is not backend.reset_values and self._own_settings != backend.reset_values
        )
        self.releasable = False
        # Settings are replaced and never changed, so that the usual case is a comparison of identities.
        if backend.applied is self.settings and backend.reported is self.shown_parameters and not always:
            backend.last_session = self.number
            return NOTHING_TO_SET
        self.ordinary = False
        text, sets = b"", False
        # RESET ALL leaves role and session_authorization as they are; resetting the latter resets both.
        if always and backend.last_session != self.number:
            text = b"RESET SESSION AUTHORIZATION;RESET ALL;"
            backend.applied = backend.reset_values
        backend.last_session = self.number
        if backend.applied is not self.settings and backend.applied != self.settings:
            changes, sets = session_state.settings_query(backend.applied, self.settings, backend.custom_parameters)
            text += changes
            if not changes:
                backend.applied = self.settings
        if not text:
            if backend.reported is self.shown_parameters:
                return b"", b""
            if backend.reported == self.shown_parameters:
                self.shown_parameters = backend.reported
                return b"", b""
            return b"", self._show_parameters(backend)
        # A SET can fail, so the client's messages wait for it; a RESET cannot, and they follow at once.
        self.frontend.blocked = sets
        self._forget_unnamed()
        self.outstanding.expect(ExpectedReply(wire.QUERY, hidden=True, on_reply=self._on_set_up))
        return wire.query_message(text), b""

    def detach_server(self) -> None:
        """The server goes to somebody else."""
        self.backend = self.frontend.backend = None
        self.releasable = False
        self.failed = False

    def _on_set_up(self, answer: bytes) -> bytes:
        backend = self._attached_server()
        # If messages waited for it, nothing of the client's has been sent: the server is not free again just because
        # nothing is owed.
        self._just_set_up, self.frontend.blocked = self.frontend.blocked, False
        for kind, body in wire.split_messages(answer):
            if kind == wire.ERROR:
                self.needs_attention = True
                self.fatal_error = pg_errors.settings_not_restored(body)
                return b""
        backend.applied = self.settings
        backend.record_custom_parameters(self.settings)
        return self._show_parameters(backend)

    def _show_parameters(self, backend: ServerState) -> bytes:
        """The ParameterStatus messages that the client lacks."""
        changes = session_state.parameter_changes(backend.reported, self.shown_parameters)
        self.shown_parameters = backend.reported
        return changes

    # ── both ways ────────────────────────────────────────────────────────────────────────────

    def process_requests(self, data: bytes) -> bytes:
        """Raises ProtocolError."""
        self.releasable = self.ordinary = False
        requests = self.frontend.process_requests(data)
        if self.outstanding.idle:
            if self.frontend.awaits_pin:
                self.releasable = self.needs_attention = True  # it waits for a slot, not for this server
            else:
                self._on_idle()
        return requests

    def process_replies(self, data: bytes) -> bytes:
        """Raises ValueError if the server does not speak the protocol."""
        self.ordinary = False
        outstanding = self.outstanding
        replies = outstanding.process_replies(data)
        if self.client_gone and outstanding.copying:
            # The COPY began only after its client had left: it is ended like one under way.
            self._injected += self._fail_copy()
            self.needs_attention = True
        if outstanding.idle:
            self._on_idle()
        return replies

    def _on_idle(self) -> None:
        """Nothing is owed: what comes next, or the server is releasable."""
        if self.fatal_error or self.backend is None:
            return
        if self._just_set_up:  # it has its server as it wants it, and nothing sent yet
            self._just_set_up = False
            if not self.client_gone:
                return
        outstanding = self.outstanding
        if outstanding.error_count:
            self.failed, outstanding.error_count = True, 0
        if outstanding.status != STATUS_IDLE:
            # The transaction goes on when the client does; if nobody is there to end it, it is rolled back.
            if self.client_gone:
                self._send_cleanup(1, b"ROLLBACK")
            return
        frontend = self.frontend
        if frontend.tracked_portals:
            frontend.tracked_portals.clear()
        if self.client_gone:
            if frontend.state_flags or self.pinned:
                self._send_cleanup(2, b"DISCARD ALL")
            else:
                self.release_pins()
                self.releasable = self.needs_attention = True
            return
        # The database is asked only here, between two transactions: inside one, the answer might be rolled back.
        if frontend.state_flags:
            if frontend.state_flags & SCHEMA:
                self._registry.on_schema_change()
            if frontend.state_flags & PROBE_FLAGS:
                self._send_probe(frontend.state_flags & PROBE_FLAGS)
                return
            frontend.state_flags = 0
        if frontend.has_pin and not self.pinned:
            # A text looked as if it would pin the connection, and then it did not.
            frontend.has_pin = False
            self._release_pin()
        self.releasable = self.needs_attention = self.ordinary = not self.pinned

    # ── what the transaction left behind ─────────────────────────────────────────────────────

    def _send_probe(self, flags: int) -> None:
        """Ask the database itself; a text only hints, and its transaction may have been rolled back."""
        text = session_state.probe_query(flags, self.frontend.custom_names)
        self.frontend.state_flags, self._probing = 0, flags
        self._forget_unnamed()
        if flags & SETTING and self._own_settings != self._attached_server().reset_values:
            # A RESET has led elsewhere than on a connection of its own: see `_adopt_settings`.
            self.frontend.blocked = True
        self.outstanding.expect(
            ExpectedReply(wire.QUERY, hidden=True, on_reply=lambda answer: self._on_probe_answer(flags, answer))
        )
        self._injected += wire.query_message(text)
        self.needs_attention = True

    def _on_probe_answer(self, flags: int, answer: bytes) -> bytes:
        if self.client_gone:
            return b""  # whatever it is, it is to be cleaned
        backend = self._attached_server()
        self.frontend.blocked, self._probing = False, 0
        if any(kind == wire.ERROR for kind, _ in wire.split_messages(answer)):
            held, pinned = COMPUTED_SETTING, self.pinned  # it would not say, so nobody else gets this one
        else:
            # What was not asked about is as it was; what was, is what the answer says and nothing else.
            settings, held = session_state.parse_probe(answer)
            pinned = self.pinned & ~flags
            if flags & SETTING:
                self._adopt_settings(backend, settings)
        self._set_pins(pinned | held)
        return b""

    def _adopt_settings(self, backend: ServerState, settings: dict[bytes, bytes]) -> None:
        # It is always in the answer; only another user than the connection's own is something to carry.
        if settings.get(b"session_authorization") == backend.user:
            del settings[b"session_authorization"]
        backend.applied = share_settings({**backend.reset_values, **settings})
        backend.record_custom_parameters(settings)
        # RESET leads to what the connection was opened with; a client of its own would be back at its own.
        self.settings = share_settings({**self._own_settings, **settings})
        named = (settings[name] for name in SCOPE_SETTINGS if name in settings)
        self.frontend.scope = b"\0".join((self._base_scope, *named))

    def _set_pins(self, pinned: int) -> None:
        self.pinned = pinned | self._mode_pin
        if pinned and not self.frontend.has_pin:
            # Too late to wait for a slot: the state is there, and others wait for this server. So the client ends.
            self.frontend.has_pin = self._request_pin()
            if not self.frontend.has_pin:
                self.fatal_error = pg_errors.pin_limit_reached(pinned, "FATAL")
                self.needs_attention = True

    def release_pins(self) -> None:
        """Whatever its connection held is no more."""
        if self.frontend.has_pin and not self._mode_pin:
            self.frontend.has_pin = False
            self._release_pin()
        self.pinned = 0

    # ── what the server says besides its replies (ReplyObserver) ─────────────────────────────

    def on_parameter_status(self, name: bytes, value: bytes, *, shown: bool, by_reset: bool) -> bytes:
        backend = self._attached_server()
        backend.record_reported(name, value)
        # During a query of ours the client hears nothing; `_show_parameters` tells it what differs in the end.
        if not shown:
            return b""
        self.frontend.state_flags |= SETTING
        # A RESET led to the server's value; the client is told its own, which is put back right away.
        back = by_reset and value == backend.reset_values.get(name) != self._own_settings.get(name)
        shown_value = self._own_settings[name] if back else value
        self.shown_parameters = share_settings({**self.shown_parameters, name: shown_value})
        return wire.parameter_status(name, self._own_settings[name]) if back else b""

    def rewrite_notification(self, message: bytes) -> bytes:
        """The client's own NOTIFY comes from the process that it was told is its own: so drivers know theirs."""
        at, end = wire.HEADER_SIZE, wire.HEADER_SIZE + 4
        if int.from_bytes(message[at:end], "big") != self._attached_server().pid:
            return message
        return message[:at] + self.announced_pid.to_bytes(4, "big") + message[end:]

    def on_command_tag(self, flags: int, tag: bytes) -> None:
        frontend, backend = self.frontend, self._attached_server()
        if flags == DISCARD or tag.startswith(b"DEALLOCATE"):
            # The tag of one statement's DEALLOCATE says no name: `Frontend._on_deallocated` knows which it was.
            if tag == b"DISCARD ALL":
                backend.on_discard_all()
                frontend.statements.clear()
                self._set_pins(self.pinned & ~COMPUTED_SETTING)
            elif tag == b"DEALLOCATE ALL":
                backend.prepared.clear()
                frontend.statements.clear()
            flags = PROBE_FLAGS if flags == DISCARD else flags
        if flags & SCHEMA:
            self._registry.on_schema_change()
        if flags & LIBRARY:
            self._set_pins(self.pinned | LIBRARY)
        frontend.state_flags |= flags & (PROBE_FLAGS | SCHEMA)

    def translate_error(self, error: bytes) -> bytes:
        """An error that says one of our names of statements says the client's."""
        if self._registry.prefix not in error:
            return error
        for ours, theirs in self.frontend.deallocated.items():
            error = error.replace(ours, theirs)
        # An error may name another than the one that was used: it is looked for among all of them.
        for theirs, statement in self.frontend.statements.items():
            error = error.replace(statement.name, theirs)
        return error

    def on_stale_plan(self, statement: PreparedStatement) -> None:
        self._registry.retire(statement)

    # ── a RESET ──────────────────────────────────────────────────────────────────────────────

    def _restore_settings(self, names: tuple[bytes, ...], extended: bool, _: bytes) -> bytes:
        """A RESET has led to what the connection was opened with; on a connection of its own the client would be back
        at what it asked for. In the extended protocol that goes into the transaction at hand, so that it ends with
        it."""
        reset_values = self._attached_server().reset_values
        own = {name: self._own_settings[name] for name in names if self._own_settings[name] != reset_values[name]}
        if self.client_gone or not own:
            return b""
        if extended:
            for entry, message in restore_messages(self._registry.prefix + b"own", own, self._on_restored):
                self.outstanding.expect(entry)
                self._injected += message
            self._injected += _FLUSH
        else:
            self._forget_unnamed()
            self.outstanding.expect(ExpectedReply(wire.QUERY, hidden=True, on_reply=self._on_restored))
            self._injected += wire.query_message(b";".join(map(session_state.set_statement, own.items())))
        self.needs_attention = True
        return b""

    def _on_restored(self, _: bytes) -> bytes:
        return self._show_parameters(self._attached_server())

    # ── the client has left ──────────────────────────────────────────────────────────────────

    def begin_cleanup(self) -> bytes | None:
        """The client is gone: what the server gets to be rid of it, None if only closing helps. If replies are owed
        afterwards, its query is for the caller to cancel."""
        self.client_gone, self.ordinary = True, False
        self.frontend.blocked = False
        # The answer to a probe under way is not waited for: what was asked about counts as if it were there.
        self.frontend.state_flags |= self._probing
        # Half a message cannot be taken back, and a library cannot be unloaded.
        if self.frontend.mid_message or self.pinned & LIBRARY or self.fatal_error:
            return None
        requests = b""
        if self.outstanding.copying:
            requests += self._fail_copy()
        # The begun batch has to end with a Sync, or the server would wait for one for ever.
        if self.frontend.unsynced:
            # On a connection of its own the client's work would be rolled back; a Sync alone commits it.
            self.outstanding.expect(ExpectedReply(wire.EXECUTE))
            requests += _FAILING_EXECUTE + _SYNC
            self.frontend.unsynced = False
            self.outstanding.expect_sync()
        if self.outstanding.idle:
            self._on_idle()
        return requests + self.pop_injected()

    def _fail_copy(self) -> bytes:
        self.outstanding.on_copy_end()
        # In the extended protocol a COPY that fails needs a Sync of ours: those before its end were swallowed.
        if self.outstanding.queue[0].kind != wire.EXECUTE:
            return _COPY_FAIL
        self.frontend.unsynced = False
        self.outstanding.expect_sync()
        return _COPY_FAIL + _SYNC

    def _send_cleanup(self, step: int, text: bytes) -> None:
        """Each step is tried once: what it did not mend, it would not mend the next time."""
        self.needs_attention = True
        if self._cleanup_step >= step:
            self.fatal_error = pg_errors.cleanup_failed(text.decode())
            return
        self._cleanup_step = step
        self._forget_unnamed()
        on_reply = self._on_discard_all if step == 2 else None
        self.outstanding.expect(ExpectedReply(wire.QUERY, hidden=True, on_reply=on_reply))
        self._injected += wire.query_message(text)

    def _on_discard_all(self, answer: bytes) -> bytes:
        if any(kind == wire.ERROR for kind, _ in wire.split_messages(answer)):
            return b""  # a late cancel has hit it: nothing is clean, and `_on_idle` finds that out
        self._attached_server().on_discard_all()
        self.frontend.state_flags = 0
        self.release_pins()
        return b""

    def _forget_unnamed(self) -> None:
        """A Query of ours ends the server's unnamed statement: the client's is parsed again."""
        self._attached_server().unnamed_body = None
        self.frontend.unnamed.settle()

    def _attached_server(self) -> ServerState:
        assert self.backend is not None
        return self.backend


def restore_messages(
    name: bytes, own: Settings, on_reply: Callable[[bytes], bytes]
) -> Iterator[tuple[ExpectedReply, bytes]]:
    """SETs in the extended protocol: the reply to expect for each message, and the message. `name` is that of a
    statement and a portal that nobody has."""
    for each in own.items():
        yield (
            ExpectedReply(wire.PARSE, hidden=True),
            wire.parse_message(name, session_state.set_statement(each) + b"\0\0\0"),
        )
        bind = wire.message(wire.BIND, name + b"\0" + name + b"\0\0\0\0\0\0\0")
        yield ExpectedReply(wire.BIND, hidden=True), bind
        yield ExpectedReply(wire.EXECUTE, hidden=True), wire.message(wire.EXECUTE, name + b"\0\0\0\0\0")
        yield ExpectedReply(wire.CLOSE, hidden=True), wire.message(wire.CLOSE, b"P" + name + b"\0")
        yield ExpectedReply(wire.CLOSE, hidden=True, on_reply=on_reply), wire.close_statement_message(name)
