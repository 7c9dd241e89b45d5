"""The parser of `when` in alert rules: `errors > 5% over 5m` becomes a condition.

FORMS has each form once; a text that fits none gets the nearest form suggested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from proxy import units
from proxy.policy.alert_condition import (
    COMPONENTS,
    BreakerOpen,
    CallErrorRateAbove,
    CallsBypass,
    CapSpentAbove,
    ComponentIs,
    ComponentName,
    Condition,
    ErrorRateAbove,
    FailedTasksAbove,
    LatencyAbove,
    MemoryAbove,
    PolicyRefused,
    PoolWaitAbove,
    RefusalRateAbove,
    SpentTodayAbove,
    TaskWaitAbove,
    ThrottledAbove,
)
from proxy.policy.value_types import ValueType

MIN_WINDOW_SECONDS, MAX_WINDOW_SECONDS = 5.0, 3600.0  # of what the history can look back
MAX_LATENCY_SECONDS = 120.0  # the last bound of the requests' histogram

T = TypeVar("T")


def _parse_duration(text: str) -> float:
    seconds = _parse_value(units.parse_duration, text)
    if seconds > MAX_WINDOW_SECONDS:
        raise ValueError(f"{text}: it is longer than {units.format_duration(MAX_WINDOW_SECONDS)}")
    return seconds


def _parse_window(text: str) -> float:
    seconds = _parse_duration(text)
    # The history has a snapshot every 5 s: a shorter window may hold none.
    if seconds < MIN_WINDOW_SECONDS:
        raise ValueError(f"{text}: it is shorter than {units.format_duration(MIN_WINDOW_SECONDS)}")
    return seconds


def _parse_share(text: str) -> float:
    return _parse_value(units.parse_share, text)


def _parse_value(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None


def _component_is(part: str, state: str, lasting: str) -> Condition:
    return ComponentIs(cast(ComponentName, part), "down" if state == "down" else "degraded", _parse_duration(lasting))


def _latency_above(percent: str, most: str, of: str | None, route: str | None, over: str) -> Condition:
    if of is None and not most.endswith("%"):
        seconds = _parse_value(units.parse_duration, most)
        if seconds >= MAX_LATENCY_SECONDS:
            raise ValueError(
                f"{most}: it is not under {units.format_duration(MAX_LATENCY_SECONDS)}, past which none is told apart"
            )
        return LatencyAbove(int(percent), seconds, None, route, _parse_window(over))
    # A percentage without `of timeout` could be of anything.
    if of is None:
        raise ValueError(f"{most} of what: of timeout")
    return LatencyAbove(int(percent), None, _parse_share(most), route, _parse_window(over))


_NAME_PATTERN = r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})"

# A value may be any word here, so that a wrong one gets its own error instead of "no condition".
FORMS: Sequence[tuple[str, re.Pattern[str], Callable[..., Condition]]] = (
    ("app is down for 10s", re.compile(rf"({'|'.join(COMPONENTS)}) is (down|degraded) for (\S+)"), _component_is),
    (
        "breaker is open for 5s",
        re.compile(rf"breaker(?: of {_NAME_PATTERN})? is open for (\S+)"),
        lambda upstream, lasting: BreakerOpen(upstream, _parse_duration(lasting)),
    ),
    (
        "errors > 5% over 5m",
        re.compile(rf"errors > (\S+)(?: on {_NAME_PATTERN})? over (\S+)"),
        lambda share, route, over: ErrorRateAbove(_parse_share(share), route, _parse_window(over)),
    ),
    (
        "call errors > 20% over 5m",
        re.compile(rf"call errors > (\S+)(?: on {_NAME_PATTERN})? over (\S+)"),
        lambda share, upstream, over: CallErrorRateAbove(_parse_share(share), upstream, _parse_window(over)),
    ),
    (
        "refusals > 10% over 5m",
        re.compile(rf"refusals > (\S+)(?: on {_NAME_PATTERN})? over (\S+)"),
        lambda share, route, over: RefusalRateAbove(_parse_share(share), route, _parse_window(over)),
    ),
    (
        "p95 > 50% of timeout over 5m",
        re.compile(rf"p(50|90|95|99) > (\S+)( of timeout)?(?: on {_NAME_PATTERN})? over (\S+)"),
        _latency_above,
    ),
    (
        "memory > 85% for 1m",
        re.compile(r"memory > (\S+) for (\S+)"),
        lambda share, lasting: MemoryAbove(_parse_share(share), _parse_duration(lasting)),
    ),
    ("cost > 80% of cap", re.compile(r"cost > (\S+) of cap"), lambda share: CapSpentAbove(_parse_share(share))),
    (
        "cost > $5 today",
        re.compile(r"cost > (\S+) today"),
        lambda amount: SpentTodayAbove(_parse_value(units.parse_money, amount)),
    ),
    (
        "pool wait > 1s over 1m",
        re.compile(r"pool wait > (\S+) over (\S+)"),
        lambda seconds, over: PoolWaitAbove(_parse_value(units.parse_duration, seconds), _parse_window(over)),
    ),
    (
        "throttled > 25% over 5m",
        re.compile(r"throttled > (\S+) over (\S+)"),
        lambda share, over: ThrottledAbove(_parse_share(share), _parse_window(over)),
    ),
    (
        "task wait > 5m",
        re.compile(rf"task wait > (\S+)(?: on {_NAME_PATTERN})?"),
        lambda seconds, route: TaskWaitAbove(_parse_value(units.parse_duration, seconds), route),
    ),
    (
        "failed tasks > 10% over 1h",
        re.compile(rf"failed tasks > (\S+)(?: on {_NAME_PATTERN})? over (\S+)"),
        lambda share, route, over: FailedTasksAbove(_parse_share(share), route, _parse_window(over)),
    ),
    ("calls bypass an upstream", re.compile(r"calls bypass an upstream"), CallsBypass),
    ("policy is refused", re.compile(r"policy is refused"), PolicyRefused),
)
# More forms to suggest.
MORE_EXAMPLES = (
    *(f"{part} is {state} for 10s" for part in COMPONENTS for state in ("down", "degraded")),
    "breaker of UPSTREAM is open for 5s",
    "errors > 5% on ROUTE over 5m",
    "call errors > 20% on UPSTREAM over 5m",
    "refusals > 10% on ROUTE over 5m",
    "p95 > 5s on ROUTE over 5m",
    "task wait > 5m on ROUTE",
    "failed tasks > 10% on ROUTE over 1h",
    "p95 > 5s over 5m",
)


def parse_condition(text: str) -> Condition:
    """The condition that a text says. Raises ValueError with one clause that names the nearest form."""
    # Spaces around > are optional, and any run of spaces is one.
    words = " ".join(text.replace(">", " > ").split())
    for _, pattern, make in FORMS:
        match = pattern.fullmatch(words)
        if match is not None:
            return make(*match.groups())
    known = [example for example, _, _ in FORMS] + list(MORE_EXAMPLES)
    from difflib import get_close_matches  # only for who made a mistake

    # A low cutoff, since some form is always better to see than none.
    near = get_close_matches(words[:100], known, 1, 0.3) or [known[0]]
    raise ValueError(f'that is no condition; the nearest is "{near[0]}"')


def _pattern_for_editors() -> str:
    """The forms with any run of spaces, as parse_condition takes them."""
    forms = (form.pattern.replace(" > ", ">").replace(" ", " +").replace(">", " *> *") for _, form, _ in FORMS)
    return f" *({'|'.join(forms)}) *"


CONDITION = ValueType(parse_condition, str, 'a condition such as "errors > 5% over 5m"', pattern=_pattern_for_editors())
