"""Prepared statements: one name a text, shared by all clients, prepared again on a connection that lacks it."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from proxy.postgres.session_state import NO_HINTS, Hints, inspect_text, names_no_state
from proxy.postgres.wire import HEADER_SIZE

MAX_STATEMENTS = 1000  # kept though no client names them, so that a client to come finds them prepared
MAX_PLAIN_TEXTS, MAX_PLAIN_TEXT_BYTES = 1000, 1000  # of Queries that leave nothing behind
_DIGITS = b"0123456789"
MAX_NAMES = 5000  # a client; past this the name unused for longest is forgotten


class PreparedStatement:
    """A text with its parameter types. `name` is what servers call it; `body` a Parse's body after its name; `scope`
    what else its meaning hangs on; `result_shape` what its clients were told of the columns of its result
    (`wire.result_shape`), None before that. `stale` is set when the database said that its result has another shape by
    now: who prepared it before must see that, as on a connection of its own."""

    __slots__ = ("body", "hints", "name", "result_shape", "scope", "stale")

    def __init__(self, name: bytes, body: bytes, scope: bytes, hints: Hints) -> None:
        self.name = name
        self.body = body
        self.scope = scope
        self.result_shape: bytes | None = None
        self.stale = False
        self.hints = hints

    def __repr__(self) -> str:
        return f"<PreparedStatement {self.name.decode()}>"


class StatementRegistry:
    """Every statement of every client, the one asked for last kept longest. `prefix` of their names is one a process,
    which nobody can guess: no client's own name is ever taken for one of ours. `missing_name` is one that no server
    has."""

    def __init__(self) -> None:
        self.prefix = f"outrigger_{secrets.token_hex(4)}_".encode()
        self._count = 0
        self._known: OrderedDict[tuple[bytes, bytes], PreparedStatement] = OrderedDict()
        self._plain_texts: set[bytes] = set()
        self.missing_name = self.prefix + b"0"

    def __len__(self) -> int:
        return len(self._known)

    def is_plain_query(self, message: bytes) -> bool:
        """Whether a Query leaves nothing behind. Texts that differ in their numbers alone are looked at once: 0.1 µs in
        place of 0.3."""
        # No word that counts has a digit in it, so what is without one when the digits are gone is without one.
        key = message.translate(None, _DIGITS)
        if key in self._plain_texts:
            return True
        if len(key) <= MAX_PLAIN_TEXT_BYTES and names_no_state(key):
            if len(self._plain_texts) >= MAX_PLAIN_TEXTS:
                self._plain_texts.clear()
            self._plain_texts.add(key)
            return True
        return inspect_text(message[HEADER_SIZE:-1]) is NO_HINTS

    def find_or_add(self, body: bytes, scope: bytes = b"") -> PreparedStatement:
        """`scope` is what else a text's meaning hangs on: whose tables its names are."""
        key = (body, scope)
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
            return found
        self._count += 1
        name = self.prefix + str(self._count).encode()
        added = self._known[key] = PreparedStatement(name, body, scope, inspect_text(body[: body.find(b"\0")]))
        # Who has the statement keeps it; only nobody else finds it any more.
        if len(self._known) > MAX_STATEMENTS:
            self._known.popitem(last=False)
        return added

    def retire(self, statement: PreparedStatement) -> None:
        """Its result has another shape by now: whoever prepares the text next gets a fresh one."""
        statement.stale = True
        key = (statement.body, statement.scope)
        if self._known.get(key) is statement:
            del self._known[key]

    def on_schema_change(self) -> None:
        """The schema was changed: whoever prepares a text from now on must have it prepared under the new one.
        Those who did before keep theirs, and PostgreSQL tells them if it no longer fits."""
        self._known.clear()
