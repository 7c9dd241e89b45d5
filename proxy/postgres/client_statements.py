"""The names that a client has given to its statements.

A name is taken when its Parse is sent, not when that is answered: what follows in the same batch may use it, and
is skipped with it where it fails. After a Sync that is no longer so, nor after a text that forgets names
(DEALLOCATE, DISCARD): then who uses one of these has to wait until the server has said what became of it.
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.postgres.server_state import ServerState
from proxy.postgres.session_state import NO_HINTS, Hints
from proxy.postgres.statement_registry import MAX_NAMES, PreparedStatement


class ClientStatements(OrderedDict[bytes, PreparedStatement]):
    """Statements by the client's names. `forgets`: a text that forgets names is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.discard_pending = False
        self.may_have_failed = False  # what was sent before this batch may not be answered, nor whether it failed
        self.unnamed_parsed = False  # the unnamed statement was, in this batch
        self._unnamed_unanswered = False  # and in one before, not answered yet
        self._changed_in_batch: set[bytes] = set()  # touched in this batch
        self._unanswered: set[bytes] = set()  # touched in earlier ones, and not answered yet

    def define(self, name: bytes, statement: PreparedStatement) -> None:
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
        """It is being closed, or a statement of ours is prepared or closed where a client did not ask for it."""
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
        if not name:
            return self._unnamed_unanswered and not self.unnamed_parsed
        return (
            self.discard_pending
            or name in self._unanswered
            or (statement is not None and statement.name in self._unanswered)
        )


#
# Both are known when a message is sent, not when it is answered. Where it comes to nothing, they are what they were
# before it; so the turns that are not answered yet hang together, each on the one before.
UNKNOWN_STATEMENT = b""  # the server has one that is not any client's
MAX_UNANSWERED_CHANGES = 100  # that are not answered


class UnnamedChange:
    """A message that changes it: `own`, for the client too. `void`: it was skipped."""

    __slots__ = ("body", "by_client", "depth", "hints", "previous", "server_body", "skipped")

    def __init__(
        self, rest: bytes | None, hints: Hints, there: bytes | None, before: UnnamedChange | None, own: bool
    ) -> None:
        self.body = rest
        self.hints = hints
        self.server_body = there
        self.previous = before
        self.depth: int = before.depth + 1 if before is not None else 0
        self.by_client = own
        self.skipped = False


class UnnamedStatement:
    """`rest` is the body of the client's last Parse without a name, None where there is none."""

    __slots__ = ("_last", "body", "hints")

    def __init__(self) -> None:
        self.body: bytes | None = None
        self.hints = NO_HINTS
        self._last: UnnamedChange | None = None

    @property
    def too_many_unanswered(self) -> bool:
        """Whether too many turns are unanswered."""
        return self._last is not None and self._last.depth >= MAX_UNANSWERED_CHANGES

    def settle(self) -> None:
        """What it is now, it is whatever becomes of what was sent before."""
        self._last = None

    def on_query(self) -> None:
        """A Query ends it, and is not skipped."""
        self.body = self._last = None
        self.hints = NO_HINTS

    def replace_client(self, backend: ServerState, rest: bytes | None, hints: Hints = NO_HINTS) -> UnnamedChange:
        """A Parse of the client's, or None: its Close."""
        turn = self._append_change(backend, rest, hints, rest, own=True)
        self.body, self.hints = rest, hints
        return turn

    def replace_server(self, backend: ServerState, there: bytes | None) -> UnnamedChange:
        """A Parse of ours, or a Close."""
        return self._append_change(backend, None, NO_HINTS, there, own=False)

    def _append_change(
        self, backend: ServerState, rest: bytes | None, hints: Hints, there: bytes | None, *, own: bool
    ) -> UnnamedChange:
        before = self._last or UnnamedChange(self.body, self.hints, backend.unnamed_body, None, True)
        self._last = turn = UnnamedChange(rest, hints, there, before, own)
        backend.unnamed_body = there
        return turn

    def undo_change(self, turn: UnnamedChange, backend: ServerState, *, skipped: bool) -> None:
        """It was skipped, and what was before is still so; or the Parse failed, and there is none."""
        turn.skipped = skipped
        if not skipped:
            turn.body, turn.hints, turn.server_body = None, NO_HINTS, None
        if (now := self._last) is None:
            return
        while now.skipped and now.previous is not None:
            now = now.previous
        backend.unnamed_body = now.server_body
        while (now.skipped or not now.by_client) and now.previous is not None:
            now = now.previous
        self.body, self.hints = now.body, now.hints
