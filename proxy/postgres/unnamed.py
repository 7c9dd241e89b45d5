"""The unnamed statement: which one a client has, and which one its server has.

Both are known when a message is sent, not when it is answered. Where it comes to nothing, they are what they were
before it; so the turns that are not answered yet hang together, each on the one before.
"""

from __future__ import annotations

from proxy.postgres.server_state import Backend
from proxy.postgres.session_state import NONE, Hints

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
