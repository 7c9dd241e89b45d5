"""Alerts of tasks by a whole gateway: one that waits too long, and too many that fail."""

from __future__ import annotations

from gateway_process import eventually, gateway
from task_client import TASK_APP, submit, until

POLICY = """
routes:
  - {name: hold, match: {path: /hold}, background: {mode: prefer, concurrency: 1}}
  - {name: status, match: {path: /status}, background: {mode: prefer, retry: {attempts: 1}}}
alerts:
  every: 1s
  rules:
    tasks_stuck: {when: "task wait > 2s on hold", severity: warning}
    tasks_fail: {when: "failed tasks > 50% over 1m", severity: critical}
"""


async def test_a_task_that_waits_too_long_is_told_of_and_again_when_it_waits_no_more(tmp_path) -> None:
    async with gateway(tmp_path, *TASK_APP, policy=POLICY) as g:
        await g.ready()
        go = tmp_path / "go"
        first = await submit(g, f"/hold?file={go}")
        await until(g, first, "running")
        second = await submit(g, f"/hold?file={go}")
        found = await eventually(lambda: alerts(g, "tasks_stuck"), timeout=60)
        assert "a task of hold has waited for" in found[0]["message"]
        go.touch()
        await until(g, second)
        await eventually(lambda: alerts(g, "tasks_stuck")[-1]["state"] == "cleared", timeout=60)


async def test_many_tasks_that_fail_are_told_of_with_their_route(tmp_path) -> None:
    async with gateway(tmp_path, *TASK_APP, policy=POLICY) as g:
        await g.ready()
        for _ in range(5):
            await until(g, await submit(g, "/status?code=500"))
        (found, *_) = await eventually(lambda: alerts(g, "tasks_fail"), timeout=60)
        assert "5 of 5 tasks failed in 1m (100%); most of them of status (5)" in found["message"]


def alerts(g, rule: str) -> list[dict]:
    return [event for event in g.events("alert") if event.get("alert") == rule or event.get("rule") == rule]
