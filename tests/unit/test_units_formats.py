"""What operators write, and its exact inverse."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), ("1.5h", 5400), ("0s", 0), ("5 s", 5)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("64KiB", 65536), ("10MiB", 10485760), ("1GiB", 1 << 30), ("1048576", 1048576), ("512B", 512), ("0", 0)],
)
def test_a_size_is_in_binary_units_or_plain_bytes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", (10, 1)),
        ("60/min", (60, 60)),
        ("50/h", (50, 3600)),
        ("500/d", (500, 86400)),
        ("5/10s", (5, 10)),
        ("40 / 5m", (40, 300)),
    ],
)
def test_a_rate_is_a_count_in_a_unit_or_a_duration(text: str, rate: tuple[int, float]) -> None:
    assert units.parse_rate(text) == rate


def test_money_has_a_dollar_sign_and_where_it_is_spent_over_time_a_period() -> None:
    assert units.parse_money("$0.05") == Decimal("0.05")
    assert units.parse_spend("$0.50/d") == (Decimal("0.50"), "d")
    assert units.parse_spend("$10/month") == (Decimal(10), "month")


@pytest.mark.parametrize(("text", "share"), [("85%", 0.85), ("0%", 0), ("100%", 1), ("12.5 %", 0.125)])
def test_a_share_is_a_percentage(text: str, share: float) -> None:
    assert units.parse_share(text) == share


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [
        (units.parse_duration, "30", "no unit"),
        (units.parse_duration, "", "not a number"),
        (units.parse_duration, "-1s", "not a number"),
        (units.parse_duration, "1w", "w is no unit"),
        (units.parse_duration, "1e3s", "not a number"),
        (units.parse_duration, "٣s", "not a number"),
        (units.parse_duration, "999999999999d", "thousand years"),
        (units.parse_duration, "0.0001ms", "microsecond"),
        (units.parse_duration, "9" * 10_000 + "s", "not a number"),
        (units.parse_size, "10MB", "MB is no unit"),
        (units.parse_size, "1.5MiB", "not a whole number"),
        (units.parse_size, "9999999999GiB", "any machine"),
        (units.parse_rate, "10", "no period"),
        (units.parse_rate, "0/h", "nobody"),
        (units.parse_rate, "10/m", "m is no period"),
        (units.parse_rate, "10/", "nothing is no period"),
        (units.parse_rate, "1.5/h", "whole number"),
        (units.parse_rate, "²/h", "whole number"),
        (units.parse_rate, "5/0s", "period is zero"),
        (units.parse_share, "0.85", "percent sign"),
        (units.parse_share, "101%", "more than 100%"),
        (units.parse_money, "0.05", "dollar sign"),
        (units.parse_money, "$x", "not dollars"),
        (units.parse_spend, "$5", "no period"),
        (units.parse_spend, "$5/year", "year is no period"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_clause(parse: object, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse(text)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


_decimals = st.decimals(0, 10**6, places=3).map(lambda number: f"{number:f}")


@settings(deadline=None)
@given(_decimals, st.sampled_from(["ms", "s", "m", "h"]))
def test_a_formatted_duration_reads_as_the_same_value(number: str, unit: str) -> None:
    seconds = units.parse_duration(number + unit)
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@settings(deadline=None)
@given(st.integers(0, 1 << 50))
def test_a_formatted_size_reads_as_the_same_value(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@settings(deadline=None)
@given(st.integers(1, 10**12 - 1), st.sampled_from(["s", "min", "h", "d", "10s", "90m", "250ms"]))
def test_a_formatted_rate_reads_as_the_same_value(count: int, period: str) -> None:
    rate = units.parse_rate(f"{count}/{period}")
    assert units.parse_rate(units.format_rate(*rate)) == rate


@settings(deadline=None)
@given(st.decimals(0, 100, places=4))
def test_a_formatted_share_reads_as_the_same_value(percent: Decimal) -> None:
    share = units.parse_share(f"{percent:f}%")
    assert units.parse_share(units.format_share(share)) == share


@settings(deadline=None)
@given(st.decimals(0, 10**6, places=6), st.sampled_from(["h", "d", "month"]))
def test_formatted_money_reads_as_the_same_value(amount: Decimal, period: units.SpendPeriod) -> None:
    spend = units.parse_spend(f"${amount:f}/{period}")
    assert units.parse_spend(units.format_spend(*spend)) == spend


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "250ms"), (90, "90s"), (900, "15m"), (86400, "1d"), (0, "0s"), (1.5, "1.5s")]
)
def test_a_duration_is_shown_in_the_largest_unit_that_fits(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text
