"""The language of `when`, and which rules hold by which figures."""

from decimal import Decimal

import pytest

from proxy.errors import PolicyError
from proxy.observe.alerts.evaluator import AlertEvaluator, PendingCondition
from proxy.observe.alerts.inputs import BreakerInput, CapInput
from proxy.observe.health import ComponentHealth
from proxy.observe.metrics import DURATION_BUCKETS, WAIT_BUCKETS
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.timeseries.window_stats import RouteStats, WindowStats, merge_routes
from proxy.policy import alert_condition as when
from proxy.policy.alert_condition_parser import FORMS, MAX_LATENCY_SECONDS, MORE_EXAMPLES, parse_condition
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import SHIPPED_RULES


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("app is down for 10s", when.ComponentIs("app", "down", 10)),
        ("postgres is degraded for 1m", when.ComponentIs("postgres", "degraded", 60)),
        ("breaker is open for 5s", when.BreakerOpen(None, 5)),
        ("breaker of openai is open for 0s", when.BreakerOpen("openai", 0)),
        ("errors > 5% over 5m", when.ErrorRateAbove(0.05, None, 300)),
        ("errors>0.5% on a.b-c over 1m", when.ErrorRateAbove(0.005, "a.b-c", 60)),
        ("p95 > 50% of timeout over 5m", when.LatencyAbove(95, None, 0.5, None, 300)),
        ("p99 > 20% of timeout on slow over 1h", when.LatencyAbove(99, None, 0.2, "slow", 3600)),
        ("p50  >  250ms  over  5s", when.LatencyAbove(50, 0.25, None, None, 5)),
        ("memory > 85% for 1m", when.MemoryAbove(0.85, 60)),
        ("cost > 80% of cap", when.CapSpentAbove(0.8)),
        ("cost > $5 today", when.SpentTodayAbove(Decimal(5))),
        ("pool wait > 1s over 1m", when.PoolWaitAbove(1, 60)),
        ("throttled > 25% over 5m", when.ThrottledAbove(0.25, 300)),
        ("calls bypass an upstream", when.CallsBypass()),
        ("call errors > 20% over 5m", when.CallErrorRateAbove(0.2, None, 300)),
        ("call errors > 20% on openai over 1m", when.CallErrorRateAbove(0.2, "openai", 60)),
        ("refusals > 10% over 5m", when.RefusalRateAbove(0.1, None, 300)),
        ("refusals > 10% on ask over 5m", when.RefusalRateAbove(0.1, "ask", 300)),
        ("task wait > 5m", when.TaskWaitAbove(300, None)),
        ("task wait>90s on report", when.TaskWaitAbove(90, "report")),
        ("failed tasks > 10% over 1h", when.FailedTasksAbove(0.1, None, 3600)),
        ("failed tasks > 10% on report over 5m", when.FailedTasksAbove(0.1, "report", 300)),
        ("policy is refused", when.PolicyRefused()),
    ],
)
def test_a_condition_is_read_and_written_back(text, condition):
    assert parse_condition(text) == condition
    assert parse_condition(str(condition)) == condition


def test_what_is_told_apart_ends_where_the_histogram_does():
    assert DURATION_BUCKETS[-1] == MAX_LATENCY_SECONDS


