"""The app: started, watched, replaced, stopped. `AppController` is how the rest of the house sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from proxy.app.exit_history import ExitHistory
from proxy.policy import schema

AppEnvironment = tuple[Mapping[str, str], bool]  # an environment, and whether the lines that the app prints are wrapped
AppState = Literal["starting", "ready", "restarting", "stopping", "ended"]


class AppTraffic(Protocol):
    """What the app is asked just now, by those who send it requests. `refused`: connections that it refused so far."""

    refused_connections: int

    @property
    def in_use(self) -> int:
        """Connections with a request under way; tunnels are none."""

    def close_idle(self) -> None:
        """End the connections that wait for a next request."""

    def abort_requests(self, detail: str) -> int:
        """End those with a request under way, and say how many there were; who waits for an answer is told why."""


class AppController(Protocol):
    """An app, whoever runs it. `since` is the clock's time of the last change of state."""

    state: AppState
    reason: str
    since: float
    exits: ExitHistory
    last_start_took: float | None  # seconds from its start to its being ready; None where that is not known

    @property
    def is_replacing(self) -> bool:
        """Away because it is being replaced, and not for longer than that may take."""

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

    def attach_traffic(
        self, traffic: AppTraffic, drain: Callable[[], float], calls: Callable[[], int] = lambda: 0
    ) -> None:
        """Know who sends it requests, how many seconds those in flight have before it is replaced, and how many calls
        out have ended so far."""

    def set_environment_source(self, outfit: Callable[[], AppEnvironment]) -> None:
        """Know what to start it with: asked at each start."""

    def start_replacement(self, reason: str) -> bool:
        """Begin what `replace` waits for; False where there is nothing to replace now."""

    async def replace(self, reason: str) -> bool:
        """Stop it in order and start it anew, losing no request: new ones wait, those in flight finish first.
        True once the new one is ready; False where it was not ready to begin with, is not ours to start, or
        did not come back. Whoever waits here may go: the replacement goes on."""

    def record_answer(self) -> None:
        """It has just answered something: it is alive, whatever a probe says."""

    def apply(self, policy: schema.App) -> None:
        """Take a newer policy, as far as it can change while running."""
