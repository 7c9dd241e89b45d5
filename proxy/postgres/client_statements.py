"""The names that a client has given to its statements.

A name is taken when its Parse is sent, not when that is answered: what follows in the same batch may use it, and
is skipped with it where it fails. After a Sync that is no longer so, nor after a text that forgets names
(DEALLOCATE, DISCARD): then who uses one of these has to wait until the server has said what became of it.
"""

from __future__ import annotations

from collections import OrderedDict

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
