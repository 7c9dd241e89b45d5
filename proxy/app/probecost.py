"""What the app's health path costs it, said once after the first probes: one that takes long, or asks a vendor."""

from __future__ import annotations

from collections.abc import Callable

from proxy.app.readiness import LOOPBACK, probe
from proxy.observe.events import Emit

FIRST = 3  # probes that are judged; what two of them show is no chance
SLOW = 1.0  # seconds


class ProbeCost:
    """`calls` counts the app's calls out that have ended, `quiet` says whether nobody else asks it for anything."""

    def __init__(self, emit: Emit, clock: Callable[[], float]) -> None:
        self._emit = emit
        self._clock = clock
        self._seen: list[tuple[float, int]] = []
        self._judged = False
        self.calls: Callable[[], int] = lambda: 0
        self.quiet: Callable[[], bool] = lambda: True

    async def probe(self, port: int, path: str | None, timeout: float, hosts: tuple[str, ...] = LOOPBACK) -> str | None:
        """As `readiness.probe`, with a look at what it cost."""
        if path is None or self._judged:
            return await probe(port, path, timeout, hosts)
        quiet, calls, began = self.quiet(), self.calls(), self._clock()
        host = await probe(port, path, timeout, hosts)
        if host is not None:
            took = self._clock() - began
            self._note(path, took, self.calls() - calls if quiet and self.quiet() else 0)
        return host

    def _note(self, path: str, took: float, calls: int) -> None:
        self._seen.append((took, calls))
        slow = [took for took, _ in self._seen if took > SLOW]
        calling = [calls for _, calls in self._seen if calls]
        said = []
        if len(slow) > 1 or (slow and slow[0] > 2 * SLOW):
            said.append(f"took {slow[-1]:.1f} s")
        if len(calling) > 1:
            said.append("calls a vendor each time, which may cost money")
        if said:
            text = (
                f"The app's health path {path} {' and '.join(said)}: it should be quick and ask nobody else. Leave it"
                " out of app.liveness (and app.ready), and the port alone is asked."
            )
            self._emit("app.probe", text, level="warning", path=path, took_s=round(took, 3), calls=calls)
        self._judged = bool(said) or len(self._seen) >= FIRST
