"""What a server owes: one entry for each message that it will answer."""

from __future__ import annotations

from collections.abc import Callable

from proxy.postgres import wire
from proxy.postgres.statement_registry import Statement

FAKE = 0  # the kind of a reply that we give in the server's place
MARK = 1  # CopyDone or CopyFail: it has no reply, but Syncs before it are swallowed by a COPY


class Expect:
    """One reply owed, or several up to ReadyForQuery. `skip`: the client does not get it; `fake` is given
    without the server; `instead` replaces an error; `done` gets what was skipped and gives what the client gets in
    its place, or is told that a command has completed; `undo` is called where the reply never came, because this or
    something before it failed."""

    __slots__ = ("done", "fake", "flags", "instead", "kind", "name", "plain", "skip", "statement", "undo")

    def __init__(
        self,
        kind: int,
        *,
        skip: bool = False,
        fake: bytes = b"",
        instead: bytes = b"",
        statement: Statement | None = None,
        name: bytes = b"",
        flags: int = 0,
        done: Callable[[bytes], bytes] | None = None,
        undo: Callable[[], None] | None = None,
    ) -> None:
        self.kind = kind
        # Its answer passes unread.
        self.plain = not skip and done is None and (kind != wire.DESCRIBE or statement is None)
        self.skip = skip
        self.fake = fake
        self.instead = instead
        self.statement = statement
        self.name = name
        self.flags = flags
        self.done = done
        self.undo = undo

    def __repr__(self) -> str:
        return f"<Expect {chr(self.kind)}{' skipped' if self.skip else ''}>"


COPIED = Expect(MARK)
QUERY, SYNC, FUNCTION = Expect(wire.QUERY), Expect(wire.SYNC), Expect(wire.FUNCTION)
PARSE, BIND, CLOSE, DESCRIBE, EXECUTE = (
    Expect(wire.PARSE),
    Expect(wire.BIND),
    Expect(wire.CLOSE),
    Expect(wire.DESCRIBE),
    Expect(wire.EXECUTE),
)

# What answers nothing, what is answered by ReadyForQuery, and which reply ends which message's.
ASIDE = frozenset((wire.PARAMETER, wire.NOTICE, wire.NOTIFICATION))
READIES = frozenset((wire.QUERY, wire.SYNC, wire.FUNCTION))
ANSWERS = {
    wire.PARSED: wire.PARSE,
    wire.BOUND: wire.BIND,
    wire.CLOSED: wire.CLOSE,
    wire.ROW_DESCRIPTION: wire.DESCRIBE,
    wire.NO_DATA: wire.DESCRIBE,
    wire.EMPTY_QUERY: wire.EXECUTE,
    wire.SUSPENDED: wire.EXECUTE,
}
