"""What a message hangs on that the server has not said yet: what a name means, which unnamed statement there is."""

from __future__ import annotations

from collections.abc import Callable

from proxy.postgres import wire
from proxy.postgres.asking import Asking
from proxy.postgres.client_statements import Names
from proxy.postgres.expect import FAKE, Expect
from proxy.postgres.outstanding import Pipeline
from proxy.postgres.server_state import Backend
from proxy.postgres.statement_registry import Statement
from proxy.postgres.unnamed import Turn, Unnamed


class Waiting(Asking):
    """`hold` stops it until the server has said something that the next message depends on. What the server gets
    is left in `_out`."""

    def __init__(self, pipeline: Pipeline, *, ask: Callable[[], bool], slot: bool) -> None:
        super().__init__(ask, slot=slot)
        self._pipeline = pipeline
        self._out: list[bytes] = []
        self.backend: Backend | None = None
        self.names = Names()
        self.unnamed = Unnamed()

    def _unsure(self, name: bytes, statement: Statement | None = None) -> bool:
        """Whether the message has to wait until it is known what a name means."""
        pipeline = self._pipeline
        if not pipeline.queue:
            self.names.answered()
            self.unnamed.settle()
        if not self.names.unsure(name, statement):
            return False
        self._wait()
        return True

    def _wait(self) -> None:
        self.hold = True
        self._pipeline.expect(Expect(FAKE, done=self._sure, undo=self._go_on))
        self._out.append(wire.message(wire.FLUSH))

    def _sure(self, _: bytes) -> bytes:
        self.names.answered()
        self.unnamed.settle()
        self.hold = False
        return b""

    def _turned(self, entry: Expect, turn: Turn, also: Callable[[], None] | None = None) -> None:
        """A message that changes the unnamed statement is sent."""
        backend, pipeline = self._linked(), self._pipeline

        def undo() -> None:
            self.unnamed.undo(turn, backend, skipped=pipeline.skips)
            if also is not None:
                also()

        entry.undo = undo
        self.names.parsed = True
        pipeline.expect(entry)

    def _deep(self) -> bool:
        """Whether a message has to wait because too much is not answered that it hangs on."""
        if not self._pipeline.queue:
            self.unnamed.settle()
        if not self.unnamed.deep:
            return False
        self._wait()
        return True

    def _linked(self) -> Backend:
        assert self.backend is not None
        return self.backend
