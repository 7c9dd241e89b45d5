"""Metric families without locks and with a bound on the number of their series.

prometheus-client's metrics take a lock at each increment, two for a histogram, which a single thread does not need:
0.3 µs in place of 2. The exposition is still written by prometheus-client, from what `collect` yields. The terms are
those of its data model: a family has label names, and a child for each set of label values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from proxy.util.optional_modules import hide_modules

OTHER_LABEL = "other"
_MAX_OTHER_SERIES = 100
_SAMPLES_PER_SLICE = 300  # samples yielded at once, about 2 ms of a whole core to make and to write


class Counter:
    """A counter. For the loop's thread alone."""

    __slots__ = ("value",)
    suffix = "_total"

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def iter_samples(self, name: str, labels: dict[str, str]) -> Iterator[Sample]:
        yield Sample(name + self.suffix, labels, self.value)


class Gauge(Counter):
    """A gauge."""

    __slots__ = ()
    suffix = ""

    def set(self, value: float) -> None:
        self.value = float(value)


class Histogram:
    """A histogram. `bounds` are the upper bounds of its buckets, without +Inf."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulative_counts(self) -> list[float]:
        """How many observations were at most each bound, +Inf the last."""
        return list(accumulate(map(float, self._counts)))

    def iter_samples(self, name: str, labels: dict[str, str]) -> Iterator[Sample]:
        names = (*(repr(float(bound)) for bound in self._bounds), "+Inf")
        counts = self.cumulative_counts()
        for bound, count in zip(names, counts, strict=True):
            yield Sample(f"{name}_bucket", {**labels, "le": bound}, count)
        yield Sample(f"{name}_count", labels, counts[-1])
        yield Sample(f"{name}_sum", labels, self._sum)


def time_awaitable(histogram: Histogram, work: Awaitable[Result]) -> Awaitable[Result]:
    """Await `work` and observe how many seconds it took, whether it returned, raised or was cancelled.

    By prometheus-async, for work off the hot path.
    """
    return _load_timer()(histogram, work)


@lru_cache(maxsize=1)
def _load_timer() -> Callable[..., Awaitable[Result]]:
    """Imported at the first use, since it takes 1.2 MiB; and without the server for scrapes that it would bring along,
    which takes another 2."""
    with hide_modules("aiohttp.web"):
        from prometheus_async.aio import time
    return time


Child = TypeVar("Child", Counter, Gauge, Histogram)
Result = TypeVar("Result")


class MetricFamily(Collector, Generic[Child]):
    """A metric with its children, one for each set of label values; `make` makes a child at its first use.

    Past `limit` sets of values, a new set is counted with its `free` labels (those whose values are not known
    beforehand: routes, models, tiers) as "other". The other labels have few values; if even these make more than 100
    further sets, every label is "other". `constant` labels are the same on every series, unless the family has its own
    of that name.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        text: str,
        labels: tuple[str, ...],
        make: Callable[[], Child],
        registry: CollectorRegistry,
        *,
        free: Iterable[str],
        limit: int,
        constant: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._constant = constant
        self.label_names = labels
        self._type = kind
        self._name = name.removesuffix("_total")
        self._documentation = text
        self._make_child: Callable[[], Child] = make
        self._open_labels = frozenset(free)
        self.max_series = limit
        self._children: dict[tuple[str, ...], Child] = {}
        registry.register(self)

    def __len__(self) -> int:
        return len(self._children)

    def labels(self, *values: str) -> Child:
        """The child of these label values, in the order of the label names."""
        found = self._children.get(values)
        return found if found is not None else self._add_child(values)

    def children(self) -> Iterable[tuple[tuple[str, ...], Child]]:
        return self._children.items()

    def remove(self, *values: str) -> None:
        """Remove a child: the gauge of something that no longer exists. Counters are never removed."""
        self._children.pop(values, None)

    def collect(self) -> Iterator[Metric]:
        """A few hundred samples at a time, as metrics of the same name; the samples of one child stay together."""
        metric = self._empty_metric()
        # A copy: the scrape pauses between slices, and children may be added meanwhile.
        for values, child in list(self._children.items()):
            if len(metric.samples) >= _SAMPLES_PER_SLICE:
                yield metric
                metric = self._empty_metric()
            labels = {**self._constant, **dict(zip(self.label_names, values, strict=True))}
            metric.samples += child.iter_samples(self._name, labels)
        yield metric

    def _empty_metric(self) -> Metric:
        return Metric(self._name, self._documentation, self._type)

    def _add_child(self, values: tuple[str, ...]) -> Child:
        # Only labels whose values come from outside are folded: the sum over the others stays right.
        if len(self._children) >= self.max_series:
            values = tuple(
                OTHER_LABEL if name in self._open_labels else value
                for name, value in zip(self.label_names, values, strict=True)
            )
            if len(self._children) >= self.max_series + _MAX_OTHER_SERIES and values not in self._children:
                values = (OTHER_LABEL,) * len(self.label_names)
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make_child()
        return child