def test_every_shipped_rule_and_every_form_reads_as_it_is_written():
    for rule in SHIPPED_RULES.values():
        assert parse_condition(str(rule.when)) == rule.when
    for example in (*(example for example, _, _ in FORMS), *MORE_EXAMPLES):
        assert str(parse_condition(example)) == example


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("app is dwon for 10s", 'the nearest is "app is down for 10s"'),
        ("database is down for 10s", "that is no condition"),
        ("error > 5% over 5m", 'the nearest is "errors > 5% over 5m"'),
        ("memory > 85 for 1m", "85: it is not a number with a percent sign"),
        ("memory > 85%", 'the nearest is "memory > 85% for 1m"'),
        ("errors > 5% over 5", "5: it has no unit"),
        ("errors > 5% over 2h", "2h: it is longer than 1h"),
        ("errors > 5% over 1s", "1s: it is shorter than 5s"),
        ("p95 > 50% over 5m", "50% of what: of timeout"),
        ("p95 > 3m over 5m", "3m: it is not under 2m"),
        ("cost > 5 today", "5: it has no dollar sign"),
        ("breakers are open", 'the nearest is "breaker is open for 5s"'),
        ("x", "that is no condition"),
        ("task wait > 5", "5: it has no unit"),
        ("task waits > 5m", 'the nearest is "task wait > 5m"'),
        ("failed tasks > 10 over 1h", "10: it is not a number with a percent sign"),
        ("failed tasks > 10% over 2h", "2h: it is longer than 1h"),
        ("task wait > 5m on nowhere", "there is no route nowhere"),
        ("failed tasks > 10% on nowhere over 1h", "there is no route nowhere"),
        ("breaker of nobody is open for 5s", "there is no upstream nobody"),
        ("call errors > 20% on nobody over 5m", "there is no upstream nobody"),
        ("refusals > 10% on nowhere over 5m", "there is no route nowhere"),
        ("errors > 5% on nowhere over 5m", "there is no route nowhere"),
        ("p95 > 50% of timeout on quick over 5m", "the route quick has no timeout"),
    ],
)
def test_what_is_no_condition_is_a_fault_that_says_what_to_write(text, reported):
    policy = f"routes: [{{name: quick}}]\nalerts:\n  rules:\n    mine:\n      when: '{text}'\n"
    with pytest.raises(PolicyError) as caught:
        load_policy(PolicySource("p.yaml", None, policy), {})
    (fault,) = caught.value.faults
    assert str(fault).startswith("p.yaml:5: alerts.rules.mine.when: ")
    assert reported in str(fault)
    assert "; write " in str(fault) or "; did you mean" in str(fault)


# ── judging ──────────────────────────────────────────────────────────────────────────────────


class FakeInputs:
    """Facts as a test wants them."""

    def __init__(self):
        self.span = WindowStats(300)
        self.app = ComponentHealth("ok", "ready: it answers")
        self.others = {
            name: ComponentHealth("ok", "fine")
            for name in ("upstreams", "postgres", "store", "ledger", "tasks", "memory")
        }
        self.excused = False
        self.open = {}
        self.latest = ResourceSample()
        self.limits = {"a": 10.0, "b": None}
        self.money = {}
        self.past = {}
        self.waits = []
        self.holders = ""
        self.turned = None
        self.tasks = {}
        self.refused = ""

    def is_stopping(self):
        return False

    def parts(self):
        return {"app": self.app, **self.others}

    def is_app_absence_expected(self):
        return self.excused

    def breakers(self):
        return {
            name: BreakerInput(opened, "3 of the last 3 calls failed", changed=self.turned)
            for name, opened in self.open.items()
        }

    def sample(self):
        return self.latest

    def timeouts(self):
        return self.limits

    def caps(self, share):
        return self.money

    def bypassed_calls(self, seconds):
        return self.past

    def pool_waits(self):
        return self.waits

    def pool_holders(self):
        return self.holders

    def task_waits(self):
        return self.tasks

    def policy_refused(self):
        return self.refused

    def window(self, seconds):
        return self.span


def found(fake, text):
    return [finding.subject for finding in AlertEvaluator(fake).evaluate(0, parse_condition(text))]


def route(requests, errors=0, seconds=0.05):
    return RouteStats(requests, errors, [requests if seconds <= bound else 0 for bound in (*DURATION_BUCKETS, 1e9)])


