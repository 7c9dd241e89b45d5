"""Every metric of the gateway, on a registry of its own.

prometheus-client writes the exposition. `MetricFamily` counts without locks, and has what prometheus-client lacks: a
bound on label values.

Beside the metrics of the contract there are some of our own: `http_concurrency`, `rate_limit_evicted_total`,
`log_dropped_total`, `event_loop_lag_seconds`, `app_memory_growth_bytes`, `ledger_*`, `price_table_age_seconds`,
`bypass_total`, `alerts_sent_total`, `alert_delivery_seconds`, `postgres_connect_seconds`, `http_refusals_total`,
`shadow_total`, `http_streams`, `connections*`, `task_oldest_wait_seconds`, and
`process_*` (CPU time, memory and files of the gateway itself).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from proxy.observe.alerts.channels import CHANNELS
from proxy.observe.exposition import EOF_MARKER, render_exposition, wants_openmetrics
from proxy.observe.exposition_merge import FetchAppExposition, app_scrape_metrics
from proxy.observe.metric_family import OTHER_LABEL, Child, Counter, Gauge, Histogram, MetricFamily
from proxy.policy import schema

NAMESPACE = "outrigger"

# Few, since each bucket is a series for every route: 1 ms to 120 s, denser at the times of pages and model calls.
DURATION_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
CONCURRENCY_BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
WAIT_BUCKETS = (0.001, 0.01, 0.1, 0.5, 1, 5, 10)
STORE_BUCKETS = (0.00025, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
DELIVERY_BUCKETS = (0.1, 0.5, 1, 5, 30, 120, 600)
TASK_BUCKETS = (0.05, 0.25, 1, 5, 15, 30, 60, 120, 300, 900, 3600)

MAX_TALLIES = 1000  # kinds of requests, by route, method and status, whose counters are kept at hand
TASK_OUTCOMES = ("succeeded", "failed", "cancelled")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})

# Labels whose values come from the policy or from outside, and not from a list that is known here.
_OPEN_LABELS = frozenset({"region", "route", "tier", "upstream", "model", "reason", "alert"})
_STATUS_LABELS = {code: str(code) for code in range(100, 600)}


class Metrics:
    """The metrics as attributes, named as in the exposition, without the prefix. For the loop's thread alone.

    `family.labels("a", "b").inc()` counts under label values in the order of the contract. `fetch_app_exposition` is
    set to what fetches the app's own metrics.
    """

    def __init__(self, policy: schema.Metrics, *, version: str, region: str = "") -> None:
        # On every series, so that one Prometheus may look at several regions.
        self._constant = {"region": region} if region else {}
        self._max_series = policy.max_series
        self._families: list[MetricFamily[Any]] = []
        self._scrape_hooks: list[Callable[[], None]] = []
        self.fetch_app_exposition: FetchAppExposition | None = None
        self._request_tallies: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        counter, gauge, histogram = self._counter_family, self._gauge_family, self._histogram_family
        counter_alone, gauge_alone = self._counter_alone, self._gauge_alone

        self.http_requests_total = counter(
            "http_requests_total",
            "Requests answered, by the gateway or by the app.",
            "route",
            "method",
            "code",
        )
        self.http_request_duration_seconds = histogram(
            "http_request_duration_seconds",
            "From a request's first byte to the last of its answer.",
            DURATION_BUCKETS,
            "route",
        )
        self.http_overhead_seconds = histogram(
            "http_overhead_seconds", "Time that a request spent in the gateway itself.", OVERHEAD_BUCKETS
        ).labels()
        self.http_in_flight = gauge("http_in_flight", "Requests being answered.", "route")
        self.http_queued = gauge("http_queued", "Requests waiting for their turn.", "route")
        self.http_concurrency = histogram(
            "http_concurrency",
            "Requests of a route under way when one more got its place, itself included.",
            CONCURRENCY_BUCKETS,
            "route",
        )
        self.rate_limit_total = counter(
            "rate_limit_total", "Decisions of the rate limits.", "route", "tier", "decision"
        )
        self.rate_limit_evicted_total = counter_alone(
            "rate_limit_evicted_total", "Users whose counts were dropped to keep memory bounded."
        )
        self.http_refusals_total = counter(
            "http_refusals_total", "Requests that the policy refused with a status below 500.", "route", "name"
        )
        self.shed_total = counter("shed_total", "Requests refused because of overload.", "reason")
        self.http_streams = gauge("http_streams", "Streams and WebSockets open, on routes that bound them.", "route")
        self.connections = gauge("connections", "Clients' connections, by what they do.", "state")
        self.connections_limit = gauge_alone("connections_limit", "Clients' connections that there may be.")
        self.connections_refused_total = counter(
            "connections_refused_total", "Connections, or requests on them, that found no place.", "reason"
        )
        self.connections_evicted_total = counter_alone(
            "connections_evicted_total", "Idle connections that were closed to make room."
        )
        self.http_cache_total = counter(
            "http_cache_total", "Requests on routes that keep answers, by what became of them.", "route", "result"
        )
        self.shadow_total = counter(
            "shadow_total", "Requests that a route in shadow mode would have refused.", "route", "name"
        )
        self.concurrency_limit = gauge_alone("concurrency_limit", "Requests that the app gets at once; 0: no limit.")
        self.upstream_calls_total = counter(
            "upstream_calls_total", "Calls out, by how they ended.", "upstream", "model", "outcome"
        )
        self.upstream_attempts_total = counter(
            "upstream_attempts_total", "Attempts that the calls out took.", "upstream", "result"
        )
        self.bypass_total = counter("bypass_total", "Calls that went past the gateway to an upstream.", "upstream")
        self.upstream_call_duration_seconds = histogram(
            "upstream_call_duration_seconds",
            "A call out, all its attempts together.",
            DURATION_BUCKETS,
            "upstream",
        )
        self.upstream_first_byte_seconds = histogram(
            "upstream_first_byte_seconds",
            "From a call out to its answer's first byte.",
            DURATION_BUCKETS,
            "upstream",
        )
        self.breaker_state = gauge("breaker_state", "0 closed, 1 half-open, 2 open.", "upstream")
        self.tokens_total = counter("tokens_total", "Tokens of model calls.", "upstream", "model", "kind")
        self.cost_usd_total = counter("cost_usd_total", "Dollars spent on calls out.", "upstream", "model", "basis")
        self.cost_cap_ratio = gauge("cost_cap_ratio", "Spent share of the total cap.", "upstream")
        self.price_table_age_seconds = gauge_alone(
            "price_table_age_seconds", "Since the newest day that the source of the price table names."
        )
        self.cost_projected_usd = gauge(
            "cost_projected_usd",
            "Dollars of today at its end, at the pace of the last hour.",
            "upstream",
        )
        self.cache_total = counter("cache_total", "Answers of the cache.", "upstream", "result")
        self.postgres_server_connections = gauge("postgres_server_connections", "Connections to the database.", "state")
        self.postgres_client_connections = gauge(
            "postgres_client_connections", "Connections from the app to the pool.", "state"
        )
        self.postgres_wait_seconds = histogram(
            "postgres_wait_seconds", "How long clients waited for a database connection.", WAIT_BUCKETS
        ).labels()
        self.postgres_connect_seconds = histogram(
            "postgres_connect_seconds",
            "How long opening a connection to the database took, login included.",
            WAIT_BUCKETS,
        ).labels()
        self.postgres_transactions_total = counter(
            "postgres_transactions_total", "Transactions through the pool.", "outcome"
        )
        self.tasks = gauge("tasks", "Requests that run later, over all instances.", "route", "state")
        self.tasks_total = counter("tasks_total", "Tasks that ended.", "route", "outcome")
        self.task_wait_seconds = histogram(
            "task_wait_seconds", "From when a task could have run to when it did.", TASK_BUCKETS, "route"
        )
        self.task_run_seconds = histogram("task_run_seconds", "How long a try of a task took.", TASK_BUCKETS, "route")
        self.task_attempts_total = counter("task_attempts_total", "Tries of tasks.", "route", "result")
        self.task_oldest_wait_seconds = gauge(
            "task_oldest_wait_seconds", "How long the task has waited that waits longest, over all instances.", "route"
        )
        self.callbacks_total = counter("callbacks_total", "Deliveries of tasks' callbacks.", "result")
        self.app_up = gauge_alone("app_up", "1 while the app is ready, else 0.")
        self.app_memory_bytes = gauge_alone(
            "app_memory_bytes", "Resident memory of the app and its children; 0: not measured."
        )
        self.app_memory_growth_bytes = gauge(
            "app_memory_growth_bytes",
            "What the app's memory grew by in the last hour while requests of a route were in flight, split evenly.",
            "route",
        )
        self.memory_limit_bytes = gauge_alone(
            "memory_limit_bytes", "Memory that app and gateway may use together; 0: unknown."
        )
        self.app_restarts_total = counter("app_restarts_total", "Restarts of the app.", "reason")
        self.cpu_throttled_seconds_total = counter_alone(
            "cpu_throttled_seconds_total", "Time that the CPU quota held this container back."
        )
        self.event_loop_lag_seconds = gauge_alone(
            "event_loop_lag_seconds", "How late the gateway's loop was at its last second."
        )
        self.log_dropped_total = counter_alone("log_dropped_total", "Log lines that nobody read in time.")
        self.ledger_backlog_rows = gauge_alone("ledger_backlog_rows", "Rows that wait to be written to the ledger.")
        self.ledger_writes_total = counter("ledger_writes_total", "Batches written to the ledger, or not.", "result")
        self.ledger_write_seconds = histogram(
            "ledger_write_seconds", "How long the ledger's database took to write a batch, or to fail.", STORE_BUCKETS
        ).labels()
        self.ledger_folded_total = counter_alone(
            "ledger_folded_total", "Rows that were summed up because too many waited."
        )
        self.ledger_dropped_total = counter_alone(
            "ledger_dropped_total", "Rows that were lost because far too many waited, or no database takes them."
        )
        self.store_up = gauge_alone("store_up", "1 while the store answers, as memory always does, else 0.")
        self.store_operation_seconds = histogram(
            "store_operation_seconds",
            "How long operations of the shared store took, or failed to.",
            STORE_BUCKETS,
            "op",
        )
        self.store_fallback_total = counter(
            "store_fallback_total", "Decisions that were made without the shared store, because it was away.", "what"
        )
        self.instances = gauge("instances", "Instances that share the store, all of them, by region.", "region")
        self.alerts_firing = gauge("alerts_firing", "1 while the alert fires, else 0.", "alert")
        self.alerts_sent_total = counter(
            "alerts_sent_total", "Messages of alerts, by what became of them.", "sender", "result"
        )
        self.alert_delivery_seconds = histogram(
            "alert_delivery_seconds",
            "How long the delivery of an alert's message took, all its attempts together.",
            DELIVERY_BUCKETS,
            "sender",
        )
        self.policy_reloads_total = counter("policy_reloads_total", "Reloads of the policy.", "result")
        build = gauge("build_info", "Always 1; what runs.", "version", "python")
        build.labels(version, platform.python_version()).set(1)
        # Under our own prefix: the app's own process_* may be appended to the same scrape.
        ProcessCollector(namespace=NAMESPACE, registry=self.registry)

        for reason in ("total", "per_address", "descriptors"):
            self.connections_refused_total.labels(reason)
        for reason in ("crash", "memory", "hung", "reload"):
            self.app_restarts_total.labels(reason)
        for result in ("ok", "error"):
            self.ledger_writes_total.labels(result)
        for sender in CHANNELS:
            for result in ("ok", "error", "dropped"):
                self.alerts_sent_total.labels(sender, result)
            self.alert_delivery_seconds.labels(sender)
        for result in ("ok", "failed", "refused", "gone", "given_up"):
            self.callbacks_total.labels(result)
        for result in ("ok", "refused"):
            self.policy_reloads_total.labels(result)
        for what in ("limit", "cap", "pace", "cache"):
            self.store_fallback_total.labels(what)

    def observe_request(self, route: str, method: str, code: int, seconds: float, overhead: float) -> None:
        """Count a request that has ended. On the hot path: 0.5 µs, by three look-ups 0.7."""
        tally = self._request_tallies.get((route, method, code))
        if tally is None:
            tally = self._make_request_tally(route, method, code)
        count, durations = tally
        count.value += 1.0
        durations.observe(seconds)
        self.http_overhead_seconds.observe(overhead)

    def _make_request_tally(self, route: str, method: str, code: int) -> tuple[Counter, Histogram]:
        """What a request of this kind is counted by: one look in place of one in each family."""
        # Clients choose the method: an unknown one must not make a series of its own.
        known = method if method in METHODS else OTHER_LABEL
        labels = (route, known, _STATUS_LABELS.get(code, OTHER_LABEL))
        tally = self.http_requests_total.labels(*labels), self.http_request_duration_seconds.labels(route)
        if known is method and len(self._request_tallies) < MAX_TALLIES:
            self._request_tallies[route, method, code] = tally
        return tally

    def count_upstream_calls(self) -> int:
        """How many calls of all upstreams have ended, in whichever way."""
        return sum(int(count.value) for _, count in self.upstream_calls_total.children())

    def declare_routes(self, names: Iterable[str]) -> None:
        """Set the routes that exist now: their series start with 0, gauges of other routes are removed."""
        routes = dict.fromkeys(names)
        for series in (self.http_in_flight, self.http_queued, self.app_memory_growth_bytes):
            for values, _ in list(series.children()):
                if values[0] not in routes and values[0] != OTHER_LABEL:
                    series.remove(*values)
        for route in routes:
            self.http_in_flight.labels(route)
            self.http_queued.labels(route)
            self.app_memory_growth_bytes.labels(route)
            self.http_request_duration_seconds.labels(route)
            self.http_concurrency.labels(route)

    def declare_limits(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Set the (route, tier) pairs that have a rate limit: each decision starts with 0."""
        for route, tier in pairs:
            self.http_refusals_total.labels(route, "rate-limited")
            for decision in ("allowed", "refused", "shadow"):
                self.rate_limit_total.labels(route, tier, decision)

    def declare_tasks(self, names: Iterable[str]) -> None:
        """Set the routes that have tasks: their series start with 0, gauges of other routes are removed."""
        routes = dict.fromkeys(names)
        for series in (self.tasks, self.task_oldest_wait_seconds):
            for values, _ in list(series.children()):
                if values[0] not in routes and values[0] != OTHER_LABEL:
                    series.remove(*values)
        for route in routes:
            for state in ("queued", "running", *TASK_OUTCOMES):
                self.tasks.labels(route, state)
            for outcome in TASK_OUTCOMES:
                self.tasks_total.labels(route, outcome)
            self.task_oldest_wait_seconds.labels(route)
            self.task_wait_seconds.labels(route)
            self.task_run_seconds.labels(route)

    def declare_upstream(self, name: str) -> None:
        """Make the series of an upstream start with 0."""
        self.breaker_state.labels(name)
        self.bypass_total.labels(name)
        self.upstream_call_duration_seconds.labels(name)
        self.upstream_first_byte_seconds.labels(name)
        for outcome in ("ok", "error", "refused", "cached", "fallback"):
            self.upstream_calls_total.labels(name, OTHER_LABEL, outcome)
        for result in ("ok", "connect", "reset"):
            self.upstream_attempts_total.labels(name, result)
        for result in ("hit", "miss", "coalesced", "stale", "off"):
            self.cache_total.labels(name, result)

    def on_scrape(self, fill: Callable[[], None]) -> None:
        """Call `fill` before each scrape: for gauges that are cheaper to read then than to keep up to date."""
        self._scrape_hooks.append(fill)

    def follow_total(self, counter: Counter, total: Callable[[], float]) -> None:
        """Make a counter follow a total that another part counts anyway; it catches up at each scrape."""
        seen = 0.0

        def catch_up() -> None:
            nonlocal seen
            now = total()
            counter.inc(max(0.0, now - seen))  # a total that was reset must not make a counter go back
            seen = now

        self.on_scrape(catch_up)

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its Content-Type: OpenMetrics if `accept` wants it, and if the app, whose metrics may be
        appended, answers in it too; else Prometheus text."""
        wanted = wants_openmetrics(accept)
        # Asked first, since the app may answer in the text format only, and one exposition has one format.
        theirs = await self.fetch_app_exposition(wanted) if self.fetch_app_exposition is not None else None
        if theirs is not None and theirs.text and not theirs.openmetrics:
            wanted = False
        for fill in self._scrape_hooks:
            fill()
        text, kind = await render_exposition(self.registry, wanted)
        if theirs is not None:
            text = b"".join(
                (
                    text.removesuffix(EOF_MARKER),
                    app_scrape_metrics(theirs),
                    theirs.text or b"",
                    EOF_MARKER if wanted else b"",
                )
            )
        return text, kind

    def _counter_family(self, name: str, text: str, *labels: str) -> MetricFamily[Counter]:
        return self._make_family("counter", name, text, labels, Counter)

    def _gauge_family(self, name: str, text: str, *labels: str) -> MetricFamily[Gauge]:
        return self._make_family("gauge", name, text, labels, Gauge)

    def _histogram_family(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> MetricFamily[Histogram]:
        return self._make_family("histogram", name, text, labels, lambda: Histogram(buckets))

    def _counter_alone(self, name: str, text: str) -> Counter:
        return self._counter_family(name, text).labels()

    def _gauge_alone(self, name: str, text: str) -> Gauge:
        return self._gauge_family(name, text).labels()

    def _make_family(
        self, kind: str, name: str, text: str, labels: tuple[str, ...], make: Callable[[], Child]
    ) -> MetricFamily[Child]:
        name = f"{NAMESPACE}_{name}"
        series = MetricFamily(
            kind,
            name,
            text,
            labels,
            make,
            self.registry,
            free=_OPEN_LABELS,
            limit=self._max_series,
            constant=self._constant,
        )
        self._families.append(series)
        return series

    def apply(self, policy: schema.Metrics) -> None:
        """Put another bound on label values in force. Series that exist stay, since a counter must not vanish."""
        self._max_series = policy.max_series
        for series in self._families:
            series.max_series = policy.max_series
        self._request_tallies.clear()  # some may be folded into "other" that are not any more, or the other way round
