"""The app: started, watched, replaced, stopped. `AppFace` is how the rest of the house sees it."""

from __future__ import annotations

from typing import Literal, Protocol

from proxy.policy import model

State = Literal["starting", "ready", "restarting", "stopping", "ended"]


class AppFace(Protocol):
    """An app, whoever runs it. `since` is the clock's time of the last change of state."""

    state: State
    reason: str
    since: float

    @property
    def is_ready(self) -> bool: ...

    @property
    def address(self) -> tuple[str, int]: ...

    @property
    def pid(self) -> int | None: ...

    async def run(self) -> int:
        """Its whole life; the status that the gateway should exit with."""

    async def wait_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for it; at once where it is ready."""

    async def stop(self) -> None:
        """End it in order; at once where it has ended. May be called again."""

    def kill(self) -> None:
        """End it now."""

    def note_answer(self) -> None:
        """It has just answered something: it is alive, whatever a probe says."""

    def apply(self, policy: model.App) -> None:
        """Take a newer policy, as far as it can change while running."""
