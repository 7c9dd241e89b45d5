"""`make incidents`: plays every incident (ONLY='money flood': those) at the shipped settings, and writes what was seen
into deploy/INCIDENTS.md."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from incidents import INCIDENTS, Incident, Report, play

PAGE = Path(__file__).parents[2] / "deploy" / "INCIDENTS.md"
BEGIN, END = "<!-- incidents: written by `make incidents` -->\n", "<!-- incidents ends -->"
AT_ONCE = 4  # they mostly wait
PATIENCE = 480.0  # seconds; rules look back five minutes at most
HEAD = ("fault", "what users saw meanwhile", "alert after", "what it said", "health", "all clear after")


async def main(names: list[str]) -> int:
    chosen = [one for one in INCIDENTS if not names or one.name in names]
    gate = asyncio.Semaphore(AT_ONCE)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        found = await asyncio.gather(*(_one(one, Path(folder) / one.name, gate) for one in chosen))
    reports = [one for one in found if one is not None]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    known = {row.partition("](")[0]: row for row in rest.partition(END)[0].splitlines(keepends=True)[2:]}
    known |= {_key(report.incident): table([report]).splitlines(keepends=True)[2] for report in reports}
    rows = [known[_key(one)] for one in INCIDENTS if _key(one) in known]
    PAGE.write_text(f"{before}{BEGIN}{table([])}{''.join(rows)}{END}{rest.partition(END)[2]}")
    print(table(reports))
    return 0 if len(reports) == len(chosen) else 1


def _key(incident: Incident) -> str:
    return f"| [{incident.title}"


async def _one(incident: Incident, folder: Path, gate: asyncio.Semaphore) -> Report | None:
    async with gate:
        print(f"{incident.name} …", flush=True)
        try:
            report = await play(incident, folder, patience=PATIENCE)
        except (AssertionError, OSError, RuntimeError) as error:  # a fault that was not made on purpose
            print(f"{incident.name}: {error!r}", file=sys.stderr, flush=True)
            return None
    report.alert = report.alert.replace(f"{folder}/", "")
    print(f"{incident.name}: alert after {_seconds(report.alert_after)}, clear after {_seconds(report.clear_after)}")
    return report


def table(reports: list[Report]) -> str:
    rows = [HEAD, ("---",) * len(HEAD), *(_row(report) for report in reports)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(report: Report) -> tuple[str, ...]:
    incident = report.incident
    alert = report.alert.replace("|", "\\|")
    parts = "; ".join(f"{part}: {reason}" for part, reason in report.parts.items())
    seen = ", ".join(f"{count} × {_answer(name)}" for name, count in report.seen.items()) or "nothing yet"
    return (
        f"[{incident.title}](#{incident.page})",
        f"{seen}; slowest {_seconds(report.slowest)}",
        _seconds(report.alert_after),
        alert,
        f"{report.status}{': ' if parts else ''}{parts}".replace("|", "\\|"),
        _seconds(report.clear_after),
    )


def _answer(name: str) -> str:
    return {"200 fallback": "200 with the fallback's text"}.get(name, name)


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
