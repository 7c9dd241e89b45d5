"""A client's session: a state machine over protocol messages.

Decisions are synchronous. `requests` takes what the client sent and gives what its server gets, `replies` the
other way round; what they have for the other side besides is taken with `ahead` (for the client) and `behind`
(for the server). Whoever calls them does the I/O, and asks afterwards whether the server is `free`, whether the
session is `broken`, and whether the client's next messages may be taken (`hold`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from proxy.postgres import session_state, wire
from proxy.postgres.auth.startup import APPLICATION_NAME, CLIENT_ENCODING, Settings, Startup, fake_pid, other_database
from proxy.postgres.frontend import Frontend
from proxy.postgres.outstanding import ExpectedReply, OutstandingReplies
from proxy.postgres.pins import no_slot
from proxy.postgres.server_state import ServerState
from proxy.postgres.session_state import COMPUTED_SETTING, DISCARD, LIBRARY, PROBE_FLAGS, SCHEMA, SETTING
from proxy.postgres.statement_registry import PreparedStatement, StatementRegistry


def restore_messages(
    name: bytes, own: Settings, done: Callable[[bytes], bytes]
) -> Iterator[tuple[ExpectedReply, bytes]]:
    """SETs in the extended protocol: what is owed for each message, and the message. `name` is that of a statement and
    a portal that nobody has."""
    for each in own.items():
        yield (
            ExpectedReply(wire.PARSE, skip=True),
            wire.parse_message(name, session_state.set_statement(each) + b"\0\0\0"),
        )
        yield ExpectedReply(wire.BIND, skip=True), wire.message(wire.BIND, name + b"\0" + name + b"\0\0\0\0\0\0\0")
        yield ExpectedReply(wire.EXECUTE, skip=True), wire.message(wire.EXECUTE, name + b"\0\0\0\0\0")
        yield ExpectedReply(wire.CLOSE, skip=True), wire.message(wire.CLOSE, b"P" + name + b"\0")
        yield ExpectedReply(wire.CLOSE, skip=True, done=done), wire.close_statement_message(name)


SCOPE_SETTINGS = (b"search_path", b"role", b"session_authorization")  # whose tables a name means
SESSION_MODE = 1 << 30  # a pin that is no state: the client keeps its server until it leaves
# Fails whatever the transaction did that no Sync has ended yet: a portal that nobody has.
_FAILING_EXECUTE = wire.message(wire.EXECUTE, b"outrigger_none\0\0\0\0\0")
_COPY_FAIL = wire.message(wire.COPY_FAIL, b"the client has left\0")
_SYNC = wire.message(wire.SYNC)
_FLUSH = wire.message(wire.FLUSH)


class Session:
    """`settings` is what the client has set, `params` what it was told (ParameterStatus), `pinned` what of its
    state no other connection has. `ask` is for a slot among the connections that may be held so (False: none is
    left), `give_up` gives it back; with `keep` the session has its connection for itself anyway."""

    def __init__(
        self,
        number: int,
        startup: Startup,
        params: Mapping[bytes, bytes],
        statements: StatementRegistry,
        *,
        ask: Callable[[], bool],
        give_up: Callable[[], None],
        keep: bool = False,
    ) -> None:
        self.number = number
        self.announced_pid = fake_pid(number)  # what its client was told is the process that serves it
        self.startup = startup
        self.shown_parameters = params
        self.outstanding = OutstandingReplies(self)
        self.frontend = Frontend(statements, self.outstanding, ask=ask, slot=keep)
        self._registry = statements
        self._request_pin = ask
        self._release_pin = give_up
        encoding = startup.encoding or params.get(b"server_encoding", b"UTF8").decode()
        scope = other_database(startup.key), dict(startup.key).get("search_path", "")
        self.frontend.scope = self._base_scope = "\0".join(scope).encode("utf-8", "surrogateescape")
        self.frontend.restore_settings = self._restore_settings
        self._own_settings: Settings = {
            APPLICATION_NAME: startup.application_name.encode("utf-8", "surrogateescape"),
            CLIENT_ENCODING: encoding.encode(),
        }
        self.settings: Settings = self._own_settings
        self.pinned = SESSION_MODE if keep else 0
        self._mode_pin = self.pinned
        self.backend: ServerState | None = None
        self.client_gone = False
        self.releasable = False
        self.fatal_error = b""
        self.needs_attention = False  # the owner of the server has to look
        self.failed = False  # the transaction has seen an error
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
    def busy(self) -> bool:
        """Whether the server owes replies."""
        return bool(self.outstanding.queue)

    @property
    def has_client_work(self) -> bool:
        """Whether the server does something for the client, and not for us alone: then there is what to cancel."""
        return any(not entry.hidden for entry in self.outstanding.queue)

    def pop_injected(self) -> bytes:
        """What the server gets besides."""
        sent, self._injected = self._injected, b""
        self.needs_attention = False
        return sent

    # ── a server ─────────────────────────────────────────────────────────────────────────────

    def attach_server(self, backend: ServerState, *, always: bool = False) -> tuple[bytes, bytes]:
        """This server from now on: what it gets ahead of all else, and what the client is told.

        With `always` it is reset whatever is known of it, where another client had it before.
        """
        self.backend = self.frontend.backend = backend
        self.frontend.settings_differ = self._own_settings != backend.reset_values
        self.releasable = False
        text, sets = b"", False
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
            told = session_state.parameter_changes(backend.reported, self.shown_parameters)
            self.shown_parameters = backend.reported
            return b"", told
        self.frontend.blocked = sets
        self._forget_unnamed()
        self.outstanding.expect(ExpectedReply(wire.QUERY, skip=True, done=self._on_set_up))
        return wire.query_message(text), b""

    def detach_server(self) -> None:
        """The server goes to somebody else."""
        self.backend = self.frontend.backend = None
        self.releasable = False
        self.failed = False

    def _on_set_up(self, answered: bytes) -> bytes:
        backend = self._attached_server()
        self._just_set_up, self.frontend.blocked = self.frontend.blocked, False
        for kind, body in wire.split_messages(answered):
            if kind == wire.ERROR:
                fields = wire.error_fields(body)
                self.needs_attention = True
                self.fatal_error = wire.fatal_response(
                    fields.get("C", "XX000"),
                    f"what this session had set cannot be set again: {fields.get('M', '')}",
                )
                return b""
        backend.applied = self.settings
        backend.record_custom_parameters(self.settings)
        told = session_state.parameter_changes(backend.reported, self.shown_parameters)
        self.shown_parameters = backend.reported
        return told

    # ── both ways ────────────────────────────────────────────────────────────────────────────

    def process_requests(self, data: bytes) -> bytes:
        """Raises ProtocolError."""
        self.releasable = False
        sent = self.frontend.process_requests(data)
        if self.outstanding.idle:
            if self.frontend.awaits_pin:
                self.releasable = self.needs_attention = True  # it waits for a slot, not for this server
            else:
                self._on_idle()
        return sent

    def process_replies(self, data: bytes) -> bytes:
        """Raises ValueError where the server does not speak the protocol."""
        out = self.outstanding.process_replies(data)
        if self.client_gone and self.outstanding.copying:
            self._injected += self._fail_copy()
            self.needs_attention = True
        if self.outstanding.idle:
            self._on_idle()
        return out

    def _on_idle(self) -> None:
        """Nothing is owed: what comes next, or the server is free."""
        if self.fatal_error or self.backend is None:
            return
        if self._just_set_up:  # it has its server as it wants it, and nothing sent yet
            self._just_set_up = False
            if not self.client_gone:
                return
        if self.outstanding.error_count:
            self.failed, self.outstanding.error_count = True, 0
        if self.outstanding.status != wire.STATUS_IDLE:
            if self.client_gone:
                self._send_cleanup(1, b"ROLLBACK")
            return
        frontend = self.frontend
        frontend.tracked_portals.clear()
        if self.client_gone:
            if frontend.state_flags or self.pinned:
                self._send_cleanup(2, b"DISCARD ALL")
            else:
                self.release_pins()
                self.releasable = self.needs_attention = True
            return
        if frontend.state_flags:
            if frontend.state_flags & SCHEMA:
                self._registry.on_schema_change()
            if frontend.state_flags & PROBE_FLAGS:
                self._send_probe(frontend.state_flags & PROBE_FLAGS)
                return
            frontend.state_flags = 0
        if frontend.has_pin and not self.pinned:
            frontend.has_pin = False
            self._release_pin()
        self.releasable = self.needs_attention = not self.pinned

    # ── what the transaction left behind ─────────────────────────────────────────────────────

    def _send_probe(self, flags: int) -> None:
        text = session_state.probe_query(flags, self.frontend.custom_names)
        self.frontend.state_flags, self._probing = 0, flags
        self._forget_unnamed()
        if flags & SETTING and self._own_settings != self._attached_server().reset_values:
            self.frontend.blocked = True  # a RESET has led elsewhere than on a connection of its own: see `_carry`
        self.outstanding.expect(
            ExpectedReply(wire.QUERY, skip=True, done=lambda answered: self._on_probe_answer(flags, answered))
        )
        self._injected += wire.query_message(text)
        self.needs_attention = True

    def _on_probe_answer(self, flags: int, answered: bytes) -> bytes:
        if self.client_gone:
            return b""  # whatever it is, it is to be cleaned
        backend = self._attached_server()
        self.frontend.blocked, self._probing = False, 0
        if any(kind == wire.ERROR for kind, _ in wire.split_messages(answered)):
            held, pinned = COMPUTED_SETTING, self.pinned  # it would not say, so nobody else gets this one
        else:
            settings, held = session_state.parse_probe(answered)
            pinned = self.pinned & ~flags
            if flags & SETTING:
                self._adopt_settings(backend, settings)
        self._set_pins(pinned | held)
        return b""

    def _adopt_settings(self, backend: ServerState, settings: dict[bytes, bytes]) -> None:
        if settings.get(b"session_authorization") == backend.user:
            del settings[b"session_authorization"]
        backend.applied = {**backend.reset_values, **settings}
        backend.record_custom_parameters(settings)
        # RESET leads to what the connection was opened with; a client of its own would be back at its own.
        self.settings = {**self._own_settings, **settings}
        self.frontend.scope = b"\0".join(
            (self._base_scope, *(settings[name] for name in SCOPE_SETTINGS if name in settings))
        )

    def _set_pins(self, pinned: int) -> None:
        self.pinned = pinned | self._mode_pin
        if pinned and not self.frontend.has_pin:
            self.frontend.has_pin = self._request_pin()
            if not self.frontend.has_pin:
                self.fatal_error, self.needs_attention = no_slot(pinned, "FATAL"), True

    # ── told by the pipeline ─────────────────────────────────────────────────────────────────

    def on_parameter_status(self, name: bytes, value: bytes, *, shown: bool, resets: bool) -> bytes:
        backend = self._attached_server()
        backend.reported = {**backend.reported, name: value}
        if not shown:
            return b""
        self.frontend.state_flags |= SETTING
        back = resets and value == backend.reset_values.get(name) != self._own_settings.get(name)
        self.shown_parameters = {**self.shown_parameters, name: self._own_settings[name] if back else value}
        return wire.parameter_status(name, self._own_settings[name]) if back else b""

    def rewrite_notification(self, message: bytes) -> bytes:
        """The client's own NOTIFY comes from the process that it was told is its own: so drivers know theirs."""
        at, end = wire.HEADER_SIZE, wire.HEADER_SIZE + 4
        if int.from_bytes(message[at:end], "big") != self._attached_server().pid:
            return message
        return message[:at] + self.announced_pid.to_bytes(4, "big") + message[end:]

    def on_command_tag(self, hint: int, tag: bytes) -> None:
        frontend, backend = self.frontend, self._attached_server()
        if hint == DISCARD or tag.startswith(b"DEALLOCATE"):
            if tag == b"DISCARD ALL":
                backend.on_discard_all()
                frontend.statements.clear()
                self._set_pins(self.pinned & ~COMPUTED_SETTING)
            elif tag == b"DEALLOCATE ALL":
                backend.prepared.clear()
                frontend.statements.clear()
            hint = PROBE_FLAGS if hint == DISCARD else hint
        if hint & SCHEMA:
            self._registry.on_schema_change()
        if hint & LIBRARY:
            self._set_pins(self.pinned | LIBRARY)
        frontend.state_flags |= hint & (PROBE_FLAGS | SCHEMA)

    def translate_error(self, error: bytes) -> bytes:
        """An error that says one of our names says the client's."""
        if self._registry.prefix not in error:
            return error
        for ours, theirs in self.frontend.deallocated.items():
            error = error.replace(ours, theirs)
        for theirs, statement in self.frontend.statements.items():
            error = error.replace(statement.name, theirs)
        return error

    def on_stale_plan(self, statement: PreparedStatement) -> None:
        self._registry.retire(statement)

    # ── the client has left ──────────────────────────────────────────────────────────────────

    def begin_cleanup(self) -> bytes | None:
        """The client is gone: what the server gets to be rid of it, None where only closing helps. Where it is
        `busy` afterwards, its query is for the caller to cancel."""
        self.client_gone = True
        self.frontend.blocked = False
        self.frontend.state_flags |= self._probing
        if self.frontend.mid_message or self.pinned & LIBRARY or self.fatal_error:
            return None
        sent = b""
        if self.outstanding.copying:
            sent += self._fail_copy()
        if self.frontend.unsynced:
            # On a connection of its own the client's work would be rolled back; a Sync alone commits it.
            self.outstanding.expect(ExpectedReply(wire.EXECUTE))
            sent += _FAILING_EXECUTE + _SYNC
            self.frontend.unsynced = False
            self.outstanding.expect_sync()
        if self.outstanding.idle:
            self._on_idle()
        return sent + self.pop_injected()

    def _fail_copy(self) -> bytes:
        self.outstanding.on_copy_end()
        if self.outstanding.queue[0].kind != wire.EXECUTE:
            return _COPY_FAIL
        self.frontend.unsynced = False
        self.outstanding.expect_sync()
        return _COPY_FAIL + _SYNC

    def release_pins(self) -> None:
        """Whatever its connection held is no more."""
        if self.frontend.has_pin and not self._mode_pin:
            self.frontend.has_pin = False
            self._release_pin()
        self.pinned = 0

    def _send_cleanup(self, step: int, text: bytes) -> None:
        if self._cleanup_step >= step:
            self.needs_attention = True
            self.fatal_error = wire.fatal_response("XX000", f"{text.decode()} did not do what it should")
            return
        self._cleanup_step = step
        self._forget_unnamed()
        self.outstanding.expect(ExpectedReply(wire.QUERY, skip=True, done=self._on_discard_all if step == 2 else None))
        self._injected += wire.query_message(text)
        self.needs_attention = True

    def _on_discard_all(self, answered: bytes) -> bytes:
        if any(kind == wire.ERROR for kind, _ in wire.split_messages(answered)):
            return b""  # a late cancel has hit it: nothing is clean, and `_rest` finds that out
        self._attached_server().on_discard_all()
        self.frontend.state_flags = 0
        self.release_pins()
        return b""

    def _restore_settings(self, names: tuple[bytes, ...], extended: bool, _: bytes) -> bytes:
        """A RESET has led to what the connection was opened with, where one of the client's own would be back at what
        the client was. In the extended protocol that goes into the transaction at hand, so that it ends with it."""
        own = {
            name: self._own_settings[name]
            for name in names
            if self._own_settings[name] != self._attached_server().reset_values[name]
        }
        if self.client_gone or not own:
            return b""
        if extended:
            for entry, sent in restore_messages(self._registry.prefix + b"own", own, self._on_restored):
                self.outstanding.expect(entry)
                self._injected += sent
            self._injected += _FLUSH
        else:
            self._forget_unnamed()
            self.outstanding.expect(ExpectedReply(wire.QUERY, skip=True, done=self._on_restored))
            self._injected += wire.query_message(b";".join(map(session_state.set_statement, own.items())))
        self.needs_attention = True
        return b""

    def _on_restored(self, _: bytes) -> bytes:
        backend = self._attached_server()
        told = session_state.parameter_changes(backend.reported, self.shown_parameters)
        self.shown_parameters = backend.reported
        return told

    def _forget_unnamed(self) -> None:
        """A Query of ours ends the server's unnamed statement: the client's is parsed again."""
        self._attached_server().unnamed_body = None
        self.frontend.unnamed.settle()

    def _attached_server(self) -> ServerState:
        assert self.backend is not None
        return self.backend
