"""Whether an app that was ready still is one: nothing listens on its port any more, or its probes fail and nothing
else is being answered either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.app.probecost import ProbeCost
from proxy.app.readiness import Knock
from proxy.policy import model

LOOK = 2.0  # seconds between two looks at the port, each spared by an answer in between
AGAIN = 0.5  # once a connection was refused, ours or a request's
REFUSED = 3.0  # seconds of it; a child that a reloader starts anew is back by then


class Liveness:
    """`refused` counts the connections of requests that the app refused."""

    def __init__(
        self,
        policy: Callable[[], model.Liveness | None],
        clock: Callable[[], float],
        refused: Callable[[], int],
        cost: ProbeCost,
    ) -> None:
        self._policy = policy
        self._refused = refused
        self._clock = clock
        self._cost = cost
        self._last_answer = 0.0

    def note_answer(self) -> None:
        self._last_answer = self._clock()

    async def lost(self, host: str, port: int, *, listened: bool) -> str:
        """Comes back with a sentence once the app is no longer there; never where `app.liveness` is off.

        `listened`: something was seen to listen on the port.
        """
        ways = [asyncio.ensure_future(self._hangs(host, port))]
        if listened:
            ways.append(asyncio.ensure_future(self._refuses(port)))
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for way in ways:
                way.cancel()

    async def _refuses(self, port: int) -> str:
        """A first process that lives on (a wrapper, a reloader) says nothing of the app behind it."""
        knock = Knock()
        try:
            return await self._until_refused(port, knock)
        finally:
            knock.close()

    async def _until_refused(self, port: int, knock: Knock) -> str:
        since: float | None = None
        while True:
            looked, seen = self._clock(), self._refused()
            while self._clock() - looked < (AGAIN if since is not None or self._refused() != seen else LOOK):
                await asyncio.sleep(AGAIN)
            well = self._policy() is None or self._last_answer > looked
            well = well or (knock.waiting and self._refused() == seen)
            if well or not await knock.refused(port):
                since = None
                continue
            since = looked if since is None else since
            refused = self._clock() - since
            if refused >= REFUSED:
                return (
                    f"Nothing listens on port {port} any more, for {refused:.0f} s, though the process that was started"
                    " lives on (app.liveness)."
                )

    async def _hangs(self, host: str, port: int) -> str:
        failures, streak = 0, self._clock()
        while True:
            policy = self._policy()
            await asyncio.sleep(policy.interval if policy is not None else LOOK)
            if policy is None or policy.path is None:
                continue
            asked = self._clock()
            if await self._cost.probe(port, policy.path, policy.timeout, (host,)) is not None:
                failures = 0
                continue
            streak = asked if failures == 0 else streak
            failures = failures + 1 if self._last_answer < streak else 0
            if failures >= policy.failures:
                return f"The app hangs: {failures} probes of {policy.path} failed and nothing was answered."
