"""A client's session: a state machine over protocol messages.

Decisions are synchronous. `requests` takes what the client sent and gives what its server gets, `replies` the
other way round; what they have for the other side besides is taken with `ahead` (for the client) and `behind`
(for the server). Whoever calls them does the I/O, and asks afterwards whether the server is `free`, whether the
session is `broken`, and whether the client's next messages may be taken (`hold`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from proxy.postgres import session_state, wire
from proxy.postgres.auth.startup import ENCODING, NAME, Settings, Startup, elsewhere, process
from proxy.postgres.frontend import Frontend
from proxy.postgres.outstanding import Expect, Pipeline
from proxy.postgres.pins import no_slot
from proxy.postgres.server_state import Backend
from proxy.postgres.session_state import COMPUTED, FORGET, LOADED, PROBED, SCHEMA, SETTINGS
from proxy.postgres.statement_registry import Statement, Statements


# [merged from postgres/reset] What a RESET led to the connection's own is put back to the client's, in the transaction that did it.
def put_back(name: bytes, own: Settings, done: Callable[[bytes], bytes]) -> Iterator[tuple[Expect, bytes]]:
    """SETs in the extended protocol: what is owed for each message, and the message. `name` is that of a statement and
    a portal that nobody has."""
    for each in own.items():
        yield Expect(wire.PARSE, skip=True), wire.parse(name, session_state.setting(each) + b"\0\0\0")
        yield Expect(wire.BIND, skip=True), wire.message(wire.BIND, name + b"\0" + name + b"\0\0\0\0\0\0\0")
        yield Expect(wire.EXECUTE, skip=True), wire.message(wire.EXECUTE, name + b"\0\0\0\0\0")
        yield Expect(wire.CLOSE, skip=True), wire.message(wire.CLOSE, b"P" + name + b"\0")
        yield Expect(wire.CLOSE, skip=True, done=done), wire.close_statement(name)


SCOPE = (b"search_path", b"role", b"session_authorization")  # whose tables a name means
SESSION_MODE = 1 << 30  # a pin that is no state: the client keeps its server until it leaves
# Fails whatever the transaction did that no Sync has ended yet: a portal that nobody has.
_ABORT = wire.message(wire.EXECUTE, b"outrigger_none\0\0\0\0\0")
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
        statements: Statements,
        *,
        ask: Callable[[], bool],
        give_up: Callable[[], None],
        keep: bool = False,
    ) -> None:
        self.number = number
        self.process = process(number)  # what its client was told is the process that serves it
        self.startup = startup
        self.params = params
        self.pipeline = Pipeline(self)
        self.frontend = Frontend(statements, self.pipeline, ask=ask, slot=keep)
        self._statements = statements
        self._ask = ask
        self._give_up = give_up
        encoding = startup.encoding or params.get(b"server_encoding", b"UTF8").decode()
        scope = elsewhere(startup.key), dict(startup.key).get("search_path", "")
        self.frontend.scope = self._kind = "\0".join(scope).encode("utf-8", "surrogateescape")
        self.frontend.put_back = self._put_back
        self._own: Settings = {NAME: startup.name.encode("utf-8", "surrogateescape"), ENCODING: encoding.encode()}
        self.settings: Settings = self._own
        self.pinned = SESSION_MODE if keep else 0
        self._keep = self.pinned
        self.backend: Backend | None = None
        self.gone = False
        self.free = False
        self.broken = b""
        self.unsettled = False  # the owner of the server has to look
        self.failed = False  # the transaction has seen an error
        self._behind = b""
        self._cleaned = 0
        self._starts = False
        self._asked = 0  # what the database was asked about and has not told yet

    def __repr__(self) -> str:
        held = f", pinned by {self.pins}" if self.pinned & ~SESSION_MODE else ""
        return f"<Session {self.number} {self.backend or 'unlinked'}{held}>"

    @property
    def pins(self) -> str:
        """What its state is that keeps its connection, in words."""
        return session_state.words(self.pinned)

    @property
    def hold(self) -> bool:
        return self.frontend.hold

    @property
    def busy(self) -> bool:
        """Whether the server owes replies."""
        return bool(self.pipeline.queue)

    @property
    def works(self) -> bool:
        """Whether the server does something for the client, and not for us alone: then there is what to cancel."""
        return any(not entry.skip for entry in self.pipeline.queue)

    def behind(self) -> bytes:
        """What the server gets besides."""
        sent, self._behind = self._behind, b""
        self.unsettled = False
        return sent

    # ── a server ─────────────────────────────────────────────────────────────────────────────

    def link(self, backend: Backend, *, always: bool = False) -> tuple[bytes, bytes]:
        """This server from now on: what it gets ahead of all else, and what the client is told.

        With `always` it is reset whatever is known of it, where another client had it before.
        """
        self.backend = self.frontend.backend = backend
        self.frontend.foreign = self._own != backend.base
        self.free = False
        text, sets = b"", False
        if always and backend.last != self.number:
            text = b"RESET SESSION AUTHORIZATION;RESET ALL;"
            backend.applied = backend.base
        backend.last = self.number
        if backend.applied is not self.settings and backend.applied != self.settings:
            changes, sets = session_state.change(backend.applied, self.settings, backend.defined)
            text += changes
            if not changes:
                backend.applied = self.settings
        if not text:
            if backend.params is self.params:
                return b"", b""
            if backend.params == self.params:
                self.params = backend.params
                return b"", b""
            told = session_state.greeting(backend.params, self.params)
            self.params = backend.params
            return b"", told
        self.frontend.hold = sets
        self._end_unnamed()
        self.pipeline.expect(Expect(wire.QUERY, skip=True, done=self._set_up))
        return wire.query(text), b""

    def unlink(self) -> None:
        """The server goes to somebody else."""
        self.backend = self.frontend.backend = None
        self.free = False
        self.failed = False

    def _set_up(self, answered: bytes) -> bytes:
        backend = self._linked()
        self._starts, self.frontend.hold = self.frontend.hold, False
        for kind, body in wire.messages(answered):
            if kind == wire.ERROR:
                fields = wire.fields(body)
                self.unsettled = True
                self.broken = wire.fatal(
                    fields.get("C", "XX000"),
                    f"what this session had set cannot be set again: {fields.get('M', '')}",
                )
                return b""
        backend.applied = self.settings
        backend.define(self.settings)
        told = session_state.greeting(backend.params, self.params)
        self.params = backend.params
        return told

    # ── both ways ────────────────────────────────────────────────────────────────────────────

    def requests(self, data: bytes) -> bytes:
        """Raises ProtocolError."""
        self.free = False
        sent = self.frontend.take(data)
        if self.pipeline.rested:
            if self.frontend.asks:
                self.free = self.unsettled = True  # it waits for a slot, not for this server
            else:
                self._rest()
        return sent

    def replies(self, data: bytes) -> bytes:
        """Raises ValueError where the server does not speak the protocol."""
        out = self.pipeline.replies(data)
        if self.gone and self.pipeline.copying:
            self._behind += self._end_copy()
            self.unsettled = True
        if self.pipeline.rested:
            self._rest()
        return out

    def _rest(self) -> None:
        """Nothing is owed: what comes next, or the server is free."""
        if self.broken or self.backend is None:
            return
        if self._starts:  # it has its server as it wants it, and nothing sent yet
            self._starts = False
            if not self.gone:
                return
        if self.pipeline.errors:
            self.failed, self.pipeline.errors = True, 0
        if self.pipeline.status != wire.IDLE:
            if self.gone:
                self._clean(1, b"ROLLBACK")
            return
        frontend = self.frontend
        frontend.portals.clear()
        if self.gone:
            if frontend.flags or self.pinned:
                self._clean(2, b"DISCARD ALL")
            else:
                self.unpin()
                self.free = self.unsettled = True
            return
        if frontend.flags:
            if frontend.flags & SCHEMA:
                self._statements.changed()
            if frontend.flags & PROBED:
                self._probe(frontend.flags & PROBED)
                return
            frontend.flags = 0
        if frontend.slot and not self.pinned:
            frontend.slot = False
            self._give_up()
        self.free = self.unsettled = not self.pinned

    # ── what the transaction left behind ─────────────────────────────────────────────────────

    def _probe(self, flags: int) -> None:
        text = session_state.probe(flags, self.frontend.mentioned)
        self.frontend.flags, self._asked = 0, flags
        self._end_unnamed()
        if flags & SETTINGS and self._own != self._linked().base:
            self.frontend.hold = True  # a RESET has led elsewhere than on a connection of its own: see `_carry`
        self.pipeline.expect(Expect(wire.QUERY, skip=True, done=lambda answered: self._probed(flags, answered)))
        self._behind += wire.query(text)
        self.unsettled = True

    def _probed(self, flags: int, answered: bytes) -> bytes:
        if self.gone:
            return b""  # whatever it is, it is to be cleaned
        backend = self._linked()
        self.frontend.hold, self._asked = False, 0
        if any(kind == wire.ERROR for kind, _ in wire.messages(answered)):
            held, pinned = COMPUTED, self.pinned  # it would not say, so nobody else gets this one
        else:
            settings, held = session_state.answer(answered)
            pinned = self.pinned & ~flags
            if flags & SETTINGS:
                self._carry(backend, settings)
        self._pin(pinned | held)
        return b""

    def _carry(self, backend: Backend, settings: dict[bytes, bytes]) -> None:
        if settings.get(b"session_authorization") == backend.user:
            del settings[b"session_authorization"]
        backend.applied = {**backend.base, **settings}
        backend.define(settings)
        # RESET leads to what the connection was opened with; a client of its own would be back at its own.
        self.settings = {**self._own, **settings}
        self.frontend.scope = b"\0".join((self._kind, *(settings[name] for name in SCOPE if name in settings)))

    def _pin(self, pinned: int) -> None:
        self.pinned = pinned | self._keep
        if pinned and not self.frontend.slot:
            self.frontend.slot = self._ask()
            if not self.frontend.slot:
                self.broken, self.unsettled = no_slot(pinned, "FATAL"), True

    # ── told by the pipeline ─────────────────────────────────────────────────────────────────

    def parameter(self, name: bytes, value: bytes, *, shown: bool, resets: bool) -> bytes:
        backend = self._linked()
        backend.params = {**backend.params, name: value}
        if not shown:
            return b""
        self.frontend.flags |= SETTINGS
        back = resets and value == backend.base.get(name) != self._own.get(name)
        self.params = {**self.params, name: self._own[name] if back else value}
        return wire.parameter(name, self._own[name]) if back else b""

    def notification(self, message: bytes) -> bytes:
        """The client's own NOTIFY comes from the process that it was told is its own: so drivers know theirs."""
        at, end = wire.HEAD_SIZE, wire.HEAD_SIZE + 4
        if int.from_bytes(message[at:end], "big") != self._linked().pid:
            return message
        return message[:at] + self.process.to_bytes(4, "big") + message[end:]

    def tagged(self, hint: int, tag: bytes) -> None:
        frontend, backend = self.frontend, self._linked()
        if hint == FORGET or tag.startswith(b"DEALLOCATE"):
            if tag == b"DISCARD ALL":
                backend.discarded()
                frontend.names.clear()
                self._pin(self.pinned & ~COMPUTED)
            elif tag == b"DEALLOCATE ALL":
                backend.prepared.clear()
                frontend.names.clear()
            hint = PROBED if hint == FORGET else hint
        if hint & SCHEMA:
            self._statements.changed()
        if hint & LOADED:
            self._pin(self.pinned | LOADED)
        frontend.flags |= hint & (PROBED | SCHEMA)

    def translated(self, error: bytes) -> bytes:
        """An error that says one of our names says the client's."""
        if self._statements.prefix not in error:
            return error
        for ours, theirs in self.frontend.given_up.items():
            error = error.replace(ours, theirs)
        for theirs, statement in self.frontend.names.items():
            error = error.replace(statement.name, theirs)
        return error

    def outdated(self, statement: Statement) -> None:
        self._statements.renew(statement)

    # ── the client has left ──────────────────────────────────────────────────────────────────

    def leave(self) -> bytes | None:
        """The client is gone: what the server gets to be rid of it, None where only closing helps. Where it is
        `busy` afterwards, its query is for the caller to cancel."""
        self.gone = True
        self.frontend.hold = False
        self.frontend.flags |= self._asked
        if self.frontend.inside or self.pinned & LOADED or self.broken:
            return None
        sent = b""
        if self.pipeline.copying:
            sent += self._end_copy()
        if self.frontend.unsynced:
            # On a connection of its own the client's work would be rolled back; a Sync alone commits it.
            self.pipeline.expect(Expect(wire.EXECUTE))
            sent += _ABORT + _SYNC
            self.frontend.unsynced = False
            self.pipeline.synced()
        if self.pipeline.rested:
            self._rest()
        return sent + self.behind()

    def _end_copy(self) -> bytes:
        self.pipeline.copied()
        if self.pipeline.queue[0].kind != wire.EXECUTE:
            return _COPY_FAIL
        self.frontend.unsynced = False
        self.pipeline.synced()
        return _COPY_FAIL + _SYNC

    def unpin(self) -> None:
        """Whatever its connection held is no more."""
        if self.frontend.slot and not self._keep:
            self.frontend.slot = False
            self._give_up()
        self.pinned = 0

    def _clean(self, step: int, text: bytes) -> None:
        if self._cleaned >= step:
            self.unsettled = True
            self.broken = wire.fatal("XX000", f"{text.decode()} did not do what it should")
            return
        self._cleaned = step
        self._end_unnamed()
        self.pipeline.expect(Expect(wire.QUERY, skip=True, done=self._discarded if step == 2 else None))
        self._behind += wire.query(text)
        self.unsettled = True

    def _discarded(self, answered: bytes) -> bytes:
        if any(kind == wire.ERROR for kind, _ in wire.messages(answered)):
            return b""  # a late cancel has hit it: nothing is clean, and `_rest` finds that out
        self._linked().discarded()
        self.frontend.flags = 0
        self.unpin()
        return b""

    def _put_back(self, names: tuple[bytes, ...], extended: bool, _: bytes) -> bytes:
        """A RESET has led to what the connection was opened with, where one of the client's own would be back at what
        the client was. In the extended protocol that goes into the transaction at hand, so that it ends with it."""
        own = {name: self._own[name] for name in names if self._own[name] != self._linked().base[name]}
        if self.gone or not own:
            return b""
        if extended:
            for entry, sent in put_back(self._statements.prefix + b"own", own, self._put):
                self.pipeline.expect(entry)
                self._behind += sent
            self._behind += _FLUSH
        else:
            self._end_unnamed()
            self.pipeline.expect(Expect(wire.QUERY, skip=True, done=self._put))
            self._behind += wire.query(b";".join(map(session_state.setting, own.items())))
        self.unsettled = True
        return b""

    def _put(self, _: bytes) -> bytes:
        backend = self._linked()
        told = session_state.greeting(backend.params, self.params)
        self.params = backend.params
        return told

    def _end_unnamed(self) -> None:
        """A Query of ours ends the server's unnamed statement: the client's is parsed again."""
        self._linked().unnamed = None
        self.frontend.unnamed.settle()

    def _linked(self) -> Backend:
        assert self.backend is not None
        return self.backend
