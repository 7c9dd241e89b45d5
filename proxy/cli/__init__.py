"""The commands: one file each, imported when asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from proxy import __version__
from proxy.errors import UsageError

USAGE = """\
outrigger [run] [--policy FILE] -- COMMAND ARG…   start an app and everything in front of it
outrigger run --policy FILE                       front the app at app.url or app.port
outrigger check [FILE] [--print]                  validate a policy; show it with every default
outrigger explain METHOD PATH [-H 'K: V']…        which route, user, tier and limits a request gets
outrigger init [DIR]                              look at an app, write a policy for it, say how to start it
outrigger doctor [--slack] [-- COMMAND ARG…]      try what the policy names: a table of ok, warning, error
outrigger report [--since 24h] [--by user|model|route] [--csv]   spend, tokens and calls out of the ledger
outrigger ctl ACTION                              act on the running gateway: block USER, unblock USER,
                                                  forgive USER, breaker UPSTREAM open|close|auto, reload, restart-app
outrigger --version
"""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command line; the exit status."""
    first = argv[0] if argv else ""
    if first in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0
    if first == "--version":
        sys.stdout.write(f"outrigger {__version__}\n")
        return 0
    try:
        if first == "check":
            from proxy.cli.check import check

            return check(argv[1:], environ, sys.stdout, sys.stderr)
        if first == "explain":
            from proxy.cli.explain import explain

            return explain(argv[1:], environ, sys.stdout, sys.stderr)
        if first == "doctor":
            from proxy.cli.doctor import doctor

            return doctor(argv[1:], environ, sys.stdout, sys.stderr)
        if first == "init":
            from proxy.cli.init import init

            return init(argv[1:], sys.stdout, sys.stderr)
        if first == "ctl":
            from proxy.cli.ctl import ctl

            return ctl(argv[1:], environ, sys.stdout, sys.stderr)
        if first == "report":
            from proxy.cli.report import report

            return report(argv[1:], environ, sys.stdout, sys.stderr)
        from proxy.cli.run import run

        return run(argv[1:] if first == "run" else argv, environ)
    except UsageError as error:
        sys.stderr.write(f"outrigger: {error}\n\n{USAGE}")
        return 2
