"""`run`: the gateway, with an app of its own or before one that something else runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path

from proxy.errors import BindError, OutriggerError, PolicyError, UsageError
from proxy.observe.log import Log
from proxy.observe.stdlib import install_stdlib_logging, uninstall_stdlib_logging
from proxy.policy.load import find, load

FAULT = 1
USAGE = 2


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit status. Raises UsageError."""
    option, words = arguments(argv)
    if environ.get("OUTRIGGER", "").lower() == "off":
        from proxy.app.untouched import exec_untouched

        if not words:
            raise UsageError("OUTRIGGER=off starts the app alone, and there is no command after `--`")
        exec_untouched(words, environ)
    try:
        source = find(option, environ, Path.cwd())
        policy = load(source, environ)
    except PolicyError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    if words and policy.app.url is not None:
        raise UsageError("app.url names an app that something else runs, yet there is a command after `--`")
    if not words and policy.app.url is None and policy.app.port == "auto":
        raise UsageError("nothing to front: give the app's start command after `--`, or app.url or app.port")

    from proxy.start import serve

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


def arguments(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The policy option and the app's command. Raises UsageError."""
    option: str | None = None
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            if not rest:
                raise UsageError("there is no command after `--`")
            return option, rest
        if word == "--policy":
            if not rest or rest[0] == "--":
                raise UsageError("--policy needs a file's name")
            option = rest.pop(0)
        elif word.startswith("--policy="):
            option = word.partition("=")[2]
        else:
            raise UsageError(f"`{word}` is not known here; the app's command goes after `--`")
    return option, []


def _run(work: Coroutine[None, None, int]) -> int:
    """On uvloop where it is installed: a third less CPU a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
