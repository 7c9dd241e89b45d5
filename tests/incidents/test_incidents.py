"""Each incident from a healthy start to its all-clear: the alert comes, health says it, and both go away again. At
shipped settings `make incidents` plays them; here the rules look back over seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from incidents import INCIDENTS, Incident, play

RULES = """
  every: 500ms
  rules:
    app_down: {when: "app is down for 1s", severity: critical}
    breaker_open: {when: "breaker is open for 1s", severity: critical}
    error_rate: {when: "errors > 5% over 5s", severity: critical}
    slow: {when: "p95 > 50% of timeout over 5s", severity: warning}
    memory: {when: "memory > 85% for 1s", severity: warning}
    store_lost: {when: "store is down for 1s", severity: warning}
    pool_exhausted: {when: "pool wait > 1s over 5s", severity: warning}
"""
QUICK = (
    ("\n  rules: ", RULES.rstrip() + " "),
    ("is degraded for 10s", "is degraded for 1s"),
    ("call errors > 20% over 5m", "call errors > 20% over 5s"),
    ("refusals > 10% over 5m", "refusals > 10% over 5s"),
    ("  ready: {path: /health} ", "  restart: {max_backoff: 1s}\n  stop_timeout: 1s\n  ready: {path: /health} "),
    ("  liveness: {path: /health} ", "  liveness: {path: /health, interval: 500ms, timeout: 500ms} "),
    (
        "    breaker: {min_calls: 5, failure_ratio: 50%, open: 30s}",
        "    retry: {backoff: {first: 1ms, max: 5ms}}\n    breaker: {min_calls: 5, failure_ratio: 50%, open: 1s, window: 5s}",
    ),
    ("pool: {max: 5, wait: 5s}", "pool: {max: 5, wait: 2s}"),
    ("timeout: {total: 120s, idle: 60s}", "timeout: {connect: 1s, total: 2s, idle: 60s}"),
)


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.name)
async def test_an_incident_is_told_of_and_so_is_its_end(tmp_path: Path, incident: Incident):
    report = await play(incident, tmp_path, patience=30, quick=QUICK, often=0.4)
    assert report.status == ("degraded" if incident.part else report.status)
    assert report.alert
