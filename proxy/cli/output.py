"""What commands show: with colours and columns on a terminal, plain lines where somebody reads them by a pipe.

Colours go where NO_COLOR (no-color.org) or TERM=dumb asks for none. rich is loaded for a terminal alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

from proxy.observe.log_format import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Level = Literal["ok", "warning", "error"]
_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}
GAP = "  "  # between figures
NARROW = 80  # columns; with fewer a finding is a paragraph


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
        _print(_findings(findings, _console(out).width), out)
        return
    wide = max((len(one.what) for one in findings), default=0)
    for one in findings:
        mend = f" → {one.mend}" if one.mend else ""
        line = f"{one.level.ljust(7)}  {one.what.ljust(wide)}  {one.text}{mend}"
        write(out, f"{printable(line)}\n")


def rows(pairs: Sequence[tuple[str, str]], out: TextIO) -> None:
    """Names and what is to say of them."""
    if not out.isatty():
        width = max(len(name) for name, _ in pairs)
        for name, text in pairs:
            write(out, f"{name.ljust(width)}  {printable(text)}\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, text in pairs:
        table.add_row(Text(name, style="bold cyan", no_wrap=True), Text(printable(text), overflow="fold"))
    _print(table, out)


def figures(
    head: Sequence[str], body: Sequence[Sequence[str]], foot: Sequence[str], spare: Sequence[str], out: TextIO
) -> None:
    """Names with figures, right-aligned. Where a terminal is too narrow the columns `spare` go, the first of them
    first, and a line says which; then names are shortened."""
    widths = {at: max(len(row[at]) for row in (head, *body, foot)) for at in range(len(head))}
    gone: list[str] = []
    if out.isatty():
        space = _console(out).width
        while (surplus := sum(widths.values()) + len(GAP) * (len(widths) - 1) - space) > 0 and len(gone) < len(spare):
            gone.append(spare[len(gone)])
            del widths[head.index(gone[-1])]
        widths[0] = max(min(widths[0], 8), widths[0] - max(0, surplus))
    rule = ["─" * width for width in widths.values()]
    styled(out, _row(head, widths), "bold")
    styled(out, GAP.join(rule))
    for row in body:
        styled(out, _row(row, widths), "cyan", first=widths[0])
    styled(out, GAP.join(rule))
    styled(out, _row(foot, widths), "bold")
    if gone:
        styled(out, f"Too narrow for: {', '.join(gone)}. --csv has every column.", "dim")


def _row(cells: Sequence[str], widths: Mapping[int, int]) -> str:
    first, *rest = ((cells[at], width) for at, width in widths.items())
    name = first[0] if len(first[0]) <= first[1] else f"{first[0][: first[1] - 1]}…"
    return GAP.join([name.ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])


def styled(out: TextIO, text: str, style: str = "", *, first: int | None = None) -> None:
    """A line, in a style (of its `first` characters alone) where `out` is a terminal; it is never broken, so that it
    can be copied."""
    if not out.isatty() or not style:
        write(out, f"{text}\n")
        return
    from rich.text import Text

    shown = Text(text)
    shown.stylize(style, 0, first)
    _print(shown, out, whole=True)


def complain(err: TextIO, error: object) -> None:
    """What went wrong, each line with its place before the first `: `."""
    for line in str(error).splitlines():
        place, colon, rest = line.partition(": ")
        if err.isatty() and colon:
            from rich.text import Text

            _print(Text.assemble((place + colon, "bold red"), rest), err, whole=True)
        else:
            write(err, f"{line}\n")


def write(out: TextIO, text: str) -> None:
    """A terminal that is not UTF-8 gets escapes, which double-quoted YAML understands as well."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _findings(findings: Sequence[Finding], width: int) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if width < NARROW:
        parts: list[RenderableType] = []
        for one in findings:
            parts.append(Text.assemble((one.level, _COLOURS[one.level]), "  ", (one.what, "bold")))
            text = printable(one.text) + (f"\n→ {printable(one.mend)}" if one.mend else "")
            parts.append(Padding(Text(text, overflow="fold"), (0, 0, 0, 2)))
        return Group(*parts)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("", "what", "found", "what to do"):
        table.add_column(head, overflow="fold")
    for one in findings:
        cells = Text(one.what), Text(printable(one.text)), Text(printable(one.mend))
        table.add_row(Text(one.level, style=_COLOURS[one.level]), *cells)
    return table


def _print(what: RenderableType, out: TextIO, *, whole: bool = False) -> None:
    console = _console(out)
    with console.capture() as captured:
        console.print(what, soft_wrap=whole)
    write(out, captured.get())


def _console(out: TextIO) -> Console:
    from rich.console import Console

    return Console(file=out, highlight=False)
