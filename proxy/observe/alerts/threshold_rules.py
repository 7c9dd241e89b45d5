"""The rules on counts over a window, which have no state of their own.

A handful of requests proves nothing, so each rule has a minimum: errors need 5 failed requests in their window (or 3 if
nothing else was answered at all), calls out, refusals and tasks the same, a percentile needs 20 requests of the route
(or 5 if half of them were that slow), waits for the database 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from proxy.observe.alerts.alert import Finding
from proxy.observe.alerts.inputs import AlertInputs, CapInput
from proxy.observe.timeseries.window_stats import RouteStats
from proxy.policy import alert_condition as when
from proxy.policy.alert_condition import Condition
from proxy.units import format_duration, format_money, format_share

MIN_ERRORS, MIN_ERRORS_IF_ALL = 5, 3
MIN_REQUESTS, MIN_REQUESTS_IF_HALF = 20, 5
MIN_WAITS, MIN_WAITING_SHARE = 2, 0.05
BYPASS_WINDOW = 300.0  # seconds for which a bypass is reported


def evaluate_threshold(inputs: AlertInputs, condition: Condition) -> Iterator[Finding]:
    match condition:
        case when.ErrorRateAbove():
            yield from _check_errors(inputs, condition)
        case when.CallErrorRateAbove():
            yield from _check_call_errors(inputs, condition)
        case when.RefusalRateAbove():
            yield from _check_refusals(inputs, condition)
        case when.LatencyAbove():
            yield from _check_slow(inputs, condition)
        case when.CapSpentAbove():
            yield from _check_caps(inputs, condition)
        case when.SpentTodayAbove():
            yield from _check_spend_today(inputs, condition)
        case when.PoolWaitAbove():
            yield from _check_pool_wait(inputs, condition)
        case when.ThrottledAbove():
            yield from _check_throttling(inputs, condition)
        case when.TaskWaitAbove():
            yield from _check_task_waits(inputs, condition)
        case when.FailedTasksAbove():
            yield from _check_failed_tasks(inputs, condition)
        case when.CallsBypass():
            yield from _check_bypass(inputs)
        case when.PolicyRefused():
            yield from _check_policy(inputs)


def _check_errors(inputs: AlertInputs, condition: when.ErrorRateAbove) -> Iterator[Finding]:
    window = inputs.window(condition.window_seconds)
    named = condition.route
    route = window.total_routes() if named is None else window.routes.get(named, RouteStats())
    ok = route.requests - route.errors
    # One failure of three requests at night is a third, and no reason to wake anybody.
    enough = route.errors >= MIN_ERRORS or (route.errors >= MIN_ERRORS_IF_ALL and ok == 0)
    if not enough or route.error_share <= condition.share:
        return
    of = f" of {condition.route}" if condition.route is not None else ""
    text = (
        f"{route.errors:.0f} of {route.requests:.0f} requests{of} failed in {format_duration(condition.window_seconds)}"
        f" ({route.error_share:.0%})"
    )
    if condition.route is None:
        worst = sorted(((r.errors, name) for name, r in window.routes.items() if r.errors), reverse=True)
        text += f"; most of them of {_list_worst(worst)}"
    yield Finding(condition.route or "", text, f"{route.error_share:.1%}", str(condition), level=route.error_share)


def _check_call_errors(inputs: AlertInputs, condition: when.CallErrorRateAbove) -> Iterator[Finding]:
    """Skips an upstream whose breaker is open, or was within the window: the breaker's rule covers those failures."""
    window, breakers = inputs.window(condition.window_seconds), inputs.breakers()
    for name, outcomes in window.calls.items():
        breaker = breakers.get(name)
        if condition.upstream not in (None, name) or breaker is None or breaker.open is not False:
            continue
        # The failures that opened it are still in the window, and were reported by the breaker's rule.
        if breaker.changed is not None and breaker.changed < condition.window_seconds:
            continue
        failed = outcomes.get("error", 0.0) + outcomes.get("fallback", 0.0)
        asked = failed + outcomes.get("ok", 0.0) + outcomes.get("cached", 0.0)
        if failed < (MIN_ERRORS_IF_ALL if failed == asked else MIN_ERRORS) or failed <= condition.share * asked:
            continue
        length = format_duration(condition.window_seconds)
        text = f"{failed:.0f} of {asked:.0f} calls to {name} ended in an error or a fallback in {length}"
        text += describe_attempts(window.attempts.get(name, {}), f"attempts of these {length}")
        share = failed / asked
        yield Finding(name, text, f"{share:.0%}", str(condition), level=share)


