"""Calls that go past the gateway, straight to the host of an upstream: a base_url that stands in the app's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.egress.upstream import Upstream
from proxy.observe.emit import EmitEvent
from proxy.observe.metrics import Metrics


@dataclass(slots=True)
class BypassedCalls:
    """How many calls bypassed an upstream, and when the first and the last; times are the clock's, in seconds."""

    count: int
    first: float
    last: float


class BypassDetector:
    """Counts bypassing calls by upstream, and warns of each upstream once. `bypassed` has the counts."""

    def __init__(
        self, upstreams: Mapping[str, Upstream], *, clock: Callable[[], float], metrics: Metrics, emit: EmitEvent
    ) -> None:
        self._upstreams = upstreams
        self._clock = clock
        self._metrics = metrics
        self._emit = emit
        self.bypassed: dict[str, BypassedCalls] = {}  # by the upstream's name

    def addresses(self) -> dict[str, str]:
        """HOST:PORT of each upstream's own host, with its name; if two share one, the first."""
        found: dict[str, str] = {}
        for name, upstream in self._upstreams.items():
            url = upstream.url("")
            found.setdefault(f"{url.host}:{url.port}".lower(), name)
        return found

    def record(self, address: str) -> None:
        """A call went to this HOST:PORT by another way than ours; one that no upstream names is nobody's business."""
        name = self.addresses().get(address.lower())
        if name is None:
            return
        now = self._clock()
        seen = self.bypassed.get(name)
        if seen is None:
            self.bypassed[name] = BypassedCalls(1, now, now)
            text = (
                f"A call went straight to {address}, past the upstream {name}: no retries, no cap, no owner."
                f" Look for a base_url in the app's code, or let it read {self._variable(name)}."
            )
            self._emit("bypass", text, level="warning", upstream=name, host=address)
        else:
            seen.count += 1
            seen.last = now
        self._metrics.bypass_total.labels(name).inc()

    def bypassed_within(self, seconds: float) -> list[str]:
        """The upstreams that were gone past in the last so many seconds: what the alert asks."""
        since = self._clock() - seconds
        return [name for name, seen in self.bypassed.items() if seen.last >= since and name in self._upstreams]

    def _variable(self, name: str) -> str:
        variables = self._upstreams[name].policy.env
        return variables[0] if variables else f"a variable that upstreams.{name}.env names"
