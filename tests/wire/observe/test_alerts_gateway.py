"""Alerts as an owner gets them: a gateway as a process, and a stand-in for Slack."""

import asyncio
import json
import os
import re
import signal
import sys

from fake_slack import fake_slack
from free_ports import free_port
from gateway_process import APPS, eventually, gateway

APP = (sys.executable, str(APPS / "plain.py"))

FAST = """
app: {restart: {backoff: 2s}}
alerts:
  slack: ${SLACK_WEBHOOK_URL:-}
  every: 200ms
  rules:
    app_down: {when: "app is down for 500ms", severity: critical}
"""


async def test_an_app_that_was_killed_is_told_of_once_and_so_is_its_return(tmp_path):
    async with fake_slack() as channel:
        async with gateway(tmp_path, *APP, policy=FAST, environ={"SLACK_WEBHOOK_URL": channel.url}) as g:
            await g.ready()
            os.kill(g.app_pid(), signal.SIGKILL)
            reported = await channel.until("app_down")
            assert reported["text"].startswith(":red_circle: ")
            assert "the app is down" in reported["text"]
            blocks = reported["attachments"][0]["blocks"]
            assert [block["type"] for block in blocks] == ["header", "section", "section", "section", "context"]
            assert "INCIDENTS.md#app_down" in json.dumps(blocks)
            assert b'outrigger_alerts_firing{alert="app_down"} 1.0' in await g.request("/metrics", port=g.admin)
            cleared = await channel.until("all clear")
            assert "app_down: all clear of app after" in cleared["text"]
            assert len(channel.messages) == 2
            metrics = await g.request("/metrics", port=g.admin)
            assert b'outrigger_alerts_firing{alert="app_down"} 0.0' in metrics
            assert b'outrigger_alerts_sent_total{result="ok",sender="slack"} 2.0' in metrics
            events = await eventually(lambda: len(found := g.events("alert")) == 2 and found)
            assert [(e["alert"], e["state"], e["level"]) for e in events] == [
                ("app_down", "firing", "error"),
                ("app_down", "cleared", "info"),
            ]
            await g.stop()
            assert "hunter2" not in g.output()
            assert len(channel.messages) == 2


async def test_failing_requests_are_told_of_with_their_route(tmp_path):
    policy = (
        FAST
        + '    error_rate: {when: "errors > 5% over 1m", severity: critical}\nroutes: [{name: bad, match: {path: /bad}}]\nfaults: [{route: bad, status: 503}]\n'
    )
    async with fake_slack() as channel:
        async with gateway(tmp_path, *APP, policy=policy, environ={"SLACK_WEBHOOK_URL": channel.url}) as g:
            await g.ready()
            for _ in range(6):
                await g.request("/bad")
            reported = await channel.until("error_rate")
            # It is judged while they come: from the third that fails on, where nothing else was asked.
            assert re.search(
                r"error_rate: [3-6] of [3-6] requests failed in 1m .*; most of them of bad \([3-6]\)", reported["text"]
            )


async def test_a_channel_that_is_unwell_gets_its_message_later_and_holds_up_nobody(tmp_path):
    async with fake_slack([(429, {"Retry-After": "2"})]) as channel:
        async with gateway(tmp_path, *APP, policy=FAST, environ={"SLACK_WEBHOOK_URL": channel.url}) as g:
            await g.ready()
            os.kill(g.app_pid(), signal.SIGKILL)
            await eventually(lambda: channel.at)
            await g.ready()
            await channel.until("app_down")
            assert channel.at[1] - channel.at[0] > 1.9
            await channel.until("all clear")


async def test_a_channel_that_hangs_or_is_away_does_not_hold_up_the_end(tmp_path):
    async with fake_slack(["hang"]) as channel:
        async with gateway(tmp_path, *APP, policy=FAST, environ={"SLACK_WEBHOOK_URL": channel.url}) as g:
            await g.ready()
            os.kill(g.app_pid(), signal.SIGKILL)
            await eventually(lambda: channel.at)
            await g.ready()
            async with asyncio.timeout(15):
                assert await g.stop() == 0
            assert g.events("alert.unsent")
            assert "hunter2" not in g.output()


async def test_without_a_channel_alerts_are_logged_alone_and_a_reload_that_names_one_opens_it(tmp_path):
    async with fake_slack() as channel:
        plain = FAST.replace("slack: ${SLACK_WEBHOOK_URL:-}", "slack: null")
        async with gateway(tmp_path, *APP, policy=plain) as g:
            await g.ready()
            os.kill(g.app_pid(), signal.SIGKILL)
            await eventually(lambda: g.events("alert"))
            file = tmp_path / f"policy-{g.port}.yaml"
            file.write_text(file.read_text().replace("slack: null", f"webhook: {channel.url}"))
            await eventually(lambda: g.events("policy.reload"))
            cleared = await channel.until("cleared")
            assert [alert["name"] for alert in cleared["alerts"]] == ["app_down"]
            assert cleared["alerts"][0]["runbook"].endswith("#app_down")


async def test_nobody_is_told_of_a_start_a_restart_that_was_asked_for_or_an_end(tmp_path):
    policy = FAST.replace("for 500ms", "for 0s")
    async with fake_slack() as channel:
        environ = {"SLACK_WEBHOOK_URL": channel.url, "START_DELAY": "1.5"}
        async with gateway(tmp_path, *APP, policy=policy, environ=environ) as g:
            await g.ready()
            assert b" 200 " in (await g.request("/ctl/restart-app", method="POST", port=g.admin)).partition(b"\r\n")[0]
            await eventually(lambda: len(g.events("app.ready")) == 2, 40)
            await g.stop()
            assert channel.messages == []
            assert not g.events("alert")


async def test_an_upstream_that_fails_is_named(tmp_path):
    dead = free_port()
    policy = FAST.replace("  rules:", "  rules:\n    breaker_open: {when: breaker is open for 0s, severity: critical}")
    policy += f"upstreams: {{model: {{kind: http, base_url: 'http://127.0.0.1:{dead}', retry: {{attempts: 1}}, breaker: {{min_calls: 2}}}}}}\n"
    async with fake_slack() as channel:
        async with gateway(tmp_path, *APP, policy=policy, environ={"SLACK_WEBHOOK_URL": channel.url}) as g:
            await g.ready()
            for _ in range(4):
                await g.request("/model/x", port=g.egress)
            reported = await channel.until("breaker_open")
            assert "the breaker of model is open" in reported["text"]
