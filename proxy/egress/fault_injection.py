"""Faults on purpose, for staging: what an upstream would do on a bad day."""

from __future__ import annotations

import random
from collections.abc import Sequence

from proxy.policy.schema import InjectedFault


class FaultInjector:
    """The faults of one upstream. Each is drawn anew for each attempt."""

    def __init__(self, faults: Sequence[InjectedFault], draw: random.Random | None = None) -> None:
        self.faults = tuple(faults)
        self._random = draw or random.Random()  # noqa: S311 (no secret)

    def __bool__(self) -> bool:
        return bool(self.faults)

    def draw_injection(self) -> Injection | None:
        """Draw what this attempt meets: the delays of all that hit it, the first status, and whether it is cut."""
        hits = [fault for fault in self.faults if self._random.random() < fault.share]
        if not hits:
            return None
        return Injection(
            sum(fault.delay or 0.0 for fault in hits),
            next((fault.status for fault in hits if fault.status is not None), None),
            any(fault.cut for fault in hits),
        )


class Injection:
    """What one attempt meets: a delay, a status instead of an answer, a stream that is cut."""

    __slots__ = ("cut", "delay", "status")

    def __init__(self, delay: float, status: int | None, cut: bool) -> None:
        self.delay = delay  # seconds
        self.status = status
        self.cut = cut
