"""The units an operator writes: durations, sizes, rates, shares and money.

Each `parse_*` takes the text as it stands in a policy and raises ValueError with one clause that says
what is wrong with it. Each `format_*` is the exact inverse: parsing its result yields the same value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

SpendPeriod = Literal["h", "d", "month"]

NANOS = 1_000_000_000  # nano-dollars in a dollar: what money is counted in, always as whole numbers

_DURATIONS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_RATES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PERIODS: dict[str, SpendPeriod] = {"h": "h", "d": "d", "month": "month"}

_MAX_DURATION = Decimal(1000) * 365 * 86400
_MAX_SIZE = 1 << 50

# Twelve digits before the point hold every figure that makes sense, and keep hostile text cheap.
_QUANTITY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s?([A-Za-z]*)", re.ASCII)
_WHOLE = re.compile(r"([0-9]{1,16})\s?([A-Za-z]*)", re.ASCII)
_MONEY = re.compile(r"\$([0-9]{1,9}(?:\.[0-9]{1,9})?)", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s?%", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of `250ms`, `30s`, `5m`, `2h` or `1d`."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("it is not a number and a unit")
    number, unit = match.groups()
    if not unit:
        raise ValueError("it has no unit")
    if unit not in _DURATIONS:
        raise ValueError(f"{unit} is no unit of time (ms, s, m, h, d)")
    seconds = Decimal(number) * _DURATIONS[unit]
    if seconds > _MAX_DURATION:
        raise ValueError("it is longer than a thousand years")
    if seconds % Decimal("0.000001"):
        raise ValueError("it is finer than a microsecond")
    return float(seconds)


def format_duration(seconds: float) -> str:
    exact = Decimal(repr(seconds))  # the shortest number that it is: 0.1, and not 0.1000000000000000055
    if exact == 0:
        return "0s"
    for unit in ("d", "h", "m", "s"):
        if exact % _DURATIONS[unit] == 0:
            return f"{int(exact / _DURATIONS[unit])}{unit}"
    thousands = exact * 1000
    if exact < 1 and thousands == thousands.to_integral_value():
        return f"{int(thousands)}ms"
    return f"{exact:f}s"


def parse_size(text: str) -> int:
    """Bytes of `64KiB`, `10MiB`, `1GiB` or a plain number of bytes."""
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise ValueError("it is not a whole number and a unit")
    number, unit = match.groups()
    if unit and unit not in _SIZES:
        raise ValueError(f"{unit} is no unit of size (B, KiB, MiB, GiB)")
    size = int(number) * _SIZES[unit or "B"]
    if size > _MAX_SIZE:
        raise ValueError("it is more than any machine has")
    return size


def format_size(size: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return str(size)


def parse_rate(text: str) -> tuple[int, float]:
    """The count and the period in seconds of `10/s`, `60/min`, `50/h`, `500/d` or `5/10s`."""
    number, slash, per = (part.strip() for part in text.partition("/"))
    if not slash:
        raise ValueError("it has no period")
    if not (number.isascii() and number.isdigit() and len(number) <= 12):
        raise ValueError("its count is not a whole number")
    count = int(number)
    if count == 0:
        raise ValueError("it would let nobody through")
    if per in _RATES:
        return count, _RATES[per]
    if not per[:1].isdigit():
        raise ValueError(f"{per or 'nothing'} is no period (s, min, h, d, or a duration such as 10s)")
    period = parse_duration(per)
    if period == 0:
        raise ValueError("its period is zero")
    return count, period


def format_rate(count: int, period: float) -> str:
    for unit, seconds in _RATES.items():
        if period == seconds:
            return f"{count}/{unit}"
    return f"{count}/{format_duration(period)}"


def parse_share(text: str) -> float:
    """A share from 0 to 1 of `85%`."""
    match = _SHARE.fullmatch(text)
    if match is None:
        raise ValueError("it is not a number with a percent sign")
    percent = Decimal(match[1])
    if percent > 100:
        raise ValueError("it is more than 100%")
    return float(percent / 100)


def format_share(share: float) -> str:
    percent = Decimal(repr(share)) * 100
    return f"{percent.normalize():f}%"


def parse_money(text: str) -> Decimal:
    """Dollars of `$0.05`."""
    match = _MONEY.fullmatch(text)
    if match is None:
        raise ValueError("it is not dollars" if text.startswith("$") else "it has no dollar sign")
    return Decimal(match[1])


def format_money(dollars: Decimal) -> str:
    return f"${dollars:f}"


def parse_spend(text: str) -> tuple[Decimal, SpendPeriod]:
    """Dollars and the calendar period of `$0.50/d`, `$1/h` or `$10/month`."""
    amount, slash, per = (part.strip() for part in text.partition("/"))
    dollars = parse_money(amount)
    if not slash:
        raise ValueError("it has no period")
    if per not in _PERIODS:
        raise ValueError(f"{per or 'nothing'} is no period of money (h, d, month)")
    return dollars, _PERIODS[per]


def format_spend(dollars: Decimal, period: SpendPeriod) -> str:
    return f"{format_money(dollars)}/{period}"


def to_nanos(dollars: Decimal) -> int:
    return int(dollars * NANOS)


def format_nanos(amount: int) -> str:
    """Plain dollars without a sign: six decimals, and more where there is more to say."""
    text = f"{amount // NANOS}.{amount % NANOS:09d}"
    return text[:-3] + text[-3:].rstrip("0")


def nanos_as_dollars(amount: int) -> Decimal:
    return Decimal(amount).scaleb(-9)
