"""`run`: the gateway, with an app of its own or before one that something else runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path

from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY
from proxy.cli.output import print_error
from proxy.cli.usage import COMMANDS
from proxy.errors import BindError, OutriggerError, PolicyError, UsageError
from proxy.observe.log import EventLog
from proxy.observe.logging_bridge import install_stdlib_logging, uninstall_stdlib_logging
from proxy.policy.loading import find_source, load_policy
from proxy.process.hardening import disable_memory_access

EXIT_FAULT = 1


def run_gateway(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run until the gateway has stopped; the exit status. With OUTRIGGER=off this process becomes the app instead.

    Raises UsageError.
    """
    arguments = parse_arguments("", argv, with_value=("--policy",))
    if arguments.positionals:
        from difflib import get_close_matches  # only for who made a mistake

        nearest = get_close_matches(arguments.positionals[0], COMMANDS, 1)
        fix = f"did you mean {nearest[0]}?" if nearest else "an app's command goes after `--`"
        raise UsageError(f"`{arguments.positionals[0]}` is not known here; {fix}")
    if arguments.remainder == []:
        raise UsageError("there is no command after `--`")
    words = arguments.remainder or []
    # Before the policy is read: a policy with a fault must not keep an operator from taking us out.
    if environ.get("OUTRIGGER", "").lower() == "off":
        from proxy.app.passthrough import exec_passthrough

        if not words:
            raise UsageError("OUTRIGGER=off starts the app alone, and there is no command after `--`")
        exec_passthrough(words, environ)
    try:
        source = find_source(arguments.last_value("--policy"), environ, Path.cwd())
        policy = load_policy(source, environ)
        from proxy.operations.policy_trial import try_policy  # the parts themselves, which OUTRIGGER=off does without

        try_policy(policy, environ)
    except PolicyError as error:
        print_error(sys.stderr, error)
        return EXIT_BAD_POLICY
    if words and policy.app.url is not None:
        raise UsageError("app.url names an app that something else runs, yet there is a command after `--`")
    if not words and policy.app.url is None and policy.app.port == "auto":
        raise UsageError("nothing to front: give the app's start command after `--`, or app.url or app.port")

    disable_memory_access()  # before there is an app that could look
    from proxy.build import serve

    # From here on what goes wrong is told by the log, as an operator of a service expects it.
    log = EventLog(policy.log, out=sys.stdout.fileno())
    installed = install_stdlib_logging(log)
    try:
        return _run_event_loop(serve(source, policy, words, environ, log))
    except (BindError, OutriggerError) as error:
        log.emit("gateway.fault", str(error), level="error")
        return EXIT_FAULT
    finally:
        uninstall_stdlib_logging(installed)
        log.close()


def _run_event_loop(work: Coroutine[None, None, int]) -> int:
    """Run the gateway on uvloop if that is installed: it takes a third less CPU a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
