"""A metric whose number of series is bounded, whatever values its labels are given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

Child = TypeVar("Child", Counter, Gauge, Histogram)

OTHER = "other"
_SPILL = 100


class Series(Generic[Child]):
    """The children of one labelled metric, kept by their label values.

    Past `limit` sets of values, a new set is counted with its `free` labels (those whose values nobody lists
    beforehand: routes, models, tiers) as "other". What remains is a handful of words; should even these pass
    100 sets, every label is "other".
    """

    __slots__ = ("_children", "_free", "_limit", "_metric", "_names")

    def __init__(self, metric: Child, names: tuple[str, ...], *, free: Iterable[str], limit: int) -> None:
        self._metric: Child = metric
        self._names = names
        self._free = frozenset(free)
        self._limit = limit
        self._children: dict[tuple[str, ...], Child] = {}

    def __len__(self) -> int:
        return len(self._children)

    def child(self, *values: str) -> Child:
        """The series of these label values, in the order of the label names; made at its first use."""
        found = self._children.get(values)
        return found if found is not None else self._admit(values)

    def values(self) -> list[tuple[str, ...]]:
        return list(self._children)

    def numbers(self) -> Iterator[tuple[tuple[str, ...], list[float]]]:
        """The label values and the count of every counter or gauge, or a histogram's counts up to each bound.

        Read where the client library keeps them: what it hands out is made anew each time, several times as dear.
        """
        for values, child in self._children.items():
            if isinstance(child, Histogram):
                yield values, list(accumulate(bucket.get() for bucket in child._buckets))
            else:
                yield values, [child._value.get()]

    def forget(self, *values: str) -> None:
        """Takes a series out: a gauge of something that is no more. Counters are never forgotten."""
        if self._children.pop(values, None) is not None:
            self._metric.remove(*values)

    def _admit(self, values: tuple[str, ...]) -> Child:
        if len(self._children) >= self._limit:
            values = tuple(
                OTHER if name in self._free else value for name, value in zip(self._names, values, strict=True)
            )
            if len(self._children) >= self._limit + _SPILL and values not in self._children:
                values = (OTHER,) * len(self._names)
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child
