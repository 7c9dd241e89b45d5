"""Health says what is wrong, and is down only when the app has been away for a minute."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.observe.health import COMPONENTS, ComponentHealth, HealthCheckRegistry


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> HealthCheckRegistry:
    return HealthCheckRegistry(clock, version="1.2.3", now=lambda: 1_790_000_000.0 + clock.now - 1000.0)


def part(report: dict[str, object], name: str) -> Any:
    return report[name]


def test_the_report_has_the_contracts_keys_and_unset_parts_are_off(health: HealthCheckRegistry, clock: Clock) -> None:
    health.register("app", lambda: ComponentHealth("ok", "ready"))
    clock.now += 12.34
    report = health.report()
    assert list(report) == ["status", "version", "uptime_s", *COMPONENTS]
    assert (report["status"], report["version"], report["uptime_s"]) == ("ok", "1.2.3", 12.3)
    assert part(report, "app") == {"state": "ok", "reason": "ready", "since": "2026-09-21T14:13:20Z"}
    assert part(report, "ledger")["state"] == "off"
    assert part(report, "ledger")["reason"] == "not set"


@pytest.mark.parametrize("state", ["degraded", "down"])
@pytest.mark.parametrize("name", [name for name in COMPONENTS if name != "app"])
def test_any_other_parts_fault_degrades_and_never_takes_down(
    health: HealthCheckRegistry, clock: Clock, name: str, state: Any
) -> None:
    health.register("app", lambda: ComponentHealth("ok", "ready"))
    health.register(name, lambda: ComponentHealth(state, "unwell"))
    clock.now += 3600
    assert health.overall_status() == "degraded"


def test_an_app_that_never_came_up_is_down_after_a_minute(health: HealthCheckRegistry, clock: Clock) -> None:
    health.register("app", lambda: ComponentHealth("down", "starting"))
    assert health.overall_status() == "degraded"
    clock.now += 59.9
    assert health.overall_status() == "degraded"
    clock.now += 0.1
    assert health.overall_status() == "down"


def test_the_minute_begins_anew_with_each_time_the_app_was_ready(health: HealthCheckRegistry, clock: Clock) -> None:
    state = ComponentHealth("ok", "ready")
    health.register("app", lambda: state)
    clock.now += 100
    assert health.overall_status() == "ok"
    state = ComponentHealth("down", "restarting")
    assert health.overall_status() == "degraded"
    clock.now += 50
    state = ComponentHealth("ok", "ready")
    assert health.overall_status() == "ok"
    state = ComponentHealth("down", "restarting")
    clock.now += 20
    assert health.overall_status() == "degraded"
    clock.now += 60
    assert health.overall_status() == "down"


def test_a_part_that_knows_since_when_is_believed(health: HealthCheckRegistry, clock: Clock) -> None:
    health.register("app", lambda: ComponentHealth("down", "crashed", since=clock.now - 61))
    assert health.overall_status() == "down"
    assert part(health.report(), "app")["since"] == "2026-09-21T14:12:19Z"


def test_a_check_that_fails_degrades_and_says_why(health: HealthCheckRegistry) -> None:
    def check() -> ComponentHealth:
        raise RuntimeError("boom")

    health.register("store", check)
    report = health.report()
    assert report["status"] == "degraded"
    assert part(report, "store")["reason"] == "its check failed: RuntimeError: boom"


def test_a_part_that_is_none_is_refused(health: HealthCheckRegistry) -> None:
    with pytest.raises(ValueError, match="disk is no part of health"):
        health.register("disk", lambda: ComponentHealth("ok", ""))
