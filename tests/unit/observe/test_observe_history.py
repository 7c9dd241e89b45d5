"""What the history tells of the last minutes and of the last day."""

import sys

import pytest

from proxy.observe.metrics import Metrics
from proxy.observe.timeseries.history import COLUMNS, GaugeLevels, MetricsHistory
from proxy.observe.timeseries.window_stats import histogram_quantile
from proxy.policy import schema


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def metrics():
    return Metrics(schema.Metrics(), version="1")


def history(metrics, clock, **more):
    return MetricsHistory(metrics, clock=clock, now=lambda: clock.now + 1e9, **more)


def pass_time(history, clock, seconds, each=lambda: None):
    for _ in range(int(seconds / 5)):
        clock.now += 5
        each()
        history.record_snapshot()


def test_a_span_has_what_happened_in_it_and_nothing_before(metrics):
    clock = Clock()
    kept = history(metrics, clock)
    metrics.observe_request("old", "GET", 500, 1.0, 0.0)
    metrics.upstream_calls_total.labels("openai", "m", "ok").inc()
    pass_time(kept, clock, 120)
    metrics.observe_request("new", "GET", 200, 0.05, 0.0)
    metrics.observe_request("new", "GET", 503, 0.05, 0.0)
    metrics.upstream_calls_total.labels("openai", "m", "error").inc(2)
    metrics.upstream_attempts_total.labels("openai", "500").inc(3)
    metrics.cost_usd_total.labels("openai", "m", "reported").inc(0.25)
    metrics.postgres_wait_seconds.observe(3.0)
    metrics.cpu_throttled_seconds_total.inc(15)
    metrics.tasks_total.labels("report", "failed").inc(2)
    clock.now += 1
    found = kept.window(60)
    assert 60 <= found.seconds <= 66
    assert (found.routes["new"].requests, found.routes["new"].errors) == (2, 1)
    assert found.routes["old"].requests == 0
    assert found.calls["openai"] == {"ok": 0, "error": 2}
    assert found.attempts["openai"] == {"500": 3}
    assert found.cost == {"openai": 0.25}
    assert found.count_waits_over(1.0) == 1
    assert found.wait_quantile(0.95) == pytest.approx(4.8)
    assert found.throttled == 15
    assert found.tasks == {"report": {"failed": 2}}
    assert found.total_routes().error_share == 0.5
    assert 0.025 < found.routes["new"].quantile(0.95) <= 0.1


def test_a_young_history_tells_of_all_its_life(metrics):
    clock = Clock()
    kept = history(metrics, clock)
    metrics.observe_request("a", "GET", 200, 0.05, 0.0)
    clock.now += 2
    found = kept.window(300)
    assert (found.seconds, found.routes["a"].requests) == (2, 1)


def test_an_hour_is_told_of_by_the_minute(metrics):
    clock = Clock()
    kept = history(metrics, clock)
    pass_time(kept, clock, 7200, lambda: metrics.observe_request("a", "GET", 200, 0.05, 0.0))
    assert 3600 <= kept.window(3600).seconds <= 3660
    assert 720 <= kept.window(3600).total_routes().requests <= 732
    assert kept.window(300).total_routes().requests == 60
    assert len(kept._fine_snapshots) <= 182
    assert len(kept._coarse_snapshots) <= 63


def test_the_last_day_is_lists_of_one_length(metrics):
    clock = Clock()
    highest = iter(range(10**6))
    kept = history(metrics, clock, levels=lambda: GaugeLevels(app_bytes=next(highest)))
    pass_time(kept, clock, 3600, lambda: metrics.observe_request("a", "GET", 500, 0.05, 0.0))
    day = kept.day_series()
    assert {len(day[name]) for name in ("at", *COLUMNS)} == {12}
    assert day["requests"] == day["errors"] == [60] * 12
    assert day["app_bytes"][0] == 59
    assert day["at"][-1] == clock.now + 1e9
    pass_time(kept, clock, 1000)
    assert {len(kept.recent_series()[name]) for name in ("at", *COLUMNS)} == {180}
    assert kept.recent_series()["p95_s"][-1] is None


def test_the_picture_of_tasks_has_those_that_ended_and_the_most_that_waited_and_ran(metrics):
    clock, levels = Clock(), GaugeLevels(tasks_waiting=7, tasks_running=2)
    kept = history(metrics, clock, levels=lambda: levels)
    metrics.tasks_total.labels("a", "succeeded").inc(3)
    metrics.tasks_total.labels("b", "succeeded").inc(1)
    metrics.tasks_total.labels("b", "failed").inc(1)
    pass_time(kept, clock, 300)
    day = kept.day_series()
    names = ("tasks_succeeded", "tasks_failed", "tasks_waiting", "tasks_running")
    assert [day[name] for name in names] == [[4], [1], [7], [2]]


def test_twenty_routes_fit_into_two_mebibytes(metrics):
    clock = Clock()
    kept = history(metrics, clock)
    for route in range(20):
        for code in (200, 404, 500):
            metrics.observe_request(f"route{route}", "GET", code, 0.05, 0.0)
    pass_time(kept, clock, 4000)  # until all rows are there
    rows = sum(sys.getsizeof(row) for _, row in (*kept._fine_snapshots, *kept._coarse_snapshots))
    points = sum(
        sys.getsizeof(column) + 40 * (column.maxlen or 0)
        for p in (kept._day_points, kept._recent_points)
        for column in p._columns.values()
    )
    assert rows + points < 2 * 1024 * 1024


def test_more_routes_than_anybody_has_are_counted_together(metrics):
    kept = history(metrics, Clock())
    for route in range(300):
        metrics.observe_request(f"route{route}", "GET", 200, 0.05, 0.0)
    found = kept._reader.read_snapshot()
    assert len(kept._reader.offsets()) < 120
    assert len(found) < 120 * 17


@pytest.mark.parametrize(
    ("cumulative", "share", "value"),
    [
        ([], 0.95, None),
        ([0, 0, 0], 0.95, None),
        ([100, 100, 100], 0.5, 0.5),
        ([0, 100, 100], 0.5, 1.5),
        ([50, 100, 100], 0.95, 1.9),
        ([0, 0, 100], 0.95, 2),
    ],
)
def test_a_quantile_is_where_prometheus_puts_it(cumulative, share, value):
    assert histogram_quantile((1, 2), cumulative, share) == (None if value is None else pytest.approx(value))
