"""Every metric of the contract is there from the start, under its name, and stays within its bounds."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.observe.exposition import wants_openmetrics
from proxy.observe.metric_family import Histogram, time_awaitable
from proxy.observe.metrics import Metrics
from proxy.policy import schema

CONTRACT = """
http_requests_total counter
http_request_duration_seconds histogram
http_overhead_seconds histogram
http_in_flight gauge
http_queued gauge
rate_limit_total counter
http_refusals_total counter
shed_total counter
concurrency_limit gauge
upstream_calls_total counter
upstream_attempts_total counter
upstream_call_duration_seconds histogram
upstream_first_byte_seconds histogram
breaker_state gauge
tokens_total counter
cost_usd_total counter
cost_cap_ratio gauge
cache_total counter
postgres_server_connections gauge
postgres_client_connections gauge
postgres_wait_seconds histogram
postgres_transactions_total counter
app_up gauge
app_memory_bytes gauge
memory_limit_bytes gauge
app_restarts_total counter
cpu_throttled_seconds_total counter
alerts_firing gauge
alerts_sent_total counter
policy_reloads_total counter
build_info gauge
rate_limit_evicted_total counter
log_dropped_total counter
event_loop_lag_seconds gauge
ledger_backlog_rows gauge
ledger_writes_total counter
ledger_folded_total counter
ledger_dropped_total counter
price_table_age_seconds gauge
ledger_write_seconds histogram
alert_delivery_seconds histogram
postgres_connect_seconds histogram
tasks gauge
tasks_total counter
task_wait_seconds histogram
task_run_seconds histogram
task_attempts_total counter
task_oldest_wait_seconds gauge
callbacks_total counter
"""


def fresh(max_series: int = 2000) -> Metrics:
    return Metrics(schema.Metrics(max_series=max_series), version="0.1.0")


async def text(metrics: Metrics) -> str:
    return (await metrics.render())[0].decode()


def busy(routes: int) -> Metrics:
    metrics = fresh()
    names = [f"route-{number}" for number in range(routes)]
    metrics.declare_routes(names)
    metrics.declare_limits((name, tier) for name in names for tier in ("free", "premium", "admin"))
    for name in names:
        for method in ("GET", "POST"):
            for code in (200, 404, 500):
                metrics.observe_request(name, method, code, 0.1, 0.001)
    return metrics


@pytest.mark.parametrize("line", CONTRACT.split("\n")[1:-1])
async def test_help_and_type_are_there_from_the_start(line: str) -> None:
    name, kind = line.split()
    scrape = await text(fresh())
    assert f"# TYPE outrigger_{name} {kind}\n" in scrape
    assert f"# HELP outrigger_{name} " in scrape


async def test_counters_whose_labels_are_known_start_with_zero() -> None:
    metrics = fresh()
    metrics.declare_limits([("default", "free")])
    scrape = await text(metrics)
    for reason in ("crash", "memory", "hung", "reload"):
        assert f'outrigger_app_restarts_total{{reason="{reason}"}} 0.0\n' in scrape
    for result in ("ok", "refused"):
        assert f'outrigger_policy_reloads_total{{result="{result}"}} 0.0\n' in scrape
    for result in ("ok", "failed", "refused", "gone", "given_up"):
        assert f'outrigger_callbacks_total{{result="{result}"}} 0.0\n' in scrape
    for decision in ("allowed", "refused", "shadow"):
        line = f'outrigger_rate_limit_total{{decision="{decision}",route="default",tier="free"}} 0.0\n'
        assert line in scrape
    assert "_created" not in scrape


async def test_routes_with_tasks_start_with_zero_and_gauges_of_others_go() -> None:
    metrics = fresh()
    metrics.declare_tasks(["report", "story"])
    metrics.tasks_total.labels("story", "failed").inc()
    metrics.declare_tasks(["report"])
    scrape = await text(metrics)
    assert 'outrigger_tasks{route="report",state="queued"} 0.0\n' in scrape
    assert 'outrigger_tasks_total{outcome="succeeded",route="report"} 0.0\n' in scrape
    assert 'outrigger_task_oldest_wait_seconds{route="report"} 0.0\n' in scrape
    assert 'outrigger_tasks{route="story"' not in scrape
    assert 'outrigger_tasks_total{outcome="failed",route="story"} 1.0\n' in scrape


async def test_a_request_counts_once_in_each_metric() -> None:
    metrics = fresh()
    metrics.observe_request("default", "GET", 200, 0.3, 0.0004)
    metrics.observe_request("default", "BREW", 299, 200.0, 0.0004)
    metrics.observe_request("default", "GET", 999, 0.0, 0.0)
    scrape = await text(metrics)
    assert 'outrigger_http_requests_total{code="200",method="GET",route="default"} 1.0\n' in scrape
    assert 'outrigger_http_requests_total{code="299",method="other",route="default"} 1.0\n' in scrape
    assert 'outrigger_http_requests_total{code="other",method="GET",route="default"} 1.0\n' in scrape
    assert 'outrigger_http_request_duration_seconds_bucket{le="120.0",route="default"} 2.0\n' in scrape
    assert 'outrigger_http_request_duration_seconds_count{route="default"} 3.0\n' in scrape
    assert "outrigger_http_overhead_seconds_count 3.0\n" in scrape


async def test_routes_past_the_bound_count_under_other() -> None:
    metrics = fresh(max_series=5)
    metrics.declare_routes(f"r{number}" for number in range(20))
    for number in range(20):
        metrics.observe_request(f"r{number}", "GET", 200, 0.1, 0.001)
    scrape = await text(metrics)
    assert scrape.count("outrigger_http_requests_total{") == 6
    assert 'outrigger_http_requests_total{code="200",method="GET",route="other"} 15.0\n' in scrape
    assert scrape.count("outrigger_http_request_duration_seconds_count{") == 6
    assert scrape.count("outrigger_http_in_flight{") == 6


async def test_even_the_other_series_are_bounded() -> None:
    metrics = fresh(max_series=1)
    for code in range(100, 600):
        metrics.observe_request("r", "GET", code, 0.1, 0.001)
    assert len(metrics.http_requests_total) == 102
    line = 'outrigger_http_requests_total{code="other",method="other",route="other"} 399.0\n'
    assert line in await text(metrics)


async def test_gauges_of_routes_that_went_are_taken_out_and_counters_stay() -> None:
    metrics = fresh()
    metrics.declare_routes(["old", "default"])
    metrics.observe_request("old", "GET", 200, 0.1, 0.001)
    metrics.declare_routes(["new", "default"])
    scrape = await text(metrics)
    assert 'outrigger_http_in_flight{route="old"}' not in scrape
    assert 'outrigger_http_in_flight{route="new"} 0.0\n' in scrape
    assert 'outrigger_http_requests_total{code="200",method="GET",route="old"} 1.0\n' in scrape


async def test_gauges_are_asked_for_and_counters_followed_at_each_scrape() -> None:
    metrics = fresh()
    dropped = 0
    metrics.on_scrape(lambda: metrics.http_in_flight.labels("default").set(3))
    metrics.follow_total(metrics.log_dropped_total, lambda: dropped)
    assert "outrigger_log_dropped_total 0.0\n" in await text(metrics)
    dropped = 7
    scrape = await text(metrics)
    assert "outrigger_log_dropped_total 7.0\n" in scrape
    assert 'outrigger_http_in_flight{route="default"} 3.0\n' in scrape
    assert "outrigger_log_dropped_total 7.0\n" in await text(metrics)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1", True),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nonsense", False),
        (",;=;q,", False),
    ],
)
def test_openmetrics_is_given_to_those_who_ask(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


async def test_both_formats_hold_the_same_samples() -> None:
    metrics = busy(40)
    metrics.declare_tasks(["route-1"])
    plain, plain_type = await metrics.render()
    opened, opened_type = await metrics.render("application/openmetrics-text")
    assert plain_type == "text/plain; version=0.0.4; charset=utf-8"
    assert opened_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert opened.endswith(b"# EOF\n")
    assert opened.count(b"# EOF") == 1

    def samples(families: Any) -> set[object]:
        found: set[object] = set()
        for family in families:
            if "process" not in family.name:
                for sample in family.samples:
                    found.add((sample.name, tuple(sorted(sample.labels.items())), sample.value))
        return found

    assert samples(parse_text(plain.decode())) == samples(parse_openmetrics(opened.decode()))  # type: ignore[no-untyped-call]
    assert plain.count(b"# TYPE outrigger_http_request_duration_seconds ") == 1


async def test_a_scrape_of_a_hundred_routes_lets_others_run() -> None:
    metrics = busy(100)
    turns = 0
    longest = 0.0

    async def neighbour() -> None:
        nonlocal turns, longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest = max(longest, now - last)
            last = now
            turns += 1

    task = asyncio.create_task(neighbour())
    await asyncio.sleep(0)
    started = time.thread_time()
    await metrics.render()
    spent = time.thread_time() - started
    task.cancel()
    assert turns > 30
    # CPU time, so that a busy machine does not count; on a slow one the share does.
    assert longest < max(0.02, spent / 2)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
async def test_promtool_finds_nothing_to_say() -> None:
    metrics = busy(3)
    metrics.upstream_calls_total.labels("openai", "gpt-4o", "ok").inc()
    metrics.breaker_state.labels('quo"ted\nname\\').set(2)
    for scrape in (await metrics.render(), await fresh().render()):
        ran = subprocess.run(["promtool", "check", "metrics"], input=scrape[0], capture_output=True, timeout=20)
        assert (ran.returncode, ran.stdout + ran.stderr) == (0, b"")


async def test_a_histogram_reads_as_the_clients_own_histogram_does():
    import prometheus_client as client

    from proxy.observe.metric_family import Histogram, MetricFamily

    ours, theirs = client.CollectorRegistry(), client.CollectorRegistry()
    bounds = (0.1, 1.0, 10)
    series = MetricFamily(
        "histogram", "waits_seconds", "How long.", (), lambda: Histogram(bounds), ours, free=(), limit=1
    )
    histogram = series.labels()
    peer = client.Histogram("waits_seconds", "How long.", buckets=bounds, registry=theirs)
    for value in (0.0, 0.05, 0.1, 0.11, 1.0, 9.0, 10.0, 11.0):
        histogram.observe(value)
        peer.observe(value)
    lines = [line for line in client.generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert client.generate_latest(ours).decode().splitlines() == lines


@pytest.mark.parametrize("end", ["returns", "raises", "is cancelled"])
async def test_what_is_awaited_is_timed_however_it_ends(end):
    histogram = Histogram((0.01, 60.0))

    async def work() -> str:
        await asyncio.sleep(30 if end == "is cancelled" else 0.02)
        if end == "raises":
            raise LookupError
        return "done"

    task = asyncio.ensure_future(time_awaitable(histogram, work()))
    await asyncio.sleep(0.02)
    if end == "is cancelled":
        task.cancel()
    found = (await asyncio.gather(task, return_exceptions=True))[0]
    expected = {"returns": str, "raises": LookupError, "is cancelled": asyncio.CancelledError}[end]
    assert isinstance(found, expected)
    assert histogram.cumulative_counts() == [0, 1, 1], "once, and over 10 ms"


def test_the_package_that_times_is_loaded_at_its_first_use_alone():
    text = "import sys, proxy.build, proxy.gateway; print('prometheus_async' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
