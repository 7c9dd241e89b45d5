"""One deadline for a call: over its attempts, the waits between them, and the stream.

Until the first byte goes to the app, the caller's own patience bounds all of it together; afterwards the patience
bounds each gap. The time of the whole call (`timeout.total`) bounds it from beginning to end.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

REPLY_MARGIN = 0.25  # seconds before the caller's patience ends: our answer must still arrive
LATE_SECONDS = 0.05  # a timer that fires so much later than it was set for means that this process was held up
PATIENCE_HEADER = "x-stainless-read-timeout"  # the OpenAI and Anthropic SDKs' read time-out, in seconds


class Deadline:
    """An asynchronous context manager that raises TimeoutError when the time is over.

    `total` and `patience` are seconds from `began` (the loop's clock), or None.

    Attributes:
        at: when it passes, by the loop's clock, unless a gap ends it before; None if it never does.
        reason: which time ends it, or has: `total`, `patience`, `idle`; whoever makes it may name another.
        expired: whether it has passed; the task is being cancelled then.
        app_is_slow: whether a write to the app is under way, which is not the upstream's silence.
    """

    def __init__(self, began: float, *, total: float | None, patience: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._total_at = began + total if total is not None else None
        # Of a patience that is shorter than two margins, half is left for the call.
        self._patience = max(patience - REPLY_MARGIN, patience / 2) if patience is not None else None
        first = began + self._patience if self._patience is not None else None
        ends = [end for end in (self._total_at, first) if end is not None]
        self.at = min(ends) if ends else None
        self.reason = "total" if self.at == self._total_at else "patience"
        self._task: asyncio.Task[object] | None = None  # that this bounds, between entering and leaving
        self._cancellations = 0  # others' requests to cancel it, from before
        self._expiry: asyncio.Handle | None = None
        self.expired = False
        self._gap: float | None = None
        self._progress_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._was_late = False
        self.app_is_slow = False

    async def __aenter__(self) -> Deadline:
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancellations = task.cancelling()
        self._set_expiry(self.at)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._set_expiry(None)
        task, self._task = self._task, None
        # As in asyncio.timeout: the cancellation is ours alone if nobody else has asked for one meanwhile.
        if (
            self.expired
            and task is not None
            and task.uncancel() <= self._cancellations
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error

    def seconds_left(self) -> float:
        """Seconds until it passes, as long as nothing went to the app."""
        return float("inf") if self.at is None else self.at - self._loop.time()

    def commit(self, idle: float | None) -> None:
        """The answer's first byte goes to the app now: from here on each gap is bounded, and the whole."""
        # What has passed stays so, and a second commit changes nothing.
        if self.expired or self._timer is not None:
            return
        if self.at != self._total_at:
            self._set_expiry(self._total_at)
        self.at = self._total_at
        self.reason = "total"
        gaps = [gap for gap in (idle, self._patience) if gap is not None]
        if gaps:
            self._gap = min(gaps)
            self._progress_at = self._loop.time()
            self._set_gap_timer(self._progress_at + self._gap)

    def disable(self) -> None:
        """The call became a tunnel, which no deadline ends."""
        self.at = self._total_at = None
        self._set_expiry(None)

    def record_progress(self) -> None:
        """A byte came."""
        self._progress_at = self._loop.time()

    def _set_gap_timer(self, due: float) -> None:
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._check_gap)

    def _check_gap(self) -> None:
        # One timer is set again when it fires, not at each byte: bytes come far more often.
        if self._gap is None or self.expired:
            return
        now = self._loop.time()
        if self.app_is_slow:  # the reader is slow, not the upstream
            self._progress_at = now
        due = self._progress_at + self._gap
        if now < due:
            self._was_late = False
            self._set_gap_timer(due)
            return
        # A process that got no CPU for a while (cgroup throttling) has bytes of the upstream waiting in its socket,
        # which it reads after its timers. That silence was its own: they are read before the upstream is judged.
        if now - self._timer_due > LATE_SECONDS and not self._was_late:
            self._was_late = True  # not twice: a loop that is always late has read in between
            self._set_gap_timer(now + LATE_SECONDS)
            return
        # First the reason: the cancellation that follows is told apart by it.
        self.reason = "idle"
        self._expire()

    def _set_expiry(self, at: float | None) -> None:
        """Have the task cancelled at this moment, in place of another one; None: not at all."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if at is not None and not self.expired and self._task is not None:
            self._expiry = self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._set_expiry(None)
        if self._task is not None:
            self.expired = True
            self._task.cancel()


def parse_patience(value: str | None) -> float | None:
    """Seconds of an SDK's read time-out header; None if it is absent, nonsense or endless."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < 86400 else None
