"""The command line: `main` finds the command, whose file is imported only then, so that `run` starts quickly."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from proxy import __version__
from proxy.cli.usage import COMMANDS, format_usage
from proxy.errors import UsageError


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command line and return the exit status: 2 for one that makes no sense, else what the command says."""
    first = argv[0] if argv else ""
    if first in ("-h", "--help", "help"):
        sys.stdout.write(format_usage(*COMMANDS) + "\noutrigger --version\n")
        return 0
    if first == "--version":
        sys.stdout.write(f"outrigger {__version__}\n")
        return 0
    # Nothing at all is a question, unless the policy here names an app that runs already. A break-glass is none.
    if not argv and environ.get("OUTRIGGER", "").lower() != "off":
        from proxy.cli.first_use import names_its_app, show_first_use

        if not names_its_app(environ):
            return show_first_use(environ, sys.stdout)
    # Without a command's name it is `run`: `outrigger -- uvicorn …` is what start commands say.
    command, rest = (first, argv[1:]) if first in COMMANDS else ("run", argv)
    # `--help` behind `--` is the app's own option.
    before = rest[: rest.index("--")] if "--" in rest else rest
    if {"-h", "--help"} & set(before):
        sys.stdout.write(format_usage(command))
        return 0
    try:
        status = dispatch_command(command, rest, environ)
        # Flushed here, where a broken pipe is still caught; at the end of the process it would be a traceback.
        sys.stdout.flush()
        return status
    except UsageError as error:
        from proxy.cli.output import print_error

        print_error(sys.stderr, f"outrigger: {error}")
        sys.stderr.write(f"\n{format_usage(*(COMMANDS if command != first else [command]))}")
        return 2
    except BrokenPipeError:  # `outrigger report | head -1`; what is left unsaid goes nowhere (docs.python.org, signal)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        # 128 and the number of SIGINT, as shells report it.
        return 130


def dispatch_command(command: str, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    match command:
        case "check":
            from proxy.cli.check import run_check

            return run_check(argv, environ, sys.stdout, sys.stderr)
        case "schema":
            from proxy.cli.schema import run_schema

            return run_schema(argv, sys.stdout)
        case "explain":
            from proxy.cli.explain import run_explain

            return run_explain(argv, environ, sys.stdout, sys.stderr)
        case "doctor":
            from proxy.cli.doctor import run_doctor

            return run_doctor(argv, environ, sys.stdout, sys.stderr)
        case "completion":
            from proxy.cli.completion import run_completion

            return run_completion(argv, sys.stdout)
        case "man":
            from proxy.cli.manual import run_manual

            return run_manual(argv, sys.stdout)
        case "attribution":
            from proxy.cli.attribution import run_attribution

            return run_attribution(argv, environ, sys.stdout, sys.stderr)
        case "init":
            from proxy.cli.init import run_init

            return run_init(argv, sys.stdout, sys.stderr)
        case "ctl":
            from proxy.cli.ctl import run_ctl

            return run_ctl(argv, environ, sys.stdout, sys.stderr)
        case "suggest":
            from proxy.cli.suggest import run_suggest

            return run_suggest(argv, environ, sys.stdout, sys.stderr)
        case "report":
            from proxy.cli.report import run_report

            return run_report(argv, environ, sys.stdout, sys.stderr)
        case _:
            from proxy.http.aiohttp_loading import load_aiohttp

            load_aiohttp()
            from proxy.cli.run import run_gateway

            return run_gateway(argv, environ)