@pytest.mark.parametrize(
    ("ok", "failed", "holds"),
    [
        (0, 0, False),
        (0, 2, False),
        (0, 3, True),
        (1, 4, False),
        (1, 5, True),
        (100, 5, False),
        (94, 6, True),
        (9999, 60, False),
    ],
)
def test_errors_are_a_share_of_enough_requests(ok, failed, holds):
    fake = FakeInputs()
    fake.span = WindowStats(300, routes={"a": route(ok + failed, failed), "b": route(0)})
    assert bool(found(fake, "errors > 5% over 5m")) == holds
    assert bool(found(fake, "errors > 5% on a over 5m")) == holds
    assert not found(fake, "errors > 5% on b over 5m")


@pytest.mark.parametrize(
    ("text", "spans", "subjects"),
    [
        ("p95 > 50% of timeout over 5m", {"a": route(20, seconds=9)}, ["a"]),
        ("p95 > 50% of timeout over 5m", {"a": route(5, seconds=9)}, ["a"]),
        ("p95 > 50% of timeout over 5m", {"a": route(4, seconds=9)}, []),
        ("p95 > 50% of timeout over 5m", {"a": merge_routes([route(18), route(1, seconds=9)])}, []),
        ("p95 > 50% of timeout over 5m", {"a": merge_routes([route(18), route(2, seconds=9)])}, ["a"]),
        ("p95 > 50% of timeout over 5m", {"a": route(50, seconds=2), "b": route(50, seconds=99)}, []),
        ("p95 > 5s over 5m", {"a": route(50, seconds=2), "b": route(50, seconds=99)}, ["b"]),
        ("p95 > 1s on a over 5m", {"a": route(50, seconds=2), "b": route(50, seconds=99)}, ["a"]),
    ],
)
def test_a_percentile_is_judged_by_route_and_against_its_own_timeout(text, spans, subjects):
    fake = FakeInputs()
    fake.span = WindowStats(300, routes=spans)
    assert found(fake, text) == subjects


@pytest.mark.parametrize(
    ("quick", "slow", "now", "holds"),
    [(0, 0, 0, False), (0, 1, 0, False), (10, 2, 0, True), (100, 2, 0, False), (0, 0, 2, True)],
)
def test_waits_for_the_pool_are_those_that_ended_and_those_under_way(quick, slow, now, holds):
    fake = FakeInputs()
    fake.holders = "5 idle in transactions of report (5)"
    fake.waits = [2.0] * now
    fake.span = WindowStats(60, waits=[quick if bound <= 1 else quick + slow for bound in (*WAIT_BUCKETS, 1e9)])
    findings = list(AlertEvaluator(fake).evaluate(0, parse_condition("pool wait > 1s over 1m")))
    assert bool(findings) == holds
    assert all("transactions of report" in finding.message for finding in findings)


def test_the_task_that_waits_longest_is_judged_by_route():
    fake = FakeInputs()
    fake.tasks = {"a": 301.0, "b": 300.0}
    assert found(fake, "task wait > 5m") == ["a"]
    assert found(fake, "task wait > 1m") == ["a", "b"]
    assert found(fake, "task wait > 1m on b") == ["b"]
    fake.tasks = {}
    assert found(fake, "task wait > 5m") == []


@pytest.mark.parametrize(
    ("tasks", "text", "subjects"),
    [
        ({}, "failed tasks > 10% over 1h", []),
        ({"a": {"failed": 2}}, "failed tasks > 10% over 1h", []),
        ({"a": {"failed": 3}}, "failed tasks > 10% over 1h", [""]),
        ({"a": {"failed": 4, "succeeded": 1}}, "failed tasks > 10% over 1h", []),
        ({"a": {"failed": 5, "succeeded": 44}}, "failed tasks > 10% over 1h", [""]),
        ({"a": {"failed": 5, "succeeded": 45}}, "failed tasks > 10% over 1h", []),
        ({"a": {"failed": 3, "cancelled": 9}}, "failed tasks > 10% over 1h", [""]),
        ({"a": {"failed": 5}, "b": {"succeeded": 50}}, "failed tasks > 10% over 1h", []),
        ({"a": {"failed": 5}, "b": {"succeeded": 50}}, "failed tasks > 10% on a over 1h", ["a"]),
        ({"a": {"failed": 5}, "b": {"succeeded": 50}}, "failed tasks > 10% on b over 1h", []),
    ],
)
def test_tasks_that_fail_are_a_share_of_enough_that_ended(tasks, text, subjects):
    fake = FakeInputs()
    fake.span = WindowStats(3600, tasks=tasks)
    assert found(fake, text) == subjects


