"""Samples, once a second, memory, CPU throttling, and the lag of the event loop."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from proxy.observe.cgroup import CpuThrottling
from proxy.observe.metrics import Metrics

SAMPLE_SECONDS = 1.0

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """One sample. `app_bytes` and `limit_bytes` are None if they are unknown; `throttled_s` is a total, `lag_s` how
    many seconds late the loop was."""

    gateway_bytes: int = 0
    app_bytes: int | None = None
    limit_bytes: int | None = None
    throttled_s: float = 0.0
    lag_s: float = 0.0

    @property
    def memory_share(self) -> float | None:
        """The share of the memory limit that gateway and app use together; may exceed 1."""
        if not self.limit_bytes or self.app_bytes is None:
            return None
        return (self.gateway_bytes + self.app_bytes) / self.limit_bytes


class ProcessSampler:
    """Takes a sample each second. `latest` is the last one; the listeners of `on_sample` get each one, on the loop."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        app_bytes: Callable[[], int | None],
        limit_bytes: Callable[[], int | None],
        own_bytes: Callable[[], int] | None = None,
        throttled: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._app_bytes = app_bytes
        self._limit_bytes = limit_bytes
        self._own_bytes = own_bytes or resident_bytes
        self._throttled = throttled or CpuThrottling().throttled_seconds
        self._sleep = sleep
        self._throttled_before = self._throttled()
        self._listeners: list[Callable[[ResourceSample], None]] = []
        self.latest = ResourceSample()

    def on_sample(self, listener: Callable[[ResourceSample], None]) -> None:
        self._listeners.append(listener)

    def take_sample(self, lag: float = 0.0) -> ResourceSample:
        """Take a sample now; `lag` is how many seconds late the loop was."""
        throttled = self._throttled()
        taken = ResourceSample(
            gateway_bytes=self._own_bytes(),
            app_bytes=self._app_bytes(),
            limit_bytes=self._limit_bytes(),
            throttled_s=throttled,
            lag_s=lag,
        )
        metrics = self._metrics
        metrics.app_memory_bytes.set(taken.app_bytes or 0)
        metrics.memory_limit_bytes.set(taken.limit_bytes or 0)
        metrics.event_loop_lag_seconds.set(lag)
        # What cannot be read for once counts as nothing, and a counter of ours may not fall.
        metrics.cpu_throttled_seconds_total.inc(max(0.0, throttled - self._throttled_before))
        self._throttled_before = throttled
        self.latest = taken
        for listener in self._listeners:
            listener(taken)
        return taken

    async def run(self) -> None:
        """Until it is cancelled."""
        lag = 0.0
        while True:
            self.take_sample(lag)
            # How late this task runs after its sleep is how late every other task runs, too.
            due = self._clock() + SAMPLE_SECONDS
            await self._sleep(SAMPLE_SECONDS)
            lag = max(0.0, self._clock() - due)


def resident_bytes() -> int:
    """Resident memory of this process; its highest so far if there is no /proc."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024
