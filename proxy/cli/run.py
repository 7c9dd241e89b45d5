"""`run`: the gateway, with an app of its own or before one that something else runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from proxy.cli import FORMS
from proxy.cli.arguments import parse
from proxy.cli.load_policy import UNFIT
from proxy.cli.output import complain
from proxy.errors import BindError, OutriggerError, PolicyError, UsageError
from proxy.observe.log import Log
from proxy.observe.logging_bridge import install_stdlib_logging, uninstall_stdlib_logging
from proxy.policy.loading import find, load
from proxy.process.hardening import disable_memory_access

FAULT = 1


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit status. Raises UsageError."""
    line = parse("", argv, valued=("--policy",))
    if line.words:
        nearest = get_close_matches(line.words[0], FORMS, 1)
        mend = f"did you mean {nearest[0]}?" if nearest else "an app's command goes after `--`"
        raise UsageError(f"`{line.words[0]}` is not known here; {mend}")
    if line.rest == []:
        raise UsageError("there is no command after `--`")
    words = line.rest or []
    if environ.get("OUTRIGGER", "").lower() == "off":
        from proxy.app.passthrough import exec_untouched

        if not words:
            raise UsageError("OUTRIGGER=off starts the app alone, and there is no command after `--`")
        exec_untouched(words, environ)
    try:
        source = find(line.last("--policy"), environ, Path.cwd())
        policy = load(source, environ)
        from proxy.operations.policy_trial import try_policy  # the parts themselves, which OUTRIGGER=off does without

        try_policy(policy, environ)
    except PolicyError as error:
        complain(sys.stderr, error)
        return UNFIT
    if words and policy.app.url is not None:
        raise UsageError("app.url names an app that something else runs, yet there is a command after `--`")
    if not words and policy.app.url is None and policy.app.port == "auto":
        raise UsageError("nothing to front: give the app's start command after `--`, or app.url or app.port")

    disable_memory_access()  # before there is an app that could look
    from proxy.build import serve

    log = Log(policy.log, out=sys.stdout.fileno())
    installed = install_stdlib_logging(log)
    try:
        return _run(serve(source, policy, words, environ, log))
    except (BindError, OutriggerError) as error:
        log.emit("gateway.fault", str(error), level="error")
        return FAULT
    finally:
        uninstall_stdlib_logging(installed)
        log.close()


def _run(work: Coroutine[None, None, int]) -> int:
    """On uvloop where it is installed: a third less CPU a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
