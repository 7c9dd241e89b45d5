"""The language of `when`: `errors > 5% over 5m`, read into a condition.

Each form stands once in FORMS; what fits none is told the nearest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TypeVar, cast

from proxy import units
from proxy.policy.alert_condition import (
    PARTS,
    BreakerOpen,
    Bypassed,
    CallErrors,
    CapSpent,
    Condition,
    Errors,
    MemoryAbove,
    PartIs,
    PartName,
    PolicyRefused,
    PoolWait,
    Refusals,
    Slow,
    SpentToday,
    ThrottledAbove,
)
from proxy.policy.value_types import Kind

SHORTEST, LONGEST = 5.0, 3600.0  # seconds that can be looked back
SLOWEST = 120.0  # seconds: the last bound of a request's histogram

T = TypeVar("T")


def _lasting(text: str) -> float:
    seconds = _read(units.parse_duration, text)
    if seconds > LONGEST:
        raise ValueError(f"{text}: it is longer than {units.format_duration(LONGEST)}")
    return seconds


def _over(text: str) -> float:
    seconds = _lasting(text)
    if seconds < SHORTEST:
        raise ValueError(f"{text}: it is shorter than {units.format_duration(SHORTEST)}")
    return seconds


def _share(text: str) -> float:
    return _read(units.parse_share, text)


def _read(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None


def _part(part: str, state: str, lasting: str) -> Condition:
    return PartIs(cast(PartName, part), "down" if state == "down" else "degraded", _lasting(lasting))


def _slow(percent: str, most: str, of: str | None, route: str | None, over: str) -> Condition:
    if of is None and not most.endswith("%"):
        seconds = _read(units.parse_duration, most)
        if seconds >= SLOWEST:
            raise ValueError(f"{most}: it is not under {units.format_duration(SLOWEST)}, past which none is told apart")
        return Slow(int(percent), seconds, None, route, _over(over))
    if of is None:
        raise ValueError(f"{most} of what: of timeout")
    return Slow(int(percent), None, _share(most), route, _over(over))


_NAME = r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})"

# Values are any word here, so that what is wrong with one can be said of it alone.
FORMS: Sequence[tuple[str, re.Pattern[str], Callable[..., Condition]]] = (
    ("app is down for 10s", re.compile(rf"({'|'.join(PARTS)}) is (down|degraded) for (\S+)"), _part),
    (
        "breaker is open for 5s",
        re.compile(rf"breaker(?: of {_NAME})? is open for (\S+)"),
        lambda upstream, lasting: BreakerOpen(upstream, _lasting(lasting)),
    ),
    (
        "errors > 5% over 5m",
        re.compile(rf"errors > (\S+)(?: on {_NAME})? over (\S+)"),
        lambda share, route, over: Errors(_share(share), route, _over(over)),
    ),
    (
        "call errors > 20% over 5m",
        re.compile(rf"call errors > (\S+)(?: on {_NAME})? over (\S+)"),
        lambda share, upstream, over: CallErrors(_share(share), upstream, _over(over)),
    ),
    (
        "refusals > 10% over 5m",
        re.compile(rf"refusals > (\S+)(?: on {_NAME})? over (\S+)"),
        lambda share, route, over: Refusals(_share(share), route, _over(over)),
    ),
    (
        "p95 > 50% of timeout over 5m",
        re.compile(rf"p(50|90|95|99) > (\S+)( of timeout)?(?: on {_NAME})? over (\S+)"),
        _slow,
    ),
    (
        "memory > 85% for 1m",
        re.compile(r"memory > (\S+) for (\S+)"),
        lambda share, lasting: MemoryAbove(_share(share), _lasting(lasting)),
    ),
    ("cost > 80% of cap", re.compile(r"cost > (\S+) of cap"), lambda share: CapSpent(_share(share))),
    ("cost > $5 today", re.compile(r"cost > (\S+) today"), lambda amount: SpentToday(_read(units.parse_money, amount))),
    (
        "pool wait > 1s over 1m",
        re.compile(r"pool wait > (\S+) over (\S+)"),
        lambda seconds, over: PoolWait(_read(units.parse_duration, seconds), _over(over)),
    ),
    (
        "throttled > 25% over 5m",
        re.compile(r"throttled > (\S+) over (\S+)"),
        lambda share, over: ThrottledAbove(_share(share), _over(over)),
    ),
    ("calls bypass an upstream", re.compile(r"calls bypass an upstream"), Bypassed),
    ("policy is refused", re.compile(r"policy is refused"), PolicyRefused),
)
# What else may be near to what was written.
RELATIVES = (
    *(f"{part} is {state} for 10s" for part in PARTS for state in ("down", "degraded")),
    "breaker of UPSTREAM is open for 5s",
    "errors > 5% on ROUTE over 5m",
    "call errors > 20% on UPSTREAM over 5m",
    "refusals > 10% on ROUTE over 5m",
    "p95 > 5s on ROUTE over 5m",
    "p95 > 5s over 5m",
)


def parse(text: str) -> Condition:
    """Raises ValueError with one clause that names the nearest form."""
    words = " ".join(text.replace(">", " > ").split())
    for _, pattern, make in FORMS:
        match = pattern.fullmatch(words)
        if match is not None:
            return make(*match.groups())
    known = [example for example, _, _ in FORMS] + list(RELATIVES)
    near = get_close_matches(words[:100], known, 1, 0.3) or [known[0]]
    raise ValueError(f'that is no condition; the nearest is "{near[0]}"')


WHEN = Kind(parse, str, 'a condition such as "errors > 5% over 5m"')
