"""The retry budget: how many second attempts an upstream gets, whoever asks.

Each call that retries on its own makes an overload worse: with four attempts a failing provider gets four
times the load. A budget over all calls bounds that to a share (as Finagle's RetryBudget and Envoy's
`retry_budget` do), and by time: some are allowed however few the calls are.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.util.sliding_window import SlidingWindow

BUDGET_SECONDS = 60.0  # the window in which calls and retries are counted
# Retries in a window that are always allowed: of few calls a share is none, and they overload nobody.
MIN_RETRIES = 10


class RetryBudget:
    """Counts calls and retries of one upstream; `share` of its calls may be made again, 0 to 1."""

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self.share = share
        self._calls = SlidingWindow(BUDGET_SECONDS, clock)
        self._retries = SlidingWindow(BUDGET_SECONDS, clock)

    def __repr__(self) -> str:
        return f"<Budget {self._retries.counts()[0]} retries of {self.allowed()}>"

    def record_call(self) -> None:
        self._calls.add()

    def allowed(self) -> float:
        return max(MIN_RETRIES, self.share * self._calls.counts()[0])

    def try_acquire(self) -> bool:
        """Whether one more retry is within the budget; it is taken if so."""
        if self._retries.counts()[0] + 1 > self.allowed():
            return False
        self._retries.add()
        return True
