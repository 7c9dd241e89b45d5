"""What commands show: with colours and columns on a terminal, plain lines where somebody reads them by a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

Level = Literal["ok", "warning", "error"]
_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `mend` is what to do, empty where there is nothing to do."""

    level: Level
    what: str
    text: str
    mend: str = ""


def show(findings: Sequence[Finding], out: TextIO) -> None:
    """A table; `level  what  text → mend` a line where `out` is no terminal."""
    if out.isatty():
        _table(findings, out)
        return
    wide = max((len(one.what) for one in findings), default=0)
    for one in findings:
        mend = f" → {one.mend}" if one.mend else ""
        write(out, f"{one.level.ljust(7)}  {one.what.ljust(wide)}  {one.text}{mend}\n")


def rows(pairs: Sequence[tuple[str, str]], out: TextIO) -> None:
    """Names and what is to say of them, names in bold on a terminal."""
    width = max(len(name) for name, _ in pairs)
    if not out.isatty():
        for name, text in pairs:
            write(out, f"{name.ljust(width)}  {text}\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, text in pairs:
        table.add_row(Text(name, style="bold cyan"), Text(text))
    Console(file=out, highlight=False).print(table)


def write(out: TextIO, text: str) -> None:
    """A terminal that is not UTF-8 gets escapes."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _table(findings: Sequence[Finding], out: TextIO) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("", "what", "found", "what to do"):
        table.add_column(head, overflow="fold")
    for one in findings:
        style = _COLOURS[one.level]
        table.add_row(Text(one.level, style=style), Text(one.what), Text(one.text), Text(one.mend))
    Console(file=out, highlight=False).print(table)
