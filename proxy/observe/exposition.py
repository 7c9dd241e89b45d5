"""Renders the exposition (what a scrape returns) in slices, so that other work gets its turn between them.

prometheus-client writes the text; `MetricFamily` gives it a few hundred samples at a time, since a hundred routes at
once would block the loop for about 30 ms on a whole core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

TEXT_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

EOF_MARKER = b"# EOF\n"


async def render_exposition(registry: CollectorRegistry, wanted: bool) -> tuple[bytes, str]:
    """The text and its Content-Type: OpenMetrics if `wanted`, else the Prometheus text format. There are no `_created`
    series: they would double a scrape and nobody reads them."""
    encode = openmetrics.generate_latest if wanted else generate_latest
    parts: list[bytes] = []
    kinds: dict[str, str] = {}
    last: tuple[str, str] = ("", "")
    for metric in registry.collect():
        # `tasks` is a gauge and `tasks_total` a counter. In OpenMetrics both families would be called `tasks`, which
        # strict parsers refuse, so the one that comes later goes by its samples' name, and has no type.
        if kinds.setdefault(metric.name, metric.type) != metric.type and wanted:
            metric = _untyped(metric)
        text = encode(_OneMetric(metric)).removesuffix(EOF_MARKER)
        # A family with many children comes in several slices of the same name.
        parts.append(_without_metadata(text) if (metric.name, metric.type) == last else text)
        last = (metric.name, metric.type)
        await asyncio.sleep(0)
    if wanted:
        parts.append(EOF_MARKER)
    return b"".join(parts), OPENMETRICS_CONTENT_TYPE if wanted else TEXT_CONTENT_TYPE


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header names OpenMetrics, and no plain text before it (RFC 9110 section 12.5.1)."""
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for choice in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in choice.split(";"))
        if kind in weights:
            weights[kind] = max(weights[kind], _parse_quality(parameters))
    return 0 < weights["application/openmetrics-text"] >= weights["text/plain"]


def _parse_quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


class _OneMetric(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _untyped(counter: Metric) -> Metric:
    metric = Metric(f"{counter.name}_total", counter.documentation, "unknown")
    metric.samples = counter.samples
    return metric


def _without_metadata(text: bytes) -> bytes:
    """A slice without HELP and TYPE, which are written once, before the first slice of a family."""
    at = 0
    while text.startswith(b"# ", at):
        at = text.index(b"\n", at) + 1
    return text[at:]
