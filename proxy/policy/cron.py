"""Cron expressions of five fields, and when they are due in a time zone.

    minute hour day-of-month month day-of-week        "30 2 * * 1-5": 02:30 from Monday to Friday

The fields are those of crontab(5) as `cronsim` reads them: numbers, names of months and days, lists, ranges, steps, and
`L`, `LW` and `MON#2` for last and nth days. If day-of-month and day-of-week are both restricted, either is enough.

Where clocks change, a time of day is skipped or comes twice. What is due then follows Debian's cron:

- hours are named (`30 2 * * *`, also `*/5 2 * * *`): what falls into the skipped hour is due at its end, all of it
  once; in the hour that comes twice it is due the first time alone;
- every hour (the hour field begins with `*`): it goes by real time, so that nothing is due in an hour that there was
  not, and every hour that passes has its turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from proxy.policy.value_types import ValueType

LOOKBACKS = (3600.0, 86400.0, 32 * 86400.0, 367 * 86400.0, 51 * 366 * 86400.0)  # seconds; none is due more rarely


@dataclass(frozen=True, slots=True)
class CronExpression:
    """`text` is the expression as it is written, with one space between its fields."""

    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> CronExpression:
        """Raises ValueError with one clause if the text is no expression, or one that never comes."""
        from cronsim import CronSim, CronSimError  # only who names a schedule has it in memory

        fields = text.split()
        if len(fields) != 5:
            shortcut = " (@daily and its like are not known)" if text.startswith("@") else ""
            raise ValueError(f"it has {len(fields)} field{'' if len(fields) == 1 else 's'} and not five{shortcut}")
        expression = " ".join(fields)
        try:
            next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            raise ValueError(f"its {str(error).removeprefix('Bad ')} cannot be read") from None
        except (StopIteration, RuntimeError, AssertionError):
            raise ValueError("no such day ever comes") from None
        return cls(expression)

    def due_times(self, after: float, timezone: str) -> Iterator[float]:
        """The times after `after` at which it is due, both in Unix seconds, in order and each once; endless."""
        from zoneinfo import ZoneInfo

        from cronsim import CronSim

        zone: tzinfo = UTC if timezone == "UTC" else ZoneInfo(timezone)
        latest = after
        for due in CronSim(_name_hours(self.text), datetime.fromtimestamp(after, zone)):
            at = due.timestamp()
            # In the hour that comes twice the library begins again with its first pass, which is over; and all that
            # falls into the skipped hour comes at one time.
            if at > latest:
                latest = at
                yield at

    def next_due(self, after: float, timezone: str) -> float:
        """The first time after `after` at which it is due, in Unix seconds."""
        return next(self.due_times(after, timezone))

    def latest_due(self, after: float, until: float, timezone: str) -> float | None:
        """The last time in (after, until] at which it was due; None if there is none."""
        # From the near past back: an expression of every minute would have half a million times in a year.
        for lookback in LOOKBACKS:
            start = max(after, until - lookback)
            latest = None
            for due in self.due_times(start, timezone):
                if due > until:
                    break
                latest = due
            if latest is not None or start == after:
                return latest
        return None


def _name_hours(expression: str) -> str:
    """The same expression, in which the minute field does not begin with `*` if the hours are named.

    `cronsim` goes by real time if either field begins with a star; here the hour field alone decides.
    """
    minute, hour, *rest = expression.split()
    if minute.startswith("*") and not hour.startswith("*"):
        minute = "0-59" + minute[1:]
    return " ".join((minute, hour, *rest))


_FIELD = "[0-9A-Za-z*,/#-]+"
CRON = ValueType(
    CronExpression.parse,
    str,
    'five fields such as "0 3 * * *" (minute hour day month weekday)',
    pattern=f" *{_FIELD}( +{_FIELD}){{4}} *",
)
