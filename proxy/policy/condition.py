"""What a rule's `when` says: `errors > 5% over 5m`, read into small typed conditions and written back.

`for T`: it has been so for that long. `over T`: counted over the last T. Each form stands once in FORMS; what fits
none is told the nearest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Literal, TypeVar, cast

from proxy import units
from proxy.policy.kinds import Kind

PARTS = ("app", "upstreams", "postgres", "store", "ledger", "memory")
SHORTEST, LONGEST = 5.0, 3600.0  # seconds that can be looked back

T = TypeVar("T")
PartName = Literal["app", "upstreams", "postgres", "store", "ledger", "memory"]


@dataclass(frozen=True, slots=True)
class PartIs:
    """`degraded` holds for a part that is down as well."""

    part: PartName
    state: Literal["down", "degraded"]
    lasting: float

    def __str__(self) -> str:
        return f"{self.part} is {self.state} for {units.format_duration(self.lasting)}"


@dataclass(frozen=True, slots=True)
class BreakerOpen:
    """Of one upstream, or of each by itself."""

    upstream: str | None
    lasting: float

    def __str__(self) -> str:
        of = f" of {self.upstream}" if self.upstream is not None else ""
        return f"breaker{of} is open for {units.format_duration(self.lasting)}"


@dataclass(frozen=True, slots=True)
class Errors:
    """A share of the answers, of one route or of all together."""

    share: float
    route: str | None
    over: float

    def __str__(self) -> str:
        return f"errors > {units.format_share(self.share)}{_on(self.route)} over {units.format_duration(self.over)}"


@dataclass(frozen=True, slots=True)
class Slow:
    """A percentile in `seconds`, or as a share of each route's own timeout; of one route or of each by itself."""

    percent: int
    seconds: float | None
    share: float | None
    route: str | None
    over: float

    def __str__(self) -> str:
        if self.seconds is not None:
            most = units.format_duration(self.seconds)
        else:
            most = f"{units.format_share(self.share or 0.0)} of timeout"
        return f"p{self.percent} > {most}{_on(self.route)} over {units.format_duration(self.over)}"


@dataclass(frozen=True, slots=True)
class MemoryAbove:
    share: float
    lasting: float

    def __str__(self) -> str:
        return f"memory > {units.format_share(self.share)} for {units.format_duration(self.lasting)}"


@dataclass(frozen=True, slots=True)
class CapSpent:
    """A share of any cap, each upstream by itself."""

    share: float

    def __str__(self) -> str:
        return f"cost > {units.format_share(self.share)} of cap"


@dataclass(frozen=True, slots=True)
class SpentToday:
    """Dollars of all upstreams together."""

    amount: Decimal

    def __str__(self) -> str:
        return f"cost > {units.format_money(self.amount)} today"


@dataclass(frozen=True, slots=True)
class PoolWait:
    seconds: float
    over: float

    def __str__(self) -> str:
        return f"pool wait > {units.format_duration(self.seconds)} over {units.format_duration(self.over)}"


@dataclass(frozen=True, slots=True)
class ThrottledAbove:
    share: float
    over: float

    def __str__(self) -> str:
        return f"throttled > {units.format_share(self.share)} over {units.format_duration(self.over)}"


@dataclass(frozen=True, slots=True)
class Bypassed:
    def __str__(self) -> str:
        return "calls bypass an upstream"


Condition = (
    PartIs | BreakerOpen | Errors | Slow | MemoryAbove | CapSpent | SpentToday | PoolWait | ThrottledAbove | Bypassed
)


def _on(route: str | None) -> str:
    return f" on {route}" if route is not None else ""


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
        return Slow(int(percent), _read(units.parse_duration, most), None, route, _over(over))
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
)
# What else may be near to what was written.
RELATIVES = (
    *(f"{part} is {state} for 10s" for part in PARTS for state in ("down", "degraded")),
    "breaker of UPSTREAM is open for 5s",
    "errors > 5% on ROUTE over 5m",
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
