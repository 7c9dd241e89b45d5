"""Prepared statements: one name a text, shared by all clients, prepared again where a connection lacks it."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from proxy.postgres.session_state import Hints, inspect

MOST_TEXTS = 1000  # kept though no client names them, so that a client to come finds them prepared
MOST_NAMES = 5000  # a client; past this the name unused for longest is forgotten


class Statement:
    """A text with its parameter types. `stale` is set when the database said that its result has another shape
    by now: who prepared it before must see that, as on a connection of its own."""

    __slots__ = ("hints", "name", "rest", "result", "scope", "stale")

    def __init__(self, name: bytes, rest: bytes, scope: bytes, hints: Hints) -> None:
        self.name = name
        self.rest = rest  # a Parse's body after its name
        self.scope = scope
        self.result: bytes | None = None  # RowDescription or NoData, as its clients were told
        self.stale = False
        self.hints = hints

    def __repr__(self) -> str:
        return f"<Statement {self.name.decode()}>"


class Statements:
    """Every statement of every client. One prefix a process, which nobody can guess: no client's own name is
    ever taken for one of ours."""

    def __init__(self) -> None:
        self.prefix = f"outrigger_{secrets.token_hex(4)}_".encode()
        self._count = 0
        self._known: OrderedDict[tuple[bytes, bytes], Statement] = OrderedDict()
        self.nobody = self.prefix + b"0"  # a name that no server has

    def __len__(self) -> int:
        return len(self._known)

    def get(self, rest: bytes, scope: bytes = b"") -> Statement:
        """`scope` is what else a text's meaning hangs on: whose tables its names are."""
        key = (rest, scope)
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
            return found
        self._count += 1
        name = self.prefix + str(self._count).encode()
        made = self._known[key] = Statement(name, rest, scope, inspect(rest[: rest.find(b"\0")]))
        if len(self._known) > MOST_TEXTS:
            self._known.popitem(last=False)
        return made

    def renew(self, statement: Statement) -> None:
        """Its result has another shape by now: whoever prepares the text next gets a fresh one."""
        statement.stale = True
        key = (statement.rest, statement.scope)
        if self._known.get(key) is statement:
            del self._known[key]

    def changed(self) -> None:
        """The schema was changed: whoever prepares a text from now on must have it prepared under the new one.
        Those who did before keep theirs, and PostgreSQL tells them where it no longer fits."""
        self._known.clear()
