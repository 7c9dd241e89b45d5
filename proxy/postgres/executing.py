"""What a client has executed, as far as the door has to know of it: what it may leave behind, what it gives up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from proxy.postgres import wire
from proxy.postgres.expect import FAKE, Expect
from proxy.postgres.outstanding import Pipeline
from proxy.postgres.session_state import FORGET, LOCAL, NONE, PREPARED, RESETS, Hints
from proxy.postgres.session_state import MOST_NAMES as MOST_MENTIONED
from proxy.postgres.statement_registry import Statement
from proxy.postgres.waiting import Waiting


def _nothing(_names: tuple[bytes, ...], _extended: bool, _: bytes) -> bytes:
    return b""


class Executing(Waiting):
    """The part of a frontend that knows what texts do."""

    def __init__(self, pipeline: Pipeline, *, ask: Callable[[], bool], slot: bool) -> None:
        super().__init__(pipeline, ask=ask, slot=slot)
        self._local = False  # what is executed sets nothing but for its transaction
        self._bound = False  # something was bound since the last Sync
        self.given_up: dict[bytes, bytes] = {}  # the server's names of what was deallocated, and the client's
        self.portals: dict[bytes, tuple[Hints, Statement | None]] = {}  # those whose end the door has to know of
        self.foreign = False  # the server was opened with another NAME or ENCODING than the client
        self.put_back: Callable[[tuple[bytes, ...], bool, bytes], bytes] = (
            _nothing  # what a RESET led to the server's own
        )
        self.stop = False  # the message at hand is the last until it is answered
        self.flags = 0  # what this transaction may leave behind
        self.mentioned: dict[bytes, None] = {}  # parameters of the app's own

    def _deallocated(self, name: bytes, statement: Statement, _: bytes) -> bytes:
        self.names.drop(name, statement)
        self._linked().prepared.pop(statement, None)
        return b""

    # ── portals ──────────────────────────────────────────────────────────────────────────────

    def _minds(self, portal: bytes, hints: Hints, given: Statement | None) -> None:
        self.portals.pop(portal, None)
        if (hints.flags & FORGET or hints.resets) and len(self.portals) < MOST_MENTIONED:
            self.portals[portal] = hints, given

    def _executes(self, body: bytes) -> bool:
        """Whether what a portal does when it is executed is minded here."""
        found = self.portals.get(body[: body.find(b"\0")])
        if found is None:
            return False
        hints, given = found
        self._hinted(hints)
        if given is not None:
            done = partial(self._deallocated, hints.deallocates, given)
            self._pipeline.expect(Expect(wire.EXECUTE, statement=given, name=hints.deallocates, done=done))
            return True
        if not hints.resets or not self.foreign:
            return False
        # DISCARD ALL has ended its transaction, so there is none to put anything into.
        back = partial(self.put_back, hints.resets, not hints.flags & FORGET)
        self._pipeline.expect(Expect(wire.EXECUTE, flags=RESETS, done=back))
        self._stop(self._executed_on)
        return True

    def _executed_on(self, _: bytes) -> bytes:
        self.hold = False
        return b""

    def _stop(self, on: Callable[[bytes], bytes]) -> None:
        """The message at hand has to be answered before the next one goes."""
        self.stop = True
        self._pipeline.expect(Expect(FAKE, done=on, undo=self._go_on))

    # ── what it leaves behind ────────────────────────────────────────────────────────────────

    def _hinted(self, hints: Hints) -> None:
        if hints is NONE:
            return
        self.flags |= hints.flags & ~(LOCAL | PREPARED | FORGET)
        if hints.flags & FORGET:
            self.names.forgets = True
        for name in hints.names:
            if len(self.mentioned) < MOST_MENTIONED:
                self.mentioned[name] = None

    def _binds(self, flags: int) -> None:
        self._local = bool(flags & LOCAL) and (self._local or not self._bound)
        self._bound = True
