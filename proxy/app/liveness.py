"""Whether the app hangs: its probes fail and nothing else is being answered either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.app.readiness import probe
from proxy.policy import model


class Liveness:
    def __init__(self, policy: Callable[[], model.Liveness], clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._last_answer = 0.0

    def note_answer(self) -> None:
        self._last_answer = self._clock()

    async def lost(self, host: str, port: int) -> str:
        """Comes back once the app hangs, with a sentence; never where no path is to be asked."""
        failures, streak = 0, self._clock()
        while True:
            policy = self._policy()
            await asyncio.sleep(policy.interval)
            if policy.path is None:
                continue
            asked = self._clock()
            if await probe(port, policy.path, policy.timeout, (host,)) is not None:
                failures = 0
                continue
            streak = asked if failures == 0 else streak
            failures = failures + 1 if self._last_answer < streak else 0
            if failures >= policy.failures:
                return f"The app hangs: {failures} probes of {policy.path} failed and nothing was answered."
