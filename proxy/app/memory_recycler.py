"""Memory pressure: a warning each time memory crosses its threshold, and if the policy says so, the app is replaced
before the kernel's OOM killer ends it."""

from __future__ import annotations

from collections.abc import Callable

from proxy.app import AppController
from proxy.observe.emit import EmitEvent
from proxy.observe.process_sampler import ResourceSample
from proxy.policy import schema

MIB = 1024 * 1024
HYSTERESIS = 0.05  # share of the limit by which memory must fall below a threshold before the next crossing counts
SAMPLES_OVER = 3  # in a row, one a second: a short peak is no reason to replace the app


class MemoryRecycler:
    """Compares every sample (`check_sample`) with the policy's `app.memory.warn` and `app.memory.recycle`.

    `replace` begins a replacement and returns at once. While the gateway is `stopping` nothing is replaced. Each
    obstacle to a replacement is logged once."""

    def __init__(
        self,
        app: AppController,
        policy: Callable[[], schema.App],
        *,
        replace: Callable[[str], object],
        emit: EmitEvent,
        clock: Callable[[], float],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._policy = policy
        self._replace = replace
        self._emit = emit
        self._clock = clock
        self._stopping = stopping
        self._warned = False
        self._samples_over = 0
        self._last_obstacle = ""  # why it is not replaced, as logged last
        self._replaced_at: float | None = None

    def check_sample(self, sample: ResourceSample) -> None:
        share = sample.memory_share
        policy = self._policy().memory
        # While the app starts or stops, its memory says nothing about a leak.
        if share is None or not self._app.is_ready or self._stopping():
            self._samples_over = 0
            return
        self._warn_once(sample, share, policy.warn)
        if policy.recycle is None:
            self._samples_over = 0
            return
        if share < policy.recycle - HYSTERESIS:
            self._last_obstacle = ""
        self._samples_over = self._samples_over + 1 if share >= policy.recycle else 0
        if self._samples_over >= SAMPLES_OVER:
            self._recycle_if_allowed(sample, share, policy)

    def _warn_once(self, sample: ResourceSample, share: float, warn: float) -> None:
        if self._warned and share < warn - HYSTERESIS:
            self._warned = False
        elif not self._warned and share >= warn:
            self._warned = True
            text = f"{_describe_usage(sample, share)} (app.memory.warn: {warn:.0%})."
            self._emit("memory.warning", text, level="warning", share=round(share, 3))

    def _recycle_if_allowed(self, sample: ResourceSample, share: float, policy: schema.Memory) -> None:
        why_not = self._find_obstacle(policy)
        if why_not is None:
            self._replaced_at = self._clock()
            self._samples_over = 0
            text = f"{_describe_usage(sample, share)}: the app is replaced (app.memory.recycle: {policy.recycle:.0%})."
            self._emit("memory.recycle", text, level="warning", share=round(share, 3))
            self._replace("memory")
        elif why_not != self._last_obstacle:
            self._last_obstacle = why_not
            text = f"{_describe_usage(sample, share)}, and the app is not replaced: {why_not}."
            self._emit("memory.recycle", text, level="warning", share=round(share, 3))

    def _find_obstacle(self, policy: schema.Memory) -> str | None:
        # A replacement must lose no request: they wait for the new process only as long as `app.hold`.
        hold, took = self._policy().hold, self._app.last_start_took
        if took is None or took >= hold:
            start = "unknown" if took is None else f"{took:.1f} s"
            return f"its last start took {start}, and requests wait no longer than {hold:g} s (app.hold)"
        if self._replaced_at is not None and self._clock() - self._replaced_at < policy.every:
            return f"it was replaced for memory less than {policy.every:g} s ago (app.memory.every)"
        return None


def _describe_usage(sample: ResourceSample, share: float) -> str:
    app, limit = (sample.app_bytes or 0) / MIB, (sample.limit_bytes or 0) / MIB
    return (
        f"Memory is at {share:.0%} of {limit:.0f} MiB: the app {app:.0f} MiB,"
        f" the gateway {sample.gateway_bytes / MIB:.0f} MiB"
    )