def _check_refusals(inputs: AlertInputs, condition: when.RefusalRateAbove) -> Iterator[Finding]:
    window, named = inputs.window(condition.window_seconds), condition.route
    route = window.total_routes() if named is None else window.routes.get(named, RouteStats())
    if route.refused < MIN_ERRORS or route.refused <= condition.share * route.requests:
        return
    share = route.refused / route.requests
    of = f" of {named}" if named is not None else ""
    text = (
        f"the policy refused {route.refused:.0f} of {route.requests:.0f} requests{of}"
        f" in {format_duration(condition.window_seconds)} ({share:.0%})"
    )
    if named is None:
        worst = sorted(((r.refused, name) for name, r in window.routes.items() if r.refused), reverse=True)
        text += f"; most of them of {_list_worst(worst)}"
    yield Finding(named or "", text, f"{share:.0%}", str(condition), level=share)


def _check_slow(inputs: AlertInputs, condition: when.LatencyAbove) -> Iterator[Finding]:
    window, timeouts = inputs.window(condition.window_seconds), inputs.timeouts()
    for name, route in window.routes.items():
        if condition.route not in (None, name) or route.requests < MIN_REQUESTS_IF_HALF:
            continue
        most = condition.seconds
        if most is None:
            timeout = timeouts.get(name)
            if timeout is None:
                continue
            most = timeout * (condition.share or 0.0)
        found = route.quantile(condition.percent / 100)
        if found is None or found <= most:
            continue
        # Of a few requests one slow one is the p95: they count if half of them are slow.
        if route.requests < MIN_REQUESTS and (route.quantile(0.5) or 0.0) <= most:
            continue
        text = (
            f"{100 - condition.percent}% of {route.requests:.0f} requests of {name} took longer than {found:.1f} s"
            f" in {format_duration(condition.window_seconds)} (p{condition.percent}; the rule allows {most:g} s)"
        )
        yield Finding(name, text, f"{found:.2f} s", str(condition), level=found / most)


def _check_pool_wait(inputs: AlertInputs, condition: when.PoolWaitAbove) -> Iterator[Finding]:
    window = inputs.window(condition.window_seconds)
    # Those that wait now are in no bucket yet: without them a pool that is stuck would look idle.
    now_over = [wait for wait in inputs.pool_waits() if wait > condition.seconds]
    over = window.count_waits_over(condition.seconds) + len(now_over)
    asked = (window.waits[-1] if window.waits else 0.0) + len(now_over)
    if over < MIN_WAITS or over <= MIN_WAITING_SHARE * asked:
        return
    text = (
        f"{over:.0f} of {asked:.0f} clients waited for a database connection longer than"
        f" {format_duration(condition.seconds)} in {format_duration(condition.window_seconds)}"
    )
    holders = inputs.pool_holders()
    text += f"; {holders}" if holders else ""
    yield Finding("postgres", text, f"{over:.0f} of {asked:.0f}", str(condition), level=over, cause=holders)


def _check_throttling(inputs: AlertInputs, condition: when.ThrottledAbove) -> Iterator[Finding]:
    share = inputs.window(condition.window_seconds).throttled / condition.window_seconds
    if share <= condition.share:
        return
    text = f"the CPU quota held app and gateway back for {share:.0%} of {format_duration(condition.window_seconds)}"
    yield Finding("", text, f"{share:.0%}", str(condition), level=share)


