"""The commands: one file each, imported when asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from proxy import __version__
from proxy.errors import UsageError

# Each command's forms, and what they do.
FORMS: Mapping[str, Sequence[tuple[str, str]]] = {
    "run": (
        ("[run] [--policy FILE] -- COMMAND ARG…", "start an app and everything in front of it"),
        ("run --policy FILE", "front the app at app.url or app.port"),
    ),
    "check": (("check [FILE] [--print]", "validate a policy; show it with every default"),),
    "explain": (
        ("explain METHOD PATH [-H 'K: V']… [--policy FILE]", "which route, user, tier and limits a request gets"),
    ),
    "init": (("init [DIR]", "look at an app, write a policy for it, say how to start it"),),
    "doctor": (
        (
            "doctor [--policy FILE] [--slack] [-- COMMAND ARG…]",
            "try what the policy names: a table of ok, warning, error",
        ),
    ),
    "suggest": (("suggest [--policy FILE]", "figures for limits, by what the running gateway saw"),),
    "report": (
        (
            "report [--since 24h] [--by user|model|route] [--csv] [--policy FILE]",
            "spend, tokens and calls out of the ledger",
        ),
    ),
    "ctl": tuple(
        (f"ctl {action} [--policy FILE]", does)
        for action, does in (
            ("block|unblock USER", "refuse every request of a user, or no longer"),
            ("forgive USER", "what they spent today counts against their caps no more"),
            ("breaker UPSTREAM open|close|auto", "hold an upstream's breaker, or let it judge again"),
            ("reload", "take the policy as it is now"),
            ("restart-app", "replace the app; requests wait"),
        )
    ),
}


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command line; the exit status."""
    first = argv[0] if argv else ""
    if first in ("-h", "--help", "help"):
        sys.stdout.write(usage(*FORMS) + "\noutrigger --version\n")
        return 0
    if first == "--version":
        sys.stdout.write(f"outrigger {__version__}\n")
        return 0
    command, rest = (first, argv[1:]) if first in FORMS else ("run", argv)
    before = rest[: rest.index("--")] if "--" in rest else rest
    if {"-h", "--help"} & set(before):
        sys.stdout.write(usage(command))
        return 0
    try:
        status = _do(command, rest, environ)
        sys.stdout.flush()
        return status
    except UsageError as error:
        from proxy.cli.output import complain

        complain(sys.stderr, f"outrigger: {error}")
        sys.stderr.write(f"\n{usage(*(FORMS if command != first else [command]))}")
        return 2
    except BrokenPipeError:  # `outrigger report | head -1`; what is left unsaid goes nowhere (docs.python.org, signal)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def usage(*commands: str) -> str:
    """A line for each form of these commands, and what it does below."""
    return "".join(f"outrigger {form}\n    {does}\n" for name in commands for form, does in FORMS[name])


def _do(command: str, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    match command:
        case "check":
            from proxy.cli.check import check

            return check(argv, environ, sys.stdout, sys.stderr)
        case "explain":
            from proxy.cli.explain import explain

            return explain(argv, environ, sys.stdout, sys.stderr)
        case "doctor":
            from proxy.cli.doctor import doctor

            return doctor(argv, environ, sys.stdout, sys.stderr)
        case "init":
            from proxy.cli.init import init

            return init(argv, sys.stdout, sys.stderr)
        case "ctl":
            from proxy.cli.ctl import ctl

            return ctl(argv, environ, sys.stdout, sys.stderr)
        case "suggest":
            from proxy.cli.suggest import suggest

            return suggest(argv, environ, sys.stdout, sys.stderr)
        case "report":
            from proxy.cli.report import report

            return report(argv, environ, sys.stdout, sys.stderr)
        case _:
            from proxy.cli.run import run

            return run(argv, environ)
