"""`man`: the manual page, made of the usage text (man(7)): `outrigger man | man -l -`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from proxy import __version__
from proxy.cli.arguments import parse_arguments
from proxy.cli.output import write_text
from proxy.cli.usage import COMMANDS
from proxy.errors import UsageError

ENVIRONMENT = (
    ("OUTRIGGER", "off: the same start command becomes the app's own, on the public port"),
    ("OUTRIGGER_POLICY", "the policy's file"),
    ("OUTRIGGER_POLICY_TEXT", "the policy itself"),
    ("OUTRIGGER_ADMIN_TOKEN", "opens metrics, status, dashboard and ctl"),
    ("PORT", "the public port, 10000 without it"),
    ("NO_COLOR", "no colours on a terminal"),
)
FILES = (
    ("outrigger.yaml, config/policy.yaml", "the policy, if nothing names another; the first that is there"),
    ("var/outrigger.db", "the ledger, if the policy names no other"),
)
EXIT_STATUS = (
    ("0", "done; of run: a clean end after a signal"),
    ("1", "it did not work: an error that doctor found, a gateway that does not answer, an address that is taken"),
    ("2", "a policy that cannot be taken, or a command line that makes no sense"),
    ("128+N", "of run: signal N ended the app for good; else the app's own status"),
)


def run_manual(argv: Sequence[str], stdout: TextIO) -> int:
    """Exit status 0. Raises UsageError."""
    arguments = parse_arguments("man", argv)
    if arguments.positionals or arguments.remainder:
        raise UsageError("man: it takes no arguments, as in `outrigger man | man -l -`")
    write_text(stdout, format_manual())
    return 0


def format_manual() -> str:
    """The page as troff reads it, for share/man/man1."""
    lines = [
        f'.TH OUTRIGGER 1 "" "outrigger {__version__}" "User Commands"',
        ".SH NAME",
        _escape("outrigger - one process in front of a small web app"),
        ".SH SYNOPSIS",
    ]
    for forms in COMMANDS.values():
        for form, _ in forms:
            lines += [f".B outrigger {_escape(form)}", ".br"]
    lines += [
        ".SH DESCRIPTION",
        _escape(
            "Stands before an app's start command: requests come in through it, the app's calls to OpenAI and its"
            " database connections go out through it. With an empty policy everything behaves as before."
        ),
        ".SH COMMANDS",
    ]
    for forms in COMMANDS.values():
        lines += [line for form, does in forms for line in _entry(form, does)]
    for head, table in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXIT STATUS", EXIT_STATUS)):
        lines += [f".SH {head}", *(line for name, text in table for line in _entry(name, text))]
    lines += [".SH SEE ALSO", _escape("outrigger check --print, the policy with every default; outrigger schema")]
    return "\n".join(lines) + "\n"


def _entry(name: str, text: str) -> list[str]:
    return [".TP", f".B {_escape(name)}", _escape(text)]


def _escape(text: str) -> str:
    """A line of text, in which troff finds nothing to do (groff(7))."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace('"', "\\(dq")
    # A line that begins with a dot or an apostrophe would be a request.
    return f"\\&{text}" if text.startswith((".", "'")) else text
