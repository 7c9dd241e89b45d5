"""Appends the app's own metrics to ours, so that a scraper has one place to ask.

One line that does not parse would make the scraper reject ours as well, so every line is checked, a few hundred at a
time. Names are kept; a family with our own prefix is left out. Formats: Prometheus text 0.0.4 and OpenMetrics 1.0.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

OWN_PREFIX = "outrigger_"
LINES_PER_TURN = 500  # lines, about 1 ms

_LABEL = r'[a-zA-Z_]\w*\s*=\s*"(?:[^"\\]|\\.)*"'
_NUMBER = r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[iI]nf(?:inity)?|[nN]a[nN])"
_LABELS = rf"\{{\s*(?:{_LABEL}\s*(?:,\s*{_LABEL}\s*)*,?)?\s*\}}"
_SAMPLE = re.compile(rf"([a-zA-Z_:][\w:]*)[ \t]*(?:{_LABELS})?[ \t]*{_NUMBER}(?:[ \t]+-?[\d.]+)?[ \t]*", re.ASCII)
_EXEMPLAR = re.compile(rf" # {_LABELS} {_NUMBER}(?: {_NUMBER})?$", re.ASCII)
_SUFFIX = re.compile(r"_(?:total|created|bucket|sum|count|info)$")
_METADATA = re.compile(r"#[ \t]+(HELP|TYPE|UNIT)[ \t]+([a-zA-Z_:][\w:]*)(?:[ \t]|$)", re.ASCII)


@dataclass(frozen=True, slots=True)
class AppExposition:
    """The app's metrics: `text` without `# EOF`, None if they cannot be had; `openmetrics` is its format. `dropped`
    counts the families that were left out for having our prefix."""

    text: bytes | None
    openmetrics: bool = False
    dropped: int = 0


# Is called with whether OpenMetrics is wanted; gives None if the policy names no metrics of the app.
FetchAppExposition = Callable[[bool], Awaitable[AppExposition | None]]


class InvalidExposition(ValueError):
    """The app's metrics do not parse. The message names the line, never its content."""


async def parse_exposition(body: bytes, *, openmetrics: bool) -> AppExposition:
    """Check what the app answered and make it fit to be appended. Raises InvalidExposition."""
    try:
        lines = body.decode().splitlines()
    except UnicodeDecodeError as error:
        raise InvalidExposition("it is not UTF-8") from error
    kept: list[str] = []
    dropped: set[str] = set()
    for number, line in enumerate(lines, 1):
        if number % LINES_PER_TURN == 0:
            await asyncio.sleep(0)
        # What follows is no part of the exposition; our own EOF comes at the end.
        if openmetrics and line == "# EOF":
            break
        if not line.strip():
            continue
        about = _METADATA.match(line)
        if line.startswith("#"):
            if about is None:
                continue  # a comment; OpenMetrics has none
            name = about[2]
        else:
            sample = _SAMPLE.match(line)
            rest = line[sample.end() :] if sample is not None else line
            if sample is None or (rest and not (openmetrics and _EXEMPLAR.fullmatch(f" {rest.lstrip()}"))):
                raise InvalidExposition(f"its line {number} is no sample")
            name = sample[1]
        if name.startswith(OWN_PREFIX):
            dropped.add(_SUFFIX.sub("", name))  # counted once per family, not per sample
            continue
        kept.append(line)
    text = "\n".join(kept)
    return AppExposition(f"{text}\n".encode() if text else b"", openmetrics, len(dropped))


def app_scrape_metrics(appended: AppExposition) -> bytes:
    """Two metrics of our own about the app's part, present only if the policy names one."""
    return (
        b"# HELP outrigger_app_scrape_success 1 where the app's own metrics are in this scrape, else 0.\n"
        b"# TYPE outrigger_app_scrape_success gauge\n"
        b"outrigger_app_scrape_success %d\n"
        b"# HELP outrigger_app_scrape_dropped Families of the app left out for having a name of ours.\n"
        b"# TYPE outrigger_app_scrape_dropped gauge\n"
        b"outrigger_app_scrape_dropped %d\n"
    ) % (appended.text is not None, appended.dropped)
