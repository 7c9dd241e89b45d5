"""The app: started, watched, replaced, stopped. The rest of the gateway knows it as an `AppController`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from proxy.app.exit_history import ExitHistory
from proxy.policy import schema

AppEnvironment = tuple[Mapping[str, str], bool]  # the variables, and whether the lines that the app prints are wrapped
AppState = Literal["starting", "ready", "restarting", "stopping", "ended"]


class AppTraffic(Protocol):
    """The requests that the app has now, as their sender knows them; implemented by the pool of connections to it.

    `refused_connections` counts the connections that it refused so far.
    """

    refused_connections: int

    @property
    def in_use(self) -> int:
        """Connections with a request in flight; tunnels do not count."""

    def close_idle(self) -> None:
        """Close the connections that wait for a next request."""

    def abort_requests(self, detail: str) -> int:
        """Close those with a request in flight; how many there were. `detail` is what their clients are told."""


class AppController(Protocol):
    """An app, whoever runs it: the supervisor, or somebody else (`ExternalApp`).

    `state` and `reason` (a sentence) say how it is, `since` is the clock's time of the last change of state. `exits`
    is how it ended so far. `last_start_took` is in seconds, None if it is not known.
    """

    state: AppState
    reason: str
    since: float
    exits: ExitHistory
    last_start_took: float | None

    @property
    def is_replacing(self) -> bool:
        """Whether it is away because it is being replaced, and not for longer than that may take."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def address(self) -> tuple[str, int]: ...

    @property
    def pid(self) -> int | None: ...

    async def run(self) -> int:
        """Run it until it has ended for good; the status that the gateway should exit with."""

    async def wait_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for it to be ready; whether it is."""

    async def stop(self) -> None:
        """Stop it in order: its stop signal, and SIGKILL after its stop timeout. May be called again."""

    def kill(self) -> None:
        """Kill it now."""

    def attach_traffic(
        self, traffic: AppTraffic, drain: Callable[[], float], calls: Callable[[], int] = lambda: 0
    ) -> None:
        """Set what it has to know of its traffic: `drain` gives the seconds that requests in flight have before it is
        replaced, `calls` how many calls out have ended so far."""

    def set_environment_source(self, outfit: Callable[[], AppEnvironment]) -> None:
        """Set where its environment comes from; `outfit` is called at each start."""

    def start_replacement(self, reason: str) -> bool:
        """Begin what `replace` waits for; False if there is nothing to replace now."""

    async def replace(self, reason: str) -> bool:
        """Stop it in order and start it anew without losing a request: new ones wait, those in flight finish first.
        True as soon as the new one is ready; False if it was not ready to begin with, is not ours to start, or
        did not come back. If the caller is cancelled, the replacement goes on."""

    def record_answer(self) -> None:
        """Note that it has just answered a request: it is alive, whatever a probe says."""

    def apply(self, policy: schema.App) -> None:
        """Put a newer policy in force, as far as it can change while the app runs."""
