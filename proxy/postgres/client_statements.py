"""What a client has prepared: its statements by the names that it gave them, and the one without a name.

A name is taken when its Parse is sent, not when that is answered: what follows in the same batch may use it, and is
skipped with it if it fails. After a Sync that is no longer so, nor after a text that forgets names (DEALLOCATE,
DISCARD): then who uses one of these has to wait until the server has said what became of it.

=============  ====================================================  ===================================================
a name is      since                                                 until
=============  ====================================================  ===================================================
certain        everything is answered                                it is parsed or closed, or a text discards names
changed in     its Parse or Close was sent: used at once, since      a Sync is sent
this batch     what uses it fails with it
uncertain      the Sync after that, or the text that discards        everything is answered: who uses it waits for that
=============  ====================================================  ===================================================
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.postgres.server_state import ServerState
from proxy.postgres.session_state import NO_HINTS, Hints
from proxy.postgres.statement_registry import MAX_NAMES, PreparedStatement


class ClientStatements(OrderedDict[bytes, PreparedStatement]):
    """Statements by the client's names, the one defined first dropped first. `discard_pending`: a text that forgets
    names is under way; `may_have_failed`: what was sent before this batch may not be answered, so nobody knows whether
    its transaction has failed; `unnamed_parsed`: the unnamed statement was changed in this batch."""

    def __init__(self) -> None:
        super().__init__()
        self.discard_pending = False
        self.may_have_failed = False
        self.unnamed_parsed = False
        self._unnamed_unanswered = False  # in a batch before
        self._changed_in_batch: set[bytes] = set()
        self._unanswered: set[bytes] = set()  # changed in earlier batches

    def define(self, name: bytes, statement: PreparedStatement) -> None:
        # Both names: a later batch may use the client's, and another of its names may lead to the same statement.
        self[name] = statement
        self._changed_in_batch.add(name)
        self._changed_in_batch.add(statement.name)
        if len(self) > MAX_NAMES:
            self.popitem(last=False)

    def drop(self, name: bytes, statement: PreparedStatement) -> None:
        """Its Parse failed, or was skipped."""
        if self.get(name) is statement:
            del self[name]

    def mark_changed(self, name: bytes) -> None:
        """It is being closed, or a statement of ours is prepared or closed though no client asked for it."""
        self._changed_in_batch.add(name)

    def on_sync(self) -> None:
        """A Sync was sent."""
        self.may_have_failed = True
        if self.unnamed_parsed:
            self.unnamed_parsed, self._unnamed_unanswered = False, True
        if self._changed_in_batch:
            self._unanswered |= self._changed_in_batch
            self._changed_in_batch.clear()

    def on_all_answered(self) -> None:
        """Nothing is owed that could change a name."""
        self.discard_pending = self.may_have_failed = self._unnamed_unanswered = False
        self._unanswered.clear()

    def is_uncertain(self, name: bytes, statement: PreparedStatement | None) -> bool:
        """Whether what a name means, or whether its statement is there, hangs on an answer that is to come."""
        # In its own batch the unnamed statement is certain: what uses it fails with it.
        if not name:
            return self._unnamed_unanswered and not self.unnamed_parsed
        return (
            self.discard_pending
            or name in self._unanswered
            or (statement is not None and statement.name in self._unanswered)
        )


# ── the unnamed statement ────────────────────────────────────────────────────────────────────
# Which one a client has and which one its server has are known when a message is sent, not when it is answered. If it
# comes to nothing, they are what they were before it: so the changes that are not answered yet hang together, each on
# the one before.
UNKNOWN_STATEMENT = b""  # the server has one that is not any client's
MAX_UNANSWERED_CHANGES = 100


class UnnamedChange:
    """A message that changes it: `body` and `hints` are the client's afterwards, `server_body` the server's;
    `by_client`: it changes the client's too; `previous` is the change before, `depth` how many there are; `skipped`:
    the server never saw it."""

    __slots__ = ("body", "by_client", "depth", "hints", "previous", "server_body", "skipped")

    def __init__(
        self,
        body: bytes | None,
        hints: Hints,
        server_body: bytes | None,
        previous: UnnamedChange | None,
        *,
        by_client: bool,
    ) -> None:
        self.body = body
        self.hints = hints
        self.server_body = server_body
        self.previous = previous
        self.depth: int = previous.depth + 1 if previous is not None else 0
        self.by_client = by_client
        self.skipped = False


class UnnamedStatement:
    """`body` is that of the client's last Parse without a name (what follows the name), None if there is none; `hints`
    are of its text; `last` is the last change that may not be answered yet."""

    __slots__ = ("body", "hints", "last")

    def __init__(self) -> None:
        self.body: bytes | None = None
        self.hints = NO_HINTS
        self.last: UnnamedChange | None = None

    @property
    def too_many_unanswered(self) -> bool:
        return self.last is not None and self.last.depth >= MAX_UNANSWERED_CHANGES

    def settle(self) -> None:
        """What it is now, it is whatever becomes of what was sent before."""
        self.last = None

    def on_query(self) -> None:
        """A Query ends it, and is not skipped."""
        self.body = self.last = None
        self.hints = NO_HINTS

    def replace_client(self, backend: ServerState, body: bytes | None, hints: Hints = NO_HINTS) -> UnnamedChange:
        """A Parse of the client's, or (None) its Close."""
        change = self._append_change(backend, body, hints, body, by_client=True)
        self.body, self.hints = body, hints
        return change

    def replace_server(self, backend: ServerState, body: bytes | None) -> UnnamedChange:
        """A Parse of ours, or (None) a Close."""
        return self._append_change(backend, None, NO_HINTS, body, by_client=False)

    def _append_change(
        self, backend: ServerState, body: bytes | None, hints: Hints, server_body: bytes | None, *, by_client: bool
    ) -> UnnamedChange:
        # The chain begins with what holds now; that is no change, so it is the client's and never skipped.
        previous = self.last or UnnamedChange(self.body, self.hints, backend.unnamed_body, None, by_client=True)
        self.last = change = UnnamedChange(body, hints, server_body, previous, by_client=by_client)
        backend.unnamed_body = server_body
        return change

    def undo_change(self, change: UnnamedChange, backend: ServerState, *, skipped: bool) -> None:
        """It was skipped, and what was before is still so; or the Parse failed, and there is none."""
        change.skipped = skipped
        if not skipped:
            change.body, change.hints, change.server_body = None, NO_HINTS, None
        if (now := self.last) is None:
            return
        # The server has what the last change left that it saw; the client what the last of its own left.
        while now.skipped and now.previous is not None:
            now = now.previous
        backend.unnamed_body = now.server_body
        while (now.skipped or not now.by_client) and now.previous is not None:
            now = now.previous
        self.body, self.hints = now.body, now.hints
