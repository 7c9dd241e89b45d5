"""When a price holds: from a day on, or between two times of each day, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

DAY = 86_400


def span_of(since: str | None) -> tuple[float, float] | None:
    """From when on, in wall clock; or the seconds of each day between which it holds."""
    if since is None:
        return None
    if len(since) == 10:
        return datetime.fromisoformat(since).replace(tzinfo=UTC).timestamp(), float("inf")
    begin, end = (int(one[:2]) * 3600 + int(one[3:]) * 60 for one in since.split("-"))
    return float(begin), float(end)


def holds(span: tuple[float, float] | None, at: float) -> bool:
    if span is None:
        return True
    begin, end = span
    if end == float("inf"):
        return at >= begin
    second = at % DAY
    return begin <= second < end if begin <= end else second >= begin or second < end
