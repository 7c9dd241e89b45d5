"""The app as the relay sees it: where it listens and whether it is there."""

from __future__ import annotations

from typing import Protocol


class Backend(Protocol):
    @property
    def is_ready(self) -> bool: ...

    @property
    def state(self) -> str:
        """One of starting, ready, restarting, stopping, ended."""

    @property
    def address(self) -> tuple[str, int]: ...

    async def wait_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for it; at once where it is ready."""

    def note_answer(self) -> None:
        """The app has just answered something: it is alive whatever a probe says."""
