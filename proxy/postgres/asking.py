"""A text that would keep its connection: whether it may go on, has to wait, or is refused."""

from __future__ import annotations

from collections.abc import Callable


class Asking:
    """`hold`: no message goes on until something else has happened; `asks`: that is a slot for a connection of its
    own, for what `wants` says. `slot`: it has one. `refused`: the error that the text gets which waited in vain."""

    def __init__(self, ask: Callable[[], bool], *, slot: bool) -> None:
        self._ask = ask
        self.slot = slot
        self.hold = False
        self.asks = False
        self.wants = 0
        self.refused = b""

    def _may_pin(self, pins: int) -> bool:
        """Whether a text that pins may go on, to the server or to its refusal; else it waits."""
        if self.refused:
            return True
        if self._ask():
            self.slot = True
            return True
        self.hold = self.asks = True
        self.wants = pins
        return False

    def _go_on(self) -> None:
        self.hold = False

    def answered(self, refused: bytes = b"") -> None:
        """What `_may_pin` waited for: a slot, or the error that says that there is none."""
        self.hold = self.asks = False
        self.slot, self.refused = not refused, refused

    def _refusal(self) -> bytes:
        refused, self.refused = self.refused, b""
        return refused
