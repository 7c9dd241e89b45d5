"""What commands show on a terminal, on a narrow one, without colours, and down a pipe."""

from __future__ import annotations

import io
import re

import pytest

from proxy.cli.explain import run_explain
from proxy.cli.output import Finding, print_error, print_findings, print_line, print_pairs, print_table

SGR = re.compile(r"\x1b\[([0-9;]*)m")
FINDINGS = [
    Finding("ok", "policy", "p.yaml can be taken"),
    Finding("error", "listen.admin", "127.0.0.1:9901 is taken by another process", "stop that one"),
]
HEAD = ("user", "calls", "errors", "of it cached", "cost $")
BODY = [("ada", "1", "0", "40", "0.001500"), ("somebody-with-a-long-name", "12", "1", "0", "2.000000")]
FOOT = ("total", "13", "1", "40", "2.001500")
SPARE = ("of it cached", "errors")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def plain(self) -> str:
        return SGR.sub("", self.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def everything(out: io.StringIO) -> None:
    print_findings(FINDINGS, out)
    print_pairs([("route", "default: /* fits"), ("caps", "none")], out)
    print_table(HEAD, BODY, FOOT, SPARE, out)
    print_line(out, "Wrote outrigger.yaml", "green")
    print_error(out, "p.yaml:1: aap: there is no such key; did you mean app?")


def test_a_pipe_gets_plain_lines_that_a_tool_can_cut() -> None:
    out = io.StringIO()
    everything(out)
    assert "\x1b" not in out.getvalue()
    lines = out.getvalue().splitlines()
    assert lines[:4] == [
        "ok       policy        p.yaml can be taken",
        "error    listen.admin  127.0.0.1:9901 is taken by another process → stop that one",
        "route  default: /* fits",
        "caps   none",
    ]
    assert lines[6].split() == ["ada", "1", "0", "40", "0.001500"]
    assert lines[-2:] == ["Wrote outrigger.yaml", "p.yaml:1: aap: there is no such key; did you mean app?"]


def test_a_terminal_gets_the_same_words_in_colours(terminal: Terminal) -> None:
    everything(terminal)
    assert {"1;31", "32", "36"} <= set(SGR.findall(terminal.getvalue()))  # bold red, green, cyan
    words = terminal.plain.split()
    piped = io.StringIO()
    everything(piped)
    assert {word for word in piped.getvalue().split() if word.isalnum()} <= set(words)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_colours_gets_none(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    everything(terminal)
    codes = {int(code) for found in SGR.findall(terminal.getvalue()) for code in found.split(";") if code}
    assert not [code for code in codes if 30 <= code <= 49 or code >= 90]


@pytest.mark.parametrize("width", [30, 44, 60, 79, 120])
def test_tables_keep_to_the_width_of_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_findings(FINDINGS, terminal)
    print_pairs([("route", "made: /api/user/*/make for POST fits, the path read as /api/user/7/make")], terminal)
    print_table(HEAD, BODY, FOOT, SPARE, terminal)
    lines = [line for line in terminal.plain.splitlines() if not line.startswith("Too narrow for")]
    assert max(map(len, lines)) <= width
    assert "2.001500" in terminal.plain  # money is never left out
    assert "stop that one" in " ".join(terminal.plain.split())


@pytest.mark.parametrize(
    ("width", "said"),
    [(120, None), (50, "Too narrow for: of it cached."), (30, "Too narrow for: of it cached, errors.")],
)
def test_columns_that_find_no_place_are_named(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: int, said: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(HEAD, BODY, FOOT, SPARE, terminal)
    last = terminal.plain.splitlines()[-1]
    assert last.startswith(said) if said else "Too narrow" not in terminal.plain
    assert ("errors" in terminal.plain.splitlines()[0]) == (width > 30)


def test_a_command_to_copy_is_never_broken(terminal: Terminal) -> None:
    line = "    .outrigger/bin/outrigger -- 'uvicorn main:app --host 0.0.0.0 --port $PORT'  " + "x" * 200
    print_line(terminal, line, "cyan")
    assert terminal.plain == f"{line}\n"


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_what_others_named_cannot_colour_or_clear_the_terminal(out: type[io.StringIO]) -> None:
    stream = out()
    print_pairs([("request", "GET /\x1b[2J\r\u202e")], stream)
    print_findings([Finding("warning", "loopback", "a\x1b[2J.py:1: x", "y\x07")], stream)
    assert not re.search(r"\x1b\[2J|\r|\u202e|\x07", stream.getvalue())


def test_a_terminal_that_is_not_utf_8_gets_escapes() -> None:
    class Ascii(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    out = Ascii(io.BytesIO(), encoding="ascii", write_through=True)
    everything(out)  # type: ignore[arg-type]
    assert b"stop that one" in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_explain_looks_the_same_for_a_tool_and_for_people(terminal: Terminal) -> None:
    piped = io.StringIO()
    for out in (terminal, piped):
        assert run_explain(["GET", "/"], {"OUTRIGGER_POLICY_TEXT": "version: 1"}, out, io.StringIO()) == 0
    assert terminal.plain.split() == piped.getvalue().split()
