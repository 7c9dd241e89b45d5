"""What commands show: colours and columns on a terminal, plain lines down a pipe.

NO_COLOR (no-color.org) and TERM=dumb switch colours off. rich is imported only if the output is a terminal: it takes
longer than most commands.
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
COLUMN_GAP = "  "  # between figures
MIN_TABLE_WIDTH = 80  # columns; with fewer a finding is a paragraph


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: whether it works, works with a drawback, or will not work.
        subject: what was looked at, as a policy names it if it does.
        text: what was found.
        fix: what to do, empty if there is nothing to do.
    """

    level: Level
    subject: str
    text: str
    fix: str = ""


def print_findings(findings: Sequence[Finding], out: TextIO) -> None:
    """A table; a line `level  subject  text → fix` each if `out` is no terminal."""
    if out.isatty():
        _print_rich(_render_findings(findings, _make_console(out).width), out)
        return
    wide = max((len(one.subject) for one in findings), default=0)
    for one in findings:
        # Names of files and variables come from others, so control characters are made visible (`printable`).
        fix = f" → {one.fix}" if one.fix else ""
        line = f"{one.level.ljust(7)}  {one.subject.ljust(wide)}  {one.text}{fix}"
        write_text(out, f"{printable(line)}\n")


def print_pairs(pairs: Sequence[tuple[str, str]], out: TextIO) -> None:
    """Two columns: names, and a text on each."""
    if not out.isatty():
        width = max(len(name) for name, _ in pairs)
        for name, text in pairs:
            write_text(out, f"{name.ljust(width)}  {printable(text)}\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, text in pairs:
        table.add_row(Text(name, style="bold cyan", no_wrap=True), Text(printable(text), overflow="fold"))
    _print_rich(table, out)


def print_table(
    head: Sequence[str], body: Sequence[Sequence[str]], foot: Sequence[str], spare: Sequence[str], out: TextIO
) -> None:
    """Names with right-aligned figures. If a terminal is too narrow, the columns `spare` go, the first of them first,
    and a line says which; then names are shortened."""
    # Columns go until the rest fits, then the names lose characters; figures are never cut.
    widths = {at: max(len(row[at]) for row in (head, *body, foot)) for at in range(len(head))}
    gone: list[str] = []
    if out.isatty():
        space = _make_console(out).width
        while (surplus := sum(widths.values()) + len(COLUMN_GAP) * (len(widths) - 1) - space) > 0 and len(gone) < len(
            spare
        ):
            gone.append(spare[len(gone)])
            del widths[head.index(gone[-1])]
        # Eight characters of a name stay, so that names can be told apart.
        widths[0] = max(min(widths[0], 8), widths[0] - max(0, surplus))
    rule = ["─" * width for width in widths.values()]
    print_line(out, _format_row(head, widths), "bold")
    print_line(out, COLUMN_GAP.join(rule))
    for row in body:
        print_line(out, _format_row(row, widths), "cyan", first=widths[0])
    print_line(out, COLUMN_GAP.join(rule))
    print_line(out, _format_row(foot, widths), "bold")
    if gone:
        print_line(out, f"Too narrow for: {', '.join(gone)}. --csv has every column.", "dim")


def _format_row(cells: Sequence[str], widths: Mapping[int, int]) -> str:
    first, *rest = ((cells[at], width) for at, width in widths.items())
    name = first[0] if len(first[0]) <= first[1] else f"{first[0][: first[1] - 1]}…"
    return COLUMN_GAP.join([name.ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])


def print_line(out: TextIO, text: str, style: str = "", *, first: int | None = None) -> None:
    """A line, in a style (of its `first` characters alone) if `out` is a terminal. It is never broken, so that it can
    be copied."""
    if not out.isatty() or not style:
        write_text(out, f"{text}\n")
        return
    from rich.text import Text

    shown = Text(text)
    shown.stylize(style, 0, first)
    _print_rich(shown, out, whole=True)


def print_error(err: TextIO, error: object) -> None:
    """Print an error. What stands before the first `: ` of a line, its place, is red on a terminal."""
    for line in str(error).splitlines():
        place, colon, rest = line.partition(": ")
        if err.isatty() and colon:
            from rich.text import Text

            _print_rich(Text.assemble((place + colon, "bold red"), rest), err, whole=True)
        else:
            write_text(err, f"{line}\n")


def write_text(out: TextIO, text: str) -> None:
    """Write text; a terminal that is not UTF-8 gets escapes, which double-quoted YAML understands as well."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _render_findings(findings: Sequence[Finding], width: int) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if width < MIN_TABLE_WIDTH:
        parts: list[RenderableType] = []
        for one in findings:
            parts.append(Text.assemble((one.level, _COLOURS[one.level]), "  ", (one.subject, "bold")))
            text = printable(one.text) + (f"\n→ {printable(one.fix)}" if one.fix else "")
            parts.append(Padding(Text(text, overflow="fold"), (0, 0, 0, 2)))
        return Group(*parts)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    # Folded, never cut: what to do has to be copied whole.
    for head in ("", "what", "found", "what to do"):
        table.add_column(head, overflow="fold")
    for one in findings:
        cells = Text(one.subject), Text(printable(one.text)), Text(printable(one.fix))
        table.add_row(Text(one.level, style=_COLOURS[one.level]), *cells)
    return table


def _print_rich(what: RenderableType, out: TextIO, *, whole: bool = False) -> None:
    # Captured first: rich itself fails on a character that the terminal's encoding lacks.
    console = _make_console(out)
    with console.capture() as captured:
        console.print(what, soft_wrap=whole)
    write_text(out, captured.get())


def _make_console(out: TextIO) -> Console:
    from rich.console import Console

    # Without highlighting, which colours every number and path in a text.
    return Console(file=out, highlight=False)
