"""The windows that money is counted in: hours, days and months of a time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo

from proxy.units import SpendPeriod

PERIODS: tuple[SpendPeriod, ...] = ("h", "d", "month")


class Calendar:
    """Windows follow the wall clock of a time zone, so the day of 23 or 25 hours on which summer time begins or ends is
    one day. Times are seconds since the epoch. Raises ZoneInfoNotFoundError for a zone that is not known."""

    def __init__(self, zone: str) -> None:
        self.zone = zone
        self._zone = _load_zone(zone)

    def window(self, period: SpendPeriod, at: float) -> tuple[float, float]:
        """The window that `at` lies in: its first moment, and that of the next."""
        # Whole seconds: a fraction just below midnight must not be rounded into the next day.
        second = int(at)
        local = datetime.fromtimestamp(second, self._zone)
        if period == "h":
            # By the local minute, since some zones are off by half an hour.
            start = second - local.minute * 60 - local.second
            return float(start), float(start + 3600)
        today = local.date()
        if period == "d":
            return self._midnight(today), self._midnight(today + timedelta(days=1))
        first = today.replace(day=1)
        return self._midnight(first), self._midnight((first + timedelta(days=32)).replace(day=1))

    def format_moment(self, at: float) -> str:
        """A moment as operators read it: to the minute, with the zone's offset from UTC."""
        return datetime.fromtimestamp(int(at), self._zone).isoformat(" ", "minutes")

    def _midnight(self, day: date) -> float:
        # If a zone's clocks skip midnight, fold=0 (PEP 495) counts with the offset before: the very moment of the skip.
        return datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp()


def _load_zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # the one zone that needs no data
    from zoneinfo import ZoneInfo  # 0.2 MiB that few policies need

    return ZoneInfo(name)