def _check_caps(inputs: AlertInputs, condition: when.CapSpentAbove) -> Iterator[Finding]:
    for name, cap in inputs.caps(condition.share).items():
        users = cap.users
        total = cap.total_share if cap.total_share is not None and cap.total_share > condition.share else None
        if not users and total is None:
            continue
        said = []
        if total is not None:
            said.append(f"{total:.0%} of the total cap of {cap.total} is spent")
        if users:
            who = "1 user has" if users == 1 else f"{users} users have"
            said.append(f"{who} spent more than {format_share(condition.share)} of a cap of their own")
        text = f"at {name}, {' and '.join(said)}; {_describe_spend(cap)}"
        value = f"{total:.0%} of the total" if total is not None else f"{users} users"
        # How bad it is, for it is told again once it is worse: a user more counts as a tenth more of the total.
        level = users + 10 * (total or 0.0)
        yield Finding(name, text, value, str(condition), level=level, is_settled=True)


def _check_spend_today(inputs: AlertInputs, condition: when.SpentTodayAbove) -> Iterator[Finding]:
    caps = inputs.caps(1.0)
    spent = sum(cap.spent_today for cap in caps.values())
    if spent <= float(condition.amount):
        return
    dearest = max(caps, key=lambda name: caps[name].spent_today)
    whole = CapInput(spent, sum(cap.projected_today for cap in caps.values()))
    text = (
        f"more than {format_money(condition.amount)} is spent today, most of it at {dearest}; {_describe_spend(whole)}"
    )
    yield Finding("", text, f"${spent:.2f}", str(condition), level=spent, is_settled=True)


def _check_task_waits(inputs: AlertInputs, condition: when.TaskWaitAbove) -> Iterator[Finding]:
    for route, seconds in inputs.task_waits().items():
        if condition.route not in (None, route) or seconds <= condition.seconds:
            continue
        waited = f"{seconds:.0f} s"
        text = f"a task of {route} has waited for {waited} (the rule allows {condition.seconds:g} s)"
        yield Finding(route, text, waited, str(condition), level=seconds)


def _check_failed_tasks(inputs: AlertInputs, condition: when.FailedTasksAbove) -> Iterator[Finding]:
    tasks, named = inputs.window(condition.window_seconds).tasks, condition.route
    chosen = {route: outcomes for route, outcomes in tasks.items() if named in (None, route)}
    # One that somebody cancelled neither failed nor succeeded.
    by_route = {route: outcomes.get("failed", 0.0) for route, outcomes in chosen.items()}
    failed = sum(by_route.values())
    ended = failed + sum(outcomes.get("succeeded", 0.0) for outcomes in chosen.values())
    enough = failed >= MIN_ERRORS or (failed >= MIN_ERRORS_IF_ALL and failed == ended)
    if not enough or failed <= condition.share * ended:
        return
    share = failed / ended
    of = f" of {named}" if named is not None else ""
    text = f"{failed:.0f} of {ended:.0f} tasks{of} failed in {format_duration(condition.window_seconds)} ({share:.0%})"
    if named is None:
        worst = sorted(((count, route) for route, count in by_route.items() if count), reverse=True)
        text += f"; most of them of {_list_worst(worst)}"
    yield Finding(named or "", text, f"{share:.0%}", str(condition), level=share)


def _check_bypass(inputs: AlertInputs) -> Iterator[Finding]:
    found: Mapping[str, int] = inputs.bypassed_calls(BYPASS_WINDOW)
    for name, count in found.items():
        text = f"{count} calls went straight to the host of {name}: without retries, caps or an owner"
        yield Finding(name, text, f"{count} calls", "calls bypass an upstream", level=count, is_settled=True)


def _check_policy(inputs: AlertInputs) -> Iterator[Finding]:
    refused = inputs.policy_refused()
    if refused:
        text = f"the newest policy is refused, the one before it stays in force: {refused.splitlines()[0]}"
        yield Finding("policy", text, "refused", "policy is refused", is_settled=True)


def _list_worst(counts: list[tuple[float, str]]) -> str:
    return ", ".join(f"{name} ({count:.0f})" for count, name in counts[:3])


def describe_attempts(results: Mapping[str, float], title: str) -> str:
    worst = sorted(((n, result) for result, n in results.items() if n and result != "ok"), reverse=True)
    shown = ", ".join(f"{n:.0f} × {result}" for n, result in worst[:3])
    return f"; {title}: {shown}" if shown else ""


def _describe_spend(cap: CapInput) -> str:
    return f"${cap.spent_today:.2f} so far today, ${cap.projected_today:.2f} at its end as the last hour went"
