"""The history of the metrics, for the rules of the alerts and for the dashboard's last day.

Nothing is kept per request. Every 5 s the counters are read once. Whole snapshots are kept for the rules (every 5 s for
a quarter of an hour, every minute for up to an hour), and some sums for what the dashboard draws (the last quarter
of an hour by 5 s, the last day by 5 min). At 20 routes that is about 1 MiB.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.observe.metrics import Metrics
from proxy.observe.timeseries.snapshot import Snapshot, SnapshotReader, subtract_snapshots
from proxy.observe.timeseries.window_stats import WindowStats, window_stats

FINE_SECONDS = 5.0  # between two snapshots
FINE_HORIZON = 900.0  # seconds for which every snapshot is kept
COARSE_SECONDS = 60.0  # between the snapshots that are kept longer
MAX_WINDOW = 3600.0  # seconds; no rule may look further back
DAY_STEP = 300.0  # seconds for each point of the last day
DAY_SECONDS = 86400.0
FRESH_SECONDS = 0.5  # for which a snapshot is not read again

COLUMNS = (
    "requests",
    "errors",
    "p50_s",
    "p95_s",
    "calls",
    "failed_calls",
    "cost_usd",
    "throttled_s",
    "app_bytes",
    "gateway_bytes",
    "pool_in_use",
    "pool_waiting",
    "tasks_succeeded",
    "tasks_failed",
    "tasks_waiting",
    "tasks_running",
)
_FAILED_OUTCOMES = ("error", "refused")


@dataclass(frozen=True, slots=True)
class GaugeLevels:
    """What is measured and not counted; a point keeps the highest of its time."""

    app_bytes: float = 0.0
    gateway_bytes: float = 0.0
    pool_in_use: float = 0.0
    pool_waiting: float = 0.0
    tasks_waiting: float = 0.0
    tasks_running: float = 0.0


class PointSeries:
    """A time series for the dashboard: columns of a fixed length, the oldest point first. Times are seconds since
    1970."""

    def __init__(self, step: float, length: int) -> None:
        self.step = step
        self._times: deque[float] = deque(maxlen=length)
        self._columns: dict[str, deque[float | None]] = {name: deque(maxlen=length) for name in COLUMNS}

    def add(self, at: float, found: WindowStats, levels: GaugeLevels) -> None:
        total = found.total_routes()
        outcomes = [outcome for upstream in found.calls.values() for outcome in upstream.items()]
        values: tuple[float | None, ...] = (
            total.requests,
            total.errors,
            _round_seconds(total.quantile(0.5)),
            _round_seconds(total.quantile(0.95)),
            sum(count for _, count in outcomes),
            sum(count for outcome, count in outcomes if outcome in _FAILED_OUTCOMES),
            round(sum(found.cost.values()), 6),
            round(found.throttled, 3),
            levels.app_bytes,
            levels.gateway_bytes,
            levels.pool_in_use,
            levels.pool_waiting,
            sum(outcomes.get("succeeded", 0.0) for outcomes in found.tasks.values()),
            sum(outcomes.get("failed", 0.0) for outcomes in found.tasks.values()),
            levels.tasks_waiting,
            levels.tasks_running,
        )
        self._times.append(round(at, 1))
        for name, value in zip(COLUMNS, values, strict=True):
            self._columns[name].append(value)

    def as_lists(self) -> dict[str, object]:
        return {"step_s": self.step, "at": list(self._times)} | {
            name: list(column) for name, column in self._columns.items()
        }


class MetricsHistory:
    """Keeps the snapshots and the points. `clock` is monotonic, `now` the wall clock. For the loop's thread alone."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        levels: Callable[[], GaugeLevels] = GaugeLevels,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._reader = SnapshotReader(metrics)
        self.clock = clock
        self._now = now
        self._levels = levels
        self._sleep = sleep
        began = clock()
        self._latest: tuple[float, Snapshot] = (began, self._reader.read_snapshot())
        self._fine_snapshots: deque[tuple[float, Snapshot]] = deque([self._latest])
        self._coarse_snapshots: deque[tuple[float, Snapshot]] = deque()
        self._recent_points = PointSeries(FINE_SECONDS, int(FINE_HORIZON / FINE_SECONDS))
        self._day_points = PointSeries(DAY_STEP, int(DAY_SECONDS / DAY_STEP))
        self._day_step_start = self._latest
        self._peak_levels = GaugeLevels()
        self._windows_at = began  # several rules ask for the same window at once
        self._windows: dict[float, WindowStats] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._sleep(FINE_SECONDS)
            self.record_snapshot()

    def record_snapshot(self) -> None:
        """Read the counters and keep them."""
        now, row = self._latest = self.clock(), self._reader.read_snapshot()
        before_at, before = self._fine_snapshots[-1]
        levels = self._levels()
        places = self._reader.offsets()
        self._recent_points.add(
            self._now(), window_stats(now - before_at, subtract_snapshots(before, row), places), levels
        )
        self._peak_levels = _max_levels(self._peak_levels, levels)
        since, first = self._day_step_start
        # Half a step of tolerance, since the task does not wake up exactly every 5 s.
        if now - since >= DAY_STEP - FINE_SECONDS / 2:
            self._day_points.add(
                self._now(), window_stats(now - since, subtract_snapshots(first, row), places), self._peak_levels
            )
            self._day_step_start = self._latest
            self._peak_levels = GaugeLevels()
        self._fine_snapshots.append(self._latest)
        self._expire_snapshots(now)

    def window(self, seconds: float) -> WindowStats:
        """The statistics of the last so many seconds, at most an hour. The end of the window is at most half a second
        old; its beginning is the newest snapshot that is old enough, so it may be up to 5 s too long, or 60 s if it is
        over 15 min."""
        if self.clock() - self._latest[0] > FRESH_SECONDS:
            self._latest = (self.clock(), self._reader.read_snapshot())
        now, row = self._latest
        if self._windows_at != now:
            self._windows_at, self._windows = now, {}
        if seconds not in self._windows:
            self._windows[seconds] = self._compute_window(seconds, now, row)
        return self._windows[seconds]

    def _compute_window(self, seconds: float, now: float, row: Snapshot) -> WindowStats:
        wanted = now - seconds + FINE_SECONDS / 100  # a snapshot that is late by a trifle still counts
        began, first = (self._coarse_snapshots or self._fine_snapshots)[0]
        for rows in (self._fine_snapshots, self._coarse_snapshots):
            older = next((one for one in reversed(rows) if one[0] <= wanted), None)
            if older is not None:
                began, first = older
                break
        return window_stats(now - began, subtract_snapshots(first, row), self._reader.offsets())

    def day_series(self) -> dict[str, object]:
        """The last day by 5 min as lists of one length, oldest first: `at` (the end of each step, in seconds since
        1970) and the COLUMNS, None if nothing was answered. The current step is not among them."""
        return self._day_points.as_lists()

    def recent_series(self) -> dict[str, object]:
        """The last 15 min by 5 s, in the form of `day_series`."""
        return self._recent_points.as_lists()

    def _expire_snapshots(self, now: float) -> None:
        while now - self._fine_snapshots[0][0] > FINE_HORIZON:
            oldest = self._fine_snapshots.popleft()
            if (
                not self._coarse_snapshots
                or oldest[0] - self._coarse_snapshots[-1][0] >= COARSE_SECONDS - FINE_SECONDS / 2
            ):
                self._coarse_snapshots.append(oldest)
        while self._coarse_snapshots and now - self._coarse_snapshots[0][0] > MAX_WINDOW + COARSE_SECONDS:
            self._coarse_snapshots.popleft()


def _max_levels(a: GaugeLevels, b: GaugeLevels) -> GaugeLevels:
    return GaugeLevels(
        max(a.app_bytes, b.app_bytes),
        max(a.gateway_bytes, b.gateway_bytes),
        max(a.pool_in_use, b.pool_in_use),
        max(a.pool_waiting, b.pool_waiting),
        max(a.tasks_waiting, b.tasks_waiting),
        max(a.tasks_running, b.tasks_running),
    )


def _round_seconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
