"""The names that a client has given to its statements.

A name is taken when its Parse is sent, not when that is answered: what follows in the same batch may use it, and
is skipped with it where it fails. After a Sync that is no longer so, nor after a text that forgets names
(DEALLOCATE, DISCARD): then who uses one of these has to wait until the server has said what became of it.
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.postgres.server_state import Backend
from proxy.postgres.session_state import NONE, Hints
from proxy.postgres.statement_registry import MOST_NAMES, Statement


class Names(OrderedDict[bytes, Statement]):
    """Statements by the client's names. `forgets`: a text that forgets names is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.forgets = False
        self.pending = False  # what was sent before this batch may not be answered, nor whether it failed
        self.parsed = False  # the unnamed statement was, in this batch
        self._unnamed = False  # and in one before, not answered yet
        self._fresh: set[bytes] = set()  # touched in this batch
        self._open: set[bytes] = set()  # touched in earlier ones, and not answered yet

    def put(self, name: bytes, statement: Statement) -> None:
        self[name] = statement
        self._fresh.add(name)
        self._fresh.add(statement.name)
        if len(self) > MOST_NAMES:
            self.popitem(last=False)

    def drop(self, name: bytes, statement: Statement) -> None:
        """Its Parse failed, or was skipped."""
        if self.get(name) is statement:
            del self[name]

    def touch(self, name: bytes) -> None:
        """It is being closed, or a statement of ours is prepared or closed where a client did not ask for it."""
        self._fresh.add(name)

    def synced(self) -> None:
        """A Sync was sent."""
        self.pending = True
        if self.parsed:
            self.parsed, self._unnamed = False, True
        if self._fresh:
            self._open |= self._fresh
            self._fresh.clear()

    def answered(self) -> None:
        """Nothing is owed that could change a name."""
        self.forgets = self.pending = self._unnamed = False
        self._open.clear()

    def unsure(self, name: bytes, statement: Statement | None) -> bool:
        """Whether what a name means, or whether its statement is there, hangs on an answer that is to come."""
        if not name:
            return self._unnamed and not self.parsed
        return self.forgets or name in self._open or (statement is not None and statement.name in self._open)


# [merged from postgres/unnamed] The unnamed statement: which one a client has, and which one its server has.
#
# Both are known when a message is sent, not when it is answered. Where it comes to nothing, they are what they were
# before it; so the turns that are not answered yet hang together, each on the one before.
UNKNOWN = b""  # the server has one that is not any client's
MOST_TURNS = 100  # that are not answered


class Turn:
    """A message that changes it: `own`, for the client too. `void`: it was skipped."""

    __slots__ = ("before", "depth", "hints", "own", "rest", "there", "void")

    def __init__(self, rest: bytes | None, hints: Hints, there: bytes | None, before: Turn | None, own: bool) -> None:
        self.rest = rest
        self.hints = hints
        self.there = there
        self.before = before
        self.depth: int = before.depth + 1 if before is not None else 0
        self.own = own
        self.void = False


class Unnamed:
    """`rest` is the body of the client's last Parse without a name, None where there is none."""

    __slots__ = ("_last", "hints", "rest")

    def __init__(self) -> None:
        self.rest: bytes | None = None
        self.hints = NONE
        self._last: Turn | None = None

    @property
    def deep(self) -> bool:
        """Whether too many turns are unanswered."""
        return self._last is not None and self._last.depth >= MOST_TURNS

    def settle(self) -> None:
        """What it is now, it is whatever becomes of what was sent before."""
        self._last = None

    def ended(self) -> None:
        """A Query ends it, and is not skipped."""
        self.rest = self._last = None
        self.hints = NONE

    def parsed(self, backend: Backend, rest: bytes | None, hints: Hints = NONE) -> Turn:
        """A Parse of the client's, or None: its Close."""
        turn = self._turn(backend, rest, hints, rest, own=True)
        self.rest, self.hints = rest, hints
        return turn

    def replaced(self, backend: Backend, there: bytes | None) -> Turn:
        """A Parse of ours, or a Close."""
        return self._turn(backend, None, NONE, there, own=False)

    def _turn(self, backend: Backend, rest: bytes | None, hints: Hints, there: bytes | None, *, own: bool) -> Turn:
        before = self._last or Turn(self.rest, self.hints, backend.unnamed, None, True)
        self._last = turn = Turn(rest, hints, there, before, own)
        backend.unnamed = there
        return turn

    def undo(self, turn: Turn, backend: Backend, *, skipped: bool) -> None:
        """It was skipped, and what was before is still so; or the Parse failed, and there is none."""
        turn.void = skipped
        if not skipped:
            turn.rest, turn.hints, turn.there = None, NONE, None
        if (now := self._last) is None:
            return
        while now.void and now.before is not None:
            now = now.before
        backend.unnamed = now.there
        while (now.void or not now.own) and now.before is not None:
            now = now.before
        self.rest, self.hints = now.rest, now.hints
