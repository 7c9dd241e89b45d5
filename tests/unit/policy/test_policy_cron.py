"""Cron expressions: which are taken, and when they are due where clocks change."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from proxy.policy.cron import CronExpression

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN) -> float:
    """Unix seconds of `2026-03-29 01:30`, or of one with its offset where it comes twice."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp()


def due(cron: str, after: str, count: int, zone: str = BERLIN) -> list[str]:
    found = islice(CronExpression.parse(cron).due_times(at(after, zone), zone), count)
    return [datetime.fromtimestamp(one, ZoneInfo(zone)).isoformat(" ", "minutes") for one in found]


@pytest.mark.parametrize(
    "cron",
    [
        "0 3 * * *",
        "*/5 * * * *",
        "0 0 29 2 *",
        "30 9 * JAN-MAR MON-FRI",
        "0 0 L * *",
        "0 0 * * MON#2",
        "0,30 1-5/2 1 * 0",
    ],
)
def test_expressions_of_five_fields_are_taken(cron: str) -> None:
    assert str(CronExpression.parse(cron)) == cron


@pytest.mark.parametrize(
    ("cron", "why"),
    [
        ("@daily", "1 field and not five .@daily"),
        ("* * * *", "4 fields and not five"),
        ("0 * * * * *", "6 fields and not five"),
        ("61 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 32 * *", "day-of-month"),
        ("0 0 30 2 *", "day-of-month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "day-of-week"),
        ("0/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("a b c d e", "minute"),
    ],
)
def test_any_other_is_told_by_its_field(cron: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CronExpression.parse(cron)


def test_it_is_due_in_its_own_time_zone() -> None:
    assert due("0 3 * * *", "2026-06-01 12:00", 2) == ["2026-06-02 03:00+02:00", "2026-06-03 03:00+02:00"]
    assert due("0 3 * * *", "2026-06-01 12:00", 1, "UTC") == ["2026-06-02 03:00+00:00"]


def test_at_its_very_time_the_next_is_another() -> None:
    assert due("0 3 * * *", "2026-06-01 03:00", 1) == ["2026-06-02 03:00+02:00"]


def test_what_falls_into_the_skipped_hour_is_due_after_it_once() -> None:
    # On 29 March 2026 the clocks of Berlin go from 02:00 to 03:00.
    for cron in ("30 2 * * *", "0,30 2 * * *", "*/5 2 * * *", "15 2,3 * * *"):
        first, second = due(cron, "2026-03-28 12:00", 2)
        assert first == "2026-03-29 03:00+02:00", cron
        assert second != first
    # In New York, from 02:00 to 03:00 on 8 March; on Lord Howe by half an hour, on 4 October.
    assert due("30 2 * * *", "2026-03-07 12:00", 1, "America/New_York") == ["2026-03-08 03:00-04:00"]
    assert due("15 2 * * *", "2026-10-03 12:00", 1, "Australia/Lord_Howe") == ["2026-10-04 02:30+11:00"]


def test_in_the_hour_that_comes_twice_it_is_due_once() -> None:
    # On 25 October 2026 the clocks of Berlin go from 03:00 back to 02:00.
    assert due("30 2 * * *", "2026-10-24 12:00", 2) == ["2026-10-25 02:30+02:00", "2026-10-26 02:30+01:00"]
    assert due("*/20 2 * * *", "2026-10-24 12:00", 4)[2:] == ["2026-10-25 02:40+02:00", "2026-10-26 02:00+01:00"]
    # Also for an instance that starts in the second pass: the first is over.
    assert due("30 2 * * *", "2026-10-25 02:10+01:00", 1) == ["2026-10-26 02:30+01:00"]


def test_every_hour_goes_by_real_time() -> None:
    spring = due("0 * * * *", "2026-03-29 00:30", 3)
    assert spring == ["2026-03-29 01:00+01:00", "2026-03-29 03:00+02:00", "2026-03-29 04:00+02:00"]
    autumn = due("30 * * * *", "2026-10-25 01:00", 4)
    assert autumn[1:3] == ["2026-10-25 02:30+02:00", "2026-10-25 02:30+01:00"]


def test_the_latest_time_of_a_span_is_found_however_long_the_span_is() -> None:
    cron = CronExpression.parse("*/5 * * * *")
    until = at("2026-06-01 12:03")
    assert cron.latest_due(at("2016-06-01 00:00"), until, BERLIN) == at("2026-06-01 12:00")
    assert cron.latest_due(at("2026-06-01 12:00"), until, BERLIN) is None
    leap = CronExpression.parse("0 0 29 2 *")
    assert leap.latest_due(at("2000-01-01 00:00"), until, BERLIN) == at("2024-02-29 00:00")
    assert leap.latest_due(at("2024-03-01 00:00"), until, BERLIN) is None
