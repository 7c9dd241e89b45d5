"""Where no container sets a limit, the machine's memory is what gateway and app may use together."""

from __future__ import annotations

import os
import sys

import pytest
from gateway_process import APPS, eventually
from in_process_gateway import in_process_gateway

from proxy.cli.checks.machine import _check_memory
from proxy.operations import health
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Policy

PLAIN = (sys.executable, str(APPS / "plain.py"))
WHOLE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(health, "memory_limit", lambda: None)


def test_the_limit_is_all_that_the_machine_has_or_what_the_policy_says(bare):
    found = health.resolve_memory_limit(Policy())
    assert found is not None
    assert abs(found - WHOLE) < WHOLE / 100
    named = load_policy(PolicySource("p", None, "app: {memory: {limit: 300MiB}}"), {})
    assert health.resolve_memory_limit(named) == 300 * 1024 * 1024


async def test_the_app_is_recycled_by_the_machines_memory_too(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "machine_memory", lambda: 1024 * 1024)  # a very small one
    policy = f"ledger: {{url: 'sqlite:///{tmp_path}/l.db'}}\napp: {{memory: {{recycle: 90%}}}}\n"
    async with in_process_gateway(tmp_path, monkeypatch, *PLAIN, policy=policy) as running:
        first = running.gateway.parts.app.pid
        await eventually(lambda: running.gateway.parts.app.is_ready and running.gateway.parts.app.pid != first)
        await eventually(lambda: "app.memory.recycle: 90%" in running.output())


def test_doctor_says_whose_limit_it_is_and_warns_where_there_is_none(bare, monkeypatch):
    monkeypatch.setattr("proxy.cli.checks.machine.container_limit", lambda: None)
    assert "all that this machine has" in _check_memory(Policy()).text
    monkeypatch.setattr(health, "machine_memory", lambda: None)
    found = _check_memory(Policy())
    assert found.level == "warning"
    assert "app.memory.recycle" in found.text


async def test_a_start_warns_where_nothing_says_how_much_there_is(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "machine_memory", lambda: None)
    policy = f"ledger: {{url: 'sqlite:///{tmp_path}/l.db'}}\napp: {{memory: {{recycle: 90%}}}}\n"
    async with in_process_gateway(tmp_path, monkeypatch, *PLAIN, policy=policy) as running:
        await eventually(lambda: "app.memory.recycle has nothing to go by" in running.output())