def test_throttling_is_a_share_of_the_whole_window_so_a_start_is_no_alert():
    fake = FakeInputs()
    fake.span = WindowStats(20, throttled=15)
    assert not found(fake, "throttled > 25% over 5m")
    fake.span = WindowStats(300, throttled=80)
    assert found(fake, "throttled > 25% over 5m")


def test_money_is_told_by_upstream_without_the_name_of_any_user():
    fake = FakeInputs()
    fake.money = {"openai": CapInput(4.1, 9.5, "$5/d", 0.82, users=3), "other": CapInput(1, 1)}
    (finding,) = AlertEvaluator(fake).evaluate(0, parse_condition("cost > 80% of cap"))
    assert finding.subject == "openai"
    assert (
        "82% of the total cap of $5/d is spent and 3 users have spent more than 80% of a cap of their own"
        in finding.message
    )
    assert "$4.10 so far today, $9.50 at its end" in finding.message
    (finding,) = AlertEvaluator(fake).evaluate(0, parse_condition("cost > $5 today"))
    assert "most of it at openai" in finding.message
    assert not found(fake, "cost > $6 today")


@pytest.mark.parametrize(
    ("outcomes", "open", "turned", "holds"),
    [
        ({"error": 2}, False, None, False),
        ({"error": 3}, False, None, True),
        ({"fallback": 3, "refused": 9}, False, None, True),
        ({"error": 4, "ok": 1}, False, None, False),
        ({"error": 5, "ok": 15, "cached": 4}, False, None, True),
        ({"error": 5, "ok": 15, "cached": 5}, False, None, False),
        ({"error": 9}, True, 5.0, False),
        ({"error": 9}, None, 5.0, False),
        ({"error": 9}, False, 299.0, False),
        ({"error": 9}, False, 300.0, True),
    ],
)
def test_calls_that_fail_are_a_share_of_enough_and_an_open_breaker_speaks_for_itself(outcomes, open, turned, holds):
    fake = FakeInputs()
    fake.open, fake.turned = {"openai": open}, turned
    fake.span = WindowStats(
        300, calls={"openai": outcomes, "gone": {"error": 99}}, attempts={"openai": {"429": 12, "ok": 1}}
    )
    for text in ("call errors > 20% over 5m", "call errors > 20% on openai over 5m"):
        findings = list(AlertEvaluator(fake).evaluate(0, parse_condition(text)))
        assert [finding.subject for finding in findings] == ["openai"] * holds
        assert all("attempts of these 5m: 12 × 429" in finding.message for finding in findings)
    assert not found(fake, "call errors > 20% on other over 5m")


@pytest.mark.parametrize(("requests", "refused", "holds"), [(4, 4, False), (5, 5, True), (50, 5, False), (49, 5, True)])
def test_refusals_are_a_share_of_enough_requests(requests, refused, holds):
    fake = FakeInputs()
    fake.span = WindowStats(
        300, routes={"ask": RouteStats(requests, 0, route(requests).buckets, refused), "page": RouteStats()}
    )
    (text,) = [one.message for one in AlertEvaluator(fake).evaluate(0, parse_condition("refusals > 10% over 5m"))] or [
        None
    ]
    assert (text is not None and f"{refused} of {requests} requests" in text and f"ask ({refused})" in text) == holds
    assert bool(found(fake, "refusals > 10% on ask over 5m")) == holds
    assert not found(fake, "refusals > 10% on page over 5m")


