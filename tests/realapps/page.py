"""Writes what was seen into docs/realapps.md."""

from __future__ import annotations

import json
from pathlib import Path

BEGIN, END = "<!-- realapps: written by `make realapps` -->\n", "<!-- realapps ends -->"
MARK = {"same": "same", "better": "**better**", "worse": "**worse**"}
HEAD = ("app", "what", "verdict", "direct → behind the gateway")


def write(page: Path, place: Path, names: list[str]) -> None:
    """The rows of every app that was ever run here, in the catalogue's order."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for name in names:
        file = place / name / "seen.json"
        if not file.exists():
            continue
        seen = json.loads(file.read_text())
        label = f"**{name}**: {seen['versions']}"
        for what, verdict in seen["verdicts"].items():
            rows.append((label, what, MARK[verdict["word"]], verdict["said"].replace("|", "\\|")))
            label = ""
    before, _, rest = page.read_text().partition(BEGIN)
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
