"""What `suggest` makes of what a gateway saw."""

from __future__ import annotations

import math

import pytest

from proxy.cli.running_stats import GatewayStats, Histogram, RouteStats
from proxy.cli.suggest import advise_route, advise_upstream, format_policy_lines
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Policy

DAY = 86400.0
ROUTE = "name: generate, match: {path: /generate}, enforce: false"


def policy(route: str = "", more: str = "") -> Policy:
    return load_policy(PolicySource("x", None, f"routes: [{{{ROUTE}{route}}}]\n{more}"), {})


def spread(*pairs: tuple[float, float]) -> Histogram:
    """Pairs of a bound and how many were at most that."""
    return Histogram([*(bound for bound, _ in pairs), math.inf], [*(count for _, count in pairs), pairs[-1][1]])


QUICK = spread((1, 950), (5, 1000))
FEW = spread((10, 900), (12, 995), (16, 1000))


@pytest.mark.parametrize(
    ("route", "seen", "said", "lines"),
    [
        ("concurrency: 8", RouteStats(1000, QUICK, FEW, shadow={"overloaded": 4}),
         "p99 of concurrency was 12, the most 16: 20 would have refused nobody.",
         ["concurrency: 20", "timeout: 30s", "enforce: true"]),
        ("rate_limit: 60/min", RouteStats(1000, QUICK, rate_decisions={"allowed": 1000}),
         "Its rate limit (60/min) would have refused nobody.", ["timeout: 30s", "enforce: true"]),
        ("rate_limit: [60/min, 5/s]", RouteStats(1000, QUICK, rate_decisions={"allowed": 990, "shadow": 10}, shadow={"rate-limited": 10}),
         "Its rate limit (60/min, 5/s) would have refused 10 of 1,000", ["timeout: 30s", "rate_limit: [120/min, 10/s]"]),
        ("max_body: 1MiB", RouteStats(1000, QUICK, shadow={"body-too-large": 1}),
         "1 body of over 1MiB came (max_body, in shadow): try 2MiB.", ["timeout: 30s", "max_body: 2MiB"]),
        ("requires_budget: true, rate_limit: 60/h", RouteStats(1000, QUICK, rate_decisions={"allowed": 1000}, shadow={"cost-cap": 3}),
         "1,000 requests.", ["timeout: 30s"]),
        ("", RouteStats(1000, Histogram([120.0, math.inf], [999, 1000])),
         "Some took longer than 2 min (streams, long polls, uploads): no timeout is proposed.", []),
        ("concurrency: 8", RouteStats(12, QUICK, FEW), "12 requests so far: too few for a figure, it takes 100.", []),
        ("concurrency: 8", RouteStats(), "0 requests so far: too few for a figure, it takes 100.", []),
    ],
)  # fmt: skip
def test_a_figure_would_have_refused_nobody_or_is_not_proposed(route, seen, said, lines):
    advice = advise_route(policy(f", {route}" if route else "").routes[0], seen)
    assert any(said in sentence for sentence in advice.sentences), advice.sentences
    assert advice.lines == lines


def test_what_is_proposed_can_be_taken():
    found = policy(
        ", concurrency: 8, rate_limit: {free: 1/h, paid: [5/h, 2/s]}",
        "identity: {tiers: [{name: paid, users: p*}, {name: free}]}",
    )
    seen = RouteStats(1000, QUICK, FEW, rate_decisions={"allowed": 1, "shadow": 9}, shadow={"rate-limited": 9})
    advice = advise_route(found.routes[0], seen)
    text = "\n".join(format_policy_lines([advice], [])).replace(
        "name: generate", "name: generate\n    match: {path: /generate}"
    )
    taken = load_policy(
        PolicySource("x", None, f"{text}\nidentity: {{tiers: [{{name: paid, users: p*}}, {{name: free}}]}}"), {}
    )
    assert taken.routes[0].concurrency == 20
    assert [str(rate) for rate in taken.routes[0].rate_limit["paid"]] == ["10/h", "4/s"]


@pytest.mark.parametrize(
    ("uptime", "spent", "lines"),
    [(DAY, 3.20, ["cap: {total: $10/d}"]), (DAY, 0.0, []), (3600.0, 3.20, [])],
)
def test_a_cap_is_proposed_from_a_days_spending(uptime, spent, lines):
    evidence = GatewayStats(uptime, calls={"openai": QUICK}, last_day_spend=spent)
    advice = advise_upstream("openai", policy(), evidence)
    assert advice is not None
    assert advice.lines == lines


def test_where_nothing_was_called_nothing_is_said_of_it():
    assert advise_upstream("openai", policy(), GatewayStats(DAY)) is None
