"""An app that something else runs: `app.url`, or `app.port` without a command.

It is probed, but not started or stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

from proxy.app import AppEnvironment, AppState, AppTraffic
from proxy.app.exit_history import ExitHistory
from proxy.app.probes import LOOPBACK, probe_app
from proxy.errors import UsageError
from proxy.observe.emit import EmitEvent
from proxy.policy import schema

READY_PROBE_SECONDS = (
    2.0  # seconds between two probes of a ready app: after two of them, so within 5 s, health is right
)


class ExternalApp:
    """Ready while its port accepts connections, or while `ready.path` answers; a request answered just now saves the
    probe. An `AppController` whose methods to start and stop do nothing."""

    def __init__(self, policy: schema.App, *, emit: EmitEvent, clock: Callable[[], float]) -> None:
        """Raises UsageError if the URL is not http://HOST:PORT."""
        self._policy = policy
        self._emit = emit
        self._clock = clock
        self._hosts, self._port = _parse_address(policy)
        self._host = self._hosts[0]
        self._ready = asyncio.Event()
        self._stopped = asyncio.Event()
        self._last_answer = 0.0
        self.state: AppState = "starting"
        self.reason = "not asked yet"
        self.since = clock()
        self.last_start_took: float | None = None
        self.exits = ExitHistory()  # whoever runs it knows them

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    @property
    def pid(self) -> int | None:
        return None

    @property
    def is_replacing(self) -> bool:
        return False

    def attach_traffic(
        self, traffic: AppTraffic, drain: Callable[[], float], calls: Callable[[], int] = lambda: 0
    ) -> None:
        pass  # whoever runs it drains its requests

    def set_environment_source(self, outfit: Callable[[], AppEnvironment]) -> None:
        pass  # whoever starts it sets its environment

    def start_replacement(self, reason: str) -> bool:
        return False

    async def replace(self, reason: str) -> bool:
        return False

    def record_answer(self) -> None:
        self._last_answer = self._clock()

    def apply(self, policy: schema.App) -> None:
        self._policy = policy

    async def run(self) -> int:
        while not self._stopped.is_set():
            policy = self._policy
            # A request that it just answered is as good as a probe.
            if self.is_ready and self._clock() - self._last_answer < READY_PROBE_SECONDS:
                host: str | None = self._host
            else:
                host = await probe_app(self._port, policy.ready.path, policy.ready.timeout, self._hosts)
            if not self._stopped.is_set():
                self._update_state(host)
            try:
                async with asyncio.timeout(READY_PROBE_SECONDS if self.is_ready else policy.ready.interval):
                    await self._stopped.wait()
            except TimeoutError:
                continue
        return 0

    def _update_state(self, host: str | None) -> None:
        if host is not None:
            self._host = host
            if not self.is_ready:
                self._set_state("ready", "it answers")
                self._emit("app.ready", f"The app at {host}:{self._port} is ready.")
        elif self.is_ready:
            self._set_state("restarting", "it stopped answering")
            self._emit("app.gone", f"The app at {self._host}:{self._port} stopped answering.", level="error")
        elif self.state == "starting":
            self.reason = "it does not answer yet"

    async def wait_ready(self, timeout: float) -> bool:
        if not self.is_ready:
            try:
                async with asyncio.timeout(None if timeout == float("inf") else timeout):
                    await self._ready.wait()
            except TimeoutError:
                pass
        return self.is_ready

    async def stop(self) -> None:
        if not self._stopped.is_set():
            self._set_state("stopping", "the gateway is stopping")
            self._stopped.set()

    def kill(self) -> None:
        self._stopped.set()

    def _set_state(self, state: AppState, reason: str) -> None:
        self.state, self.reason, self.since = state, reason, self._clock()
        if state == "ready":
            self._ready.set()
        else:
            self._ready.clear()


def _parse_address(policy: schema.App) -> tuple[tuple[str, ...], int]:
    if policy.url is None:
        if policy.port == "auto":
            raise UsageError("app.port says where the app is when nothing is started; it may not be auto then")
        return LOOPBACK, policy.port
    url = urlsplit(policy.url)
    if url.scheme != "http" or url.hostname is None:
        raise UsageError(f"app.url: {policy.url} is not http://HOST:PORT; the leg to the app is plain HTTP")
    return (url.hostname,), url.port or 80
