"""What an answer's fields say about keeping it: Cache-Control, Age, dates (RFC 9111 section 5, RFC 9110 section 5.6.7).

Whatever two readers could understand differently is read in the way that keeps less: a freshness that is no number is
no freshness, a date in no form of HTTP is past.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.http.messages import HeaderList

MAX_DELTA = 2**31  # seconds; RFC 9111 section 1.2.2 lets a cache take anything larger for this
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (RFC 9110 section 5.6.2, no secret)
# A member of a list: a name, perhaps with a token or a quoted string. What is neither ends at the next comma.
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_DIRECTIVE = re.compile(rf'\s*({_TOKEN})\s*(?:=(?:({_QUOTED})|({_TOKEN}))?)?[^,"]*(?:{_QUOTED}[^,"]*)*(?:,|\Z)')
_DIGITS = re.compile(r"[0-9]+\Z", re.ASCII)

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = r"(?P<hour>[0-2]\d):(?P<minute>[0-5]\d):(?P<second>[0-6]\d)"
_DATES = tuple(
    re.compile(pattern, re.ASCII | re.IGNORECASE)
    for pattern in (
        # IMF-fixdate, and the two obsolete forms that a recipient must accept: RFC 850's, and asctime's.
        rf"[a-z]{{3}}, (?P<day>\d\d) (?P<month>[a-z]{{3}}) (?P<year>\d{{4}}) {_TIME} GMT",
        rf"[a-z]{{6,9}}, (?P<day>\d\d)-(?P<month>[a-z]{{3}})-(?P<year>\d\d) {_TIME} GMT",
        rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)


def parse_http_date(value: bytes | None, now: float) -> float | None:
    """A date of HTTP as Unix time, or None if it is none. `now` tells the century of a year of two digits."""
    text = (value or b"").decode("latin-1").strip()
    for pattern in _DATES:
        if (found := pattern.fullmatch(text)) is None:
            continue
        month = found["month"].lower()
        if month not in _MONTHS:
            return None
        year = int(found["year"])
        clock = (int(found["hour"]), int(found["minute"]), int(found["second"]))
        place = (_MONTHS.index(month) + 1, int(found["day"]), *clock)
        if year < 100:
            # RFC 9110 section 5.6.7: what would be more than 50 years ahead is past.
            year += 2000
            if timegm((year, *place)) > now + 50 * 366 * 86400:
                year -= 100
        return float(timegm((year, *place)))
    return None


def parse_directives(values: Sequence[bytes]) -> dict[str, str | None]:
    """Directives by their names in lower case; of one that is written twice the first counts (section 4.2.1)."""
    found: dict[str, str | None] = {}
    text = ",".join(value.decode("latin-1") for value in values)
    at = 0
    while at < len(text):
        match = _DIRECTIVE.match(text, at)
        if match is None:
            # No name where one belongs: go on behind the next comma.
            at = text.find(",", at) + 1 or len(text)
            continue
        argument = match[2][1:-1] if match[2] is not None else match[3]
        found.setdefault(match[1].lower(), argument if "=" in match[0] else None)
        at = match.end()
    return found


def parse_delta(text: str | None) -> int | None:
    """Whole seconds, or None if it is no such number (section 1.2.2)."""
    if text is None or _DIGITS.match(text) is None:
        return None
    return min(int(text), MAX_DELTA)


@dataclass(frozen=True, slots=True)
class ResponseDirectives:
    """Cache-Control of an answer. Durations in seconds, None where it says nothing.

    - `must_revalidate`: must-revalidate or proxy-revalidate.
    - `has_freshness`: it says how long it is fresh, or that it never is.
    """

    no_store: bool = False
    no_cache: bool = False
    private: bool = False
    public: bool = False
    must_revalidate: bool = False
    must_understand: bool = False
    s_maxage: int | None = None
    max_age: int | None = None
    stale_while_revalidate: int | None = None
    stale_if_error: int | None = None

    @classmethod
    def from_headers(cls, headers: HeaderList) -> ResponseDirectives:
        said = parse_directives([value for name, value in headers if name.lower() == b"cache-control"])
        if not said:
            return _NOTHING_SAID

        def seconds(name: str) -> int | None:
            # A freshness that cannot be read is none: the answer is stale at once (section 4.2.1).
            return None if name not in said else parse_delta(said[name]) or 0

        return cls(
            "no-store" in said,
            "no-cache"
            in said,  # with field names too: nothing of it may be used unasked, so it is asked about as a whole
            "private" in said,
            "public" in said,
            "must-revalidate" in said or "proxy-revalidate" in said,
            "must-understand" in said,
            seconds("s-maxage"),
            seconds("max-age"),
            seconds("stale-while-revalidate"),
            seconds("stale-if-error"),
        )

    @property
    def has_freshness(self) -> bool:
        return self.no_cache or self.s_maxage is not None or self.max_age is not None


_NOTHING_SAID = ResponseDirectives()


def parse_age(headers: HeaderList) -> int:
    """Age in seconds; 0 if it says nothing or what is no number. Of several the first counts (section 5.1)."""
    for name, value in headers:
        if name.lower() == b"age":
            return parse_delta(value.decode("latin-1").partition(",")[0].strip()) or 0
    return 0
