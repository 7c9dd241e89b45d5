"""Whether something has been so for long enough, looked at every second."""

from __future__ import annotations

SETTLING = 10.0  # seconds at most that it must be well again until it counts as over
UNDECIDED = 60.0  # seconds for which neither yes nor no leaves it as it was


class Lasting:
    """A relapse within the time that it must last (10 s at most) goes on where it left off: an app that crashes
    again and again is down, however often it is up for a moment."""

    __slots__ = ("_unsure", "_well", "seconds", "since")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.since: float | None = None
        self._well: float | None = None
        self._unsure: float | None = None

    def note(self, now: float, bad: bool | None, since: float | None = None) -> None:
        """`bad` may be None: not known. `since` is when it began, where that is known."""
        if bad is None:
            self._unsure = now if self._unsure is None else self._unsure
            if now - self._unsure < UNDECIDED:
                return
            bad = False
        else:
            self._unsure = None
        if bad:
            if self.since is None:
                self.since = now if since is None else min(now, since)
            self._well = None
        elif self.since is not None:
            self._well = now if self._well is None else self._well
            if now - self._well >= min(self.seconds, SETTLING):
                self.since = self._well = None

    def holds(self, now: float) -> bool:
        return self.since is not None and now - self.since >= self.seconds
