"""An event loop whose clock is a number: a sleep of an hour takes no time, and nothing depends on the machine."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Selector(selectors.SelectSelector):
    """Nothing is ever read from a socket here: to wait is to set the clock."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._of = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for what will never come")
        self._of.moment += max(0.0, timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`moment` is the time, in seconds."""

    def __init__(self, moment: float = 1_000.0) -> None:
        self.moment = moment
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.moment


def run_simulated(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(coroutine)