def test_a_policy_that_is_refused_is_told_with_its_first_fault():
    fake = FakeInputs()
    assert not found(fake, "policy is refused")
    fake.refused = "p.yaml:3: routes: no\np.yaml:4: more"
    (finding,) = AlertEvaluator(fake).evaluate(0, parse_condition("policy is refused"))
    assert finding.message.endswith("stays in force: p.yaml:3: routes: no")


def test_calls_past_the_gateway_are_told_by_upstream():
    fake = FakeInputs()
    fake.past = {"openai": 4}
    assert found(fake, "calls bypass an upstream") == ["openai"]


def lasting(fake, text, *, at):
    """Judged once a second from 0 to `at`; what holds then."""
    judge, condition = AlertEvaluator(fake), parse_condition(text)
    for now in range(at + 1):
        judge.update_conditions(now, {condition})
    return [finding.subject for finding in judge.evaluate(at, condition)]


def test_what_must_last_is_not_told_before():
    fake = FakeInputs()
    fake.app = ComponentHealth("down", "restarting: it ended")
    fake.others["postgres"] = ComponentHealth("down", "away")
    fake.others["ledger"] = ComponentHealth("degraded", "disk full")
    fake.open = {"openai": True, "other": False}
    fake.latest = ResourceSample(gateway_bytes=50, app_bytes=860, limit_bytes=1000)
    for text, subject in [
        ("app is down for 10s", "app"),
        ("app is degraded for 10s", "app"),
        ("postgres is down for 10s", "postgres"),
        ("ledger is down for 10s", "ledger"),
        ("breaker is open for 10s", "openai"),
        ("breaker of openai is open for 10s", "openai"),
        ("memory > 85% for 10s", ""),
    ]:
        assert lasting(fake, text, at=9) == [], text
        assert lasting(fake, text, at=10) == [subject], text
    assert lasting(fake, "breaker of other is open for 0s", at=9) == []
    assert lasting(fake, "store is down for 0s", at=9) == []


@pytest.mark.parametrize(
    ("old", "new", "subject"),
    [
        ("breaker is open for 5s", "breaker is open for 20s", "openai"),
        ("memory > 85% for 10s", "memory > 85% for 1s", ""),
        ("app is down for 10s", "app is down for 15s", "app"),
    ],
)
def test_a_rule_whose_for_alone_is_changed_goes_on_from_where_it_was(old, new, subject):
    fake = FakeInputs()
    fake.app = ComponentHealth("down", "it ended")
    fake.open = {"openai": True}
    fake.latest = ResourceSample(gateway_bytes=50, app_bytes=860, limit_bytes=1000)
    judge = AlertEvaluator(fake)
    for now in range(30):
        judge.update_conditions(now, {parse_condition(old)})
    judge.update_conditions(30, {parse_condition(new)})
    (finding,) = judge.evaluate(30, parse_condition(new))
    assert (finding.subject, finding.since) == (subject, 0)
    assert len(judge._pending) == 1


def test_an_app_that_is_away_on_purpose_is_no_news():
    fake = FakeInputs()
    fake.app = ComponentHealth("down", "restarting: it is being replaced: memory")
    fake.excused = True
    assert lasting(fake, "app is down for 5s", at=60) == []


def test_an_app_that_crashes_again_and_again_is_down_though_it_is_up_for_moments():
    look = PendingCondition(10)
    for now in range(30):
        look.update(now, bad=now % 5 != 0)
    assert look.is_firing(29)
    for now in range(30, 39):
        look.update(now, bad=False)
    assert look.is_firing(38)
    look.update(40, bad=False)
    assert not look.is_firing(40)


def test_a_breaker_that_waits_for_a_probe_is_still_open_for_a_minute_and_then_is_not():
    look = PendingCondition(5)
    for now in range(10):
        look.update(now, bad=True)
    look.update(10, bad=None)
    assert look.is_firing(11)
    for now in range(11, 90):
        look.update(now, bad=None)
    assert not look.is_firing(90)
