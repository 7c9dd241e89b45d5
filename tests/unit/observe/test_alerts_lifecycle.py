"""What is said of an alert, and when: once, again, over, flapping, together, across a reload."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_alerts_rules import FakeInputs, route

from proxy import __repository__
from proxy.observe.alerts.alert import Alert, Finding
from proxy.observe.alerts.channels.slack import slack_message
from proxy.observe.alerts.channels.webhook import webhook_message
from proxy.observe.alerts.delivery import MAX_WAITING, DeliveryQueue, DeliveryRetryOptions
from proxy.observe.alerts.manager import KEEP_SECONDS, MAX_ALERTS, AlertManager
from proxy.observe.alerts.notification import Notification
from proxy.observe.alerts.runbook_hints import runbook_url
from proxy.observe.health import ComponentHealth
from proxy.observe.metric_family import Histogram
from proxy.observe.metrics import Metrics
from proxy.observe.timeseries.window_stats import WindowStats
from proxy.policy import schema
from proxy.policy.alert_condition_parser import parse_condition
from proxy.policy.schema import AlertRule, Cooldown
from proxy.policy.schema import Alerts as Policy

HOLDS = Finding("openai", "it is bad", "9", "8", level=1.0)


def said(alert, now, finding, cooldown=60.0):
    return list(alert.update(now, finding, "warning", cooldown))


def test_an_alert_is_told_once_at_its_beginning_once_when_over_and_between_by_its_cooldown():
    alert = Alert("mine", "openai")
    reported = {now: what for now in range(0, 300, 15) for what in said(alert, now, HOLDS if 30 <= now < 200 else None)}
    assert reported == {30: "begun", 90: "again", 150: "again", 210: "cleared"}


def test_what_stays_until_something_else_changes_is_told_again_only_once_it_is_worse():
    alert = Alert("cost_cap", "openai")
    finding = replace(HOLDS, is_settled=True)
    assert said(alert, 0, finding) == ["begun"]
    assert said(alert, 100, replace(finding, level=1.04)) == []
    assert said(alert, 200, replace(finding, level=1.5)) == ["again"]
    assert said(alert, 210, replace(finding, level=9.0)) == []
    assert said(alert, 270, replace(finding, level=9.0)) == ["again"]


def test_one_that_comes_and_goes_is_called_flapping_once_and_is_quiet_until_it_rests():
    alert, reported = Alert("mine", ""), []
    for now in range(0, 1800, 15):
        finding = HOLDS if now < 600 and now // 15 % 2 == 0 else None
        reported += [(now, what) for what in said(alert, now, finding, 300.0)]
    assert reported[:5] == [(0, "begun"), (15, "cleared"), (30, "begun"), (45, "cleared"), (60, "flapping")]
    assert [what for _, what in reported[5:-1]] == ["flapping"]  # by its cooldown
    assert reported[-1][1] == "cleared"
    assert reported[-1][0] >= 600 + 585
    assert alert.state == "cleared"


def test_one_that_flapped_and_then_holds_is_an_alert_like_any_other_again():
    alert = Alert("mine", "")
    for now in range(0, 75, 15):
        said(alert, now, HOLDS if now // 15 % 2 == 0 else None)
    assert alert.state == "flapping"
    for now in range(75, 900, 15):
        said(alert, now, HOLDS, 1e9)
    assert alert.state == "firing"
    assert said(alert, 900, None) == ["cleared"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def parts():
    events = []

    def emit(event, message, *, level="info", **facts):
        events.append((event, message, level, facts))

    inputs, clock = FakeInputs(), Clock()
    rules = {
        "app_down": AlertRule(parse_condition("app is down for 10s"), "critical"),
        "errors": AlertRule(parse_condition("errors > 5% over 5m")),
    }
    metrics = Metrics(schema.Metrics(), version="1")
    alerts = AlertManager(
        Policy(rules=rules),
        inputs,
        clock=clock,
        emit=emit,
        metrics=metrics,
        app="shop",
        version="1",
        now=lambda: 1.7e9 + clock.now,
    )
    return inputs, clock, alerts, events, metrics


def pass_time(clock, alerts, seconds, every=15):
    reported = []
    for _ in range(seconds):
        clock.now += 1
        alerts.update_conditions(None)
        if clock.now % every == 0:
            reported += [(clock.now, each.name, each.state) for each in alerts.evaluate_rules()]
    return reported


def firing(metrics, name):
    return next(level.value for values, level in metrics.alerts_firing.children() if values == (name,))


async def test_a_fault_is_told_within_the_rules_time_and_one_judging(parts):
    inputs, clock, alerts, events, metrics = parts
    assert firing(metrics, "app_down") == 0
    pass_time(clock, alerts, 16)
    inputs.app = ComponentHealth("down", "restarting: it ended")
    assert pass_time(clock, alerts, 25) == [(30.0, "app_down", "firing")]
    assert firing(metrics, "app_down") == 1
    (event,) = events
    assert event[:3] == ("alert", "app_down: the app is down for 13 s: restarting: it ended", "error")
    assert event[3]["since"] == "2023-11-14T22:13:37Z"
    inputs.app = ComponentHealth("ok", "ready")
    assert pass_time(clock, alerts, 30) == [(60.0, "app_down", "cleared")]
    assert firing(metrics, "app_down") == 0
    assert events[-1][1].startswith("app_down: all clear of app after 43 s; it was: the app is down")


async def test_what_begins_at_once_is_told_at_once(parts):
    inputs, clock, alerts, _, _ = parts
    clock.now = 100.0
    inputs.app = ComponentHealth("down", "it ended")
    inputs.span = WindowStats(300, routes={"a": route(10, 10)})
    pass_time(clock, alerts, 4)
    assert pass_time(clock, alerts, 12) == [(105.0, "errors", "firing"), (120.0, "app_down", "firing")][:1]
    reported = alerts.evaluate_rules()
    assert [each.name for each in reported] == ["app_down"]


async def test_a_reload_keeps_what_fires_and_drops_what_has_no_rule(parts):
    inputs, clock, alerts, _, metrics = parts
    inputs.app = ComponentHealth("down", "it ended")
    inputs.span = WindowStats(300, routes={"a": route(10, 10)})
    assert len(pass_time(clock, alerts, 15)) == 2
    alerts.apply(
        Policy(rules={"app_down": AlertRule(parse_condition("app is down for 2s"), "warning")}, cooldown=Cooldown(1e6))
    )
    assert ("errors",) not in dict(metrics.alerts_firing.children())
    assert pass_time(clock, alerts, 60) == []
    assert [(each["name"], each["state"], each["severity"]) for each in alerts.status()] == [
        ("app_down", "firing", "warning")
    ]


async def test_what_is_over_is_shown_for_a_day_and_the_most_recent_first(parts):
    inputs, clock, alerts, _, _ = parts
    inputs.app = ComponentHealth("down", "it ended")
    pass_time(clock, alerts, 15)
    inputs.app = ComponentHealth("ok", "it answers")
    inputs.span = WindowStats(300, routes={"a": route(10, 10)})
    pass_time(clock, alerts, 30)
    assert [(each["name"], each["state"]) for each in alerts.status()] == [
        ("app_down", "cleared"),
        ("errors", "firing"),
    ]
    assert alerts.status()[0]["message"].startswith("app_down: all clear")
    clock.now += KEEP_SECONDS + 1
    alerts.evaluate_rules()
    assert [each["name"] for each in alerts.status()] == ["errors"]


async def test_alerts_that_are_over_are_remembered_in_bounded_number(parts):
    inputs, clock, alerts, _, _ = parts
    alerts.apply(Policy(rules={"slow": AlertRule(parse_condition("p95 > 1s over 5m"))}))
    inputs.span = WindowStats(300, routes={f"r{n}": route(50, seconds=9) for n in range(MAX_ALERTS + 50)})
    assert len(alerts.evaluate_rules()) == MAX_ALERTS + 50
    inputs.span = WindowStats(300)
    alerts.evaluate_rules()
    assert len(alerts.status()) == MAX_ALERTS


async def test_nobody_is_told_anything_while_the_gateway_stops(parts):
    inputs, clock, alerts, _, _ = parts
    inputs.span = WindowStats(300, routes={"a": route(10, 10)})
    inputs.is_stopping = lambda: True
    assert alerts.evaluate_rules() == ()


async def test_a_fault_in_one_rule_silences_neither_the_others_nor_what_follows(parts):
    inputs, clock, alerts, events, _ = parts

    def broken(seconds):
        raise RuntimeError("no")

    turns = 0

    async def sleep(seconds):
        nonlocal turns
        turns += 1
        clock.now += 1
        alerts.update_conditions(None)
        if turns == 20:
            inputs.window = lambda seconds: WindowStats(300, routes={"a": route(10, 10)})
        if turns == 40:
            raise asyncio.CancelledError

    inputs.window = broken
    inputs.app = ComponentHealth("down", "it ended")
    alerts._sleep = sleep
    with pytest.raises(asyncio.CancelledError):
        await alerts.run()
    assert [event[0] for event in events] == ["alert.fault", "alert", "alert"]


async def test_judging_the_shipped_rules_costs_little(parts):
    inputs, clock, _, _, metrics = parts
    alerts = AlertManager(Policy(), inputs, clock=clock, emit=lambda *a, **k: None, metrics=metrics, app="", version="")
    inputs.span = WindowStats(300, routes={f"r{n}": route(50) for n in range(20)})
    inputs.limits = {f"r{n}": 10.0 for n in range(20)}
    began = time.process_time()
    for _ in range(20):
        alerts.evaluate_rules()
    assert (time.process_time() - began) / 20 < 0.02  # seconds; it is some 0.2 ms


# ── messages ─────────────────────────────────────────────────────────────────────────────────


def made(name="breaker_open", state="firing", **more):
    values = {
        "subject": "openai",
        "severity": "critical",
        "since": "2026-01-02T03:04:05Z",
        "message": f"{name}: <b> & more",
        "value": "open for 9 s",
        "threshold": "breaker is open for 5s",
        "likely_cause": "the vendor",
        "first_step": "look",
        "runbook": f"https://example.com/INCIDENTS.md#{name}",
    }
    return Notification(name=name, state=state, **{**values, **more})


def test_a_message_to_slack_says_what_since_when_how_bad_why_and_what_to_do():
    body = slack_message([made()], "shop", "1.0")
    assert body["text"] == ":red_circle: shop: breaker_open: &lt;b&gt; &amp; more"
    (attachment,) = body["attachments"]
    header, what, figures, advice, context = attachment["blocks"]
    assert header["text"] == {"type": "plain_text", "text": ":red_circle: breaker_open (openai)", "emoji": True}
    assert what["text"]["text"] == "breaker_open: &lt;b&gt; &amp; more"
    assert [field["text"] for field in figures["fields"]] == [
        "*Since*\n2026-01-02T03:04:05Z",
        "*Severity*\ncritical",
        "*Rule*\nbreaker is open for 5s",
        "*Now*\nopen for 9 s",
    ]
    assert advice["text"]["text"] == "Likely: the vendor\nFirst: look"
    assert (
        "<https://example.com/INCIDENTS.md#breaker_open|what to do about breaker_open>"
        in context["elements"][0]["text"]
    )
    over = slack_message([made(state="cleared")], "shop", "1.0")["attachments"][0]
    assert over["color"] != attachment["color"]
    assert len(over["blocks"]) == 4


def test_many_alerts_make_one_message_within_slacks_limits():
    body = slack_message([made(f"rule{n}", message="x" * 9000) for n in range(40)], "shop", "1.0")
    assert "40 alerts: rule0 (openai)" in body["text"]
    assert len(body["attachments"]) == 9
    assert "and 32 more: rule8 (openai)" in body["attachments"][-1]["blocks"][0]["text"]["text"]
    assert sum(len(each["blocks"]) for each in body["attachments"]) <= 50
    for attachment in body["attachments"]:
        for block in attachment["blocks"]:
            assert len(block.get("text", {}).get("text", "")) <= 3000


def test_a_webhook_gets_every_field():
    body = webhook_message([made()], "shop", "1.0")
    assert (body["app"], body["version"]) == ("shop", "1.0")
    assert list(body["alerts"][0]) == [
        "name",
        "subject",
        "severity",
        "state",
        "since",
        "message",
        "value",
        "threshold",
        "likely_cause",
        "first_step",
        "runbook",
    ]


async def test_what_waits_too_long_gives_way_to_what_is_new():
    counted, lines = [], []
    sender = DeliveryQueue(
        "slack",
        "http://127.0.0.1:9/hunter2",
        emit=lambda *a, **k: lines.append(a),
        sent=counted.append,
        duration=Histogram((1.0,)),
    )
    for number in range(MAX_WAITING + 3):
        sender.enqueue({"text": str(number)})
    assert counted == ["dropped"] * 3
    await sender.close(0)
    assert "hunter2" not in str(lines)


@pytest.mark.parametrize(
    ("attempt", "asked", "wait"),
    [(1, None, 1), (2, None, 2), (9, None, 60), (1, "30", 30), (1, "9999", 300), (3, "soon", 4), (3, "1", 4)],
)
def test_the_next_try_comes_later_each_time_or_when_slack_says(attempt, asked, wait):
    class Answer:
        headers = {} if asked is None else {"Retry-After": asked}

        def close(self):
            pass

    assert DeliveryRetryOptions().get_timeout(attempt, Answer()) == wait
    assert DeliveryRetryOptions().get_timeout(attempt) == min(60, 2 ** (attempt - 1))


def test_the_page_of_a_rule_is_a_file_of_the_project():
    path, _, heading = runbook_url("app_down").removeprefix(f"{__repository__}/blob/main/").partition("#")
    assert f"\n## {heading}\n" in (Path(__file__).parents[3] / path).read_text()
