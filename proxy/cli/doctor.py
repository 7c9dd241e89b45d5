"""`doctor [--policy FILE] [--slack] [-- COMMAND ARG…]`: tries what the policy names, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from proxy.cli.screen import Finding, show
from proxy.errors import PolicyError, UsageError
from proxy.policy.load import find, load
from proxy.policy.policy import Policy

LONGEST = 15.0  # seconds for any one look, which have bounds of their own
ORDER = {"error": 0, "warning": 1, "ok": 2}


@dataclass
class Wanted:
    policy: str | None = None
    slack: bool = False
    words: list[str] = field(default_factory=list)


def doctor(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, 1 where something will not work, 2 for a policy that cannot be taken. Raises UsageError."""
    wanted = _arguments(argv)
    try:
        policy = load(find(wanted.policy, environ, Path.cwd()), environ)
    except PolicyError as error:
        faults = [Finding("error", "policy", f"{f.file}:{f.line}: {f.key}: {f.problem}", f.mend) for f in error.faults]
        show(faults, stdout)
        return 2
    if wanted.words and policy.app.url is not None:
        raise UsageError("doctor: app.url names an app that something else runs, yet there is a command after `--`")
    findings = [Finding("ok", "policy", f"{policy.source} can be taken")]
    findings += [Finding("warning", "policy", warning) for warning in policy.warnings]
    findings += asyncio.run(_looked(policy, wanted, environ))
    show(findings, stdout)
    wrong = sum(one.level == "error" for one in findings)
    warned = sum(one.level == "warning" for one in findings)
    print(f"\n{_count(wrong, 'error')}, {_count(warned, 'warning')}", file=stdout)
    return 1 if wrong else 0


async def _looked(policy: Policy, wanted: Wanted, environ: Mapping[str, str]) -> list[Finding]:
    from proxy.cli.checks.app import app
    from proxy.cli.checks.machine import machine
    from proxy.cli.checks.ports import ports
    from proxy.cli.checks.stores import database, ledger
    from proxy.cli.checks.upstreams import alerts, upstreams

    found = await asyncio.gather(
        _bounded("ports", ports(policy)),
        _bounded("app", app(policy, wanted.words, environ, Path.cwd())),
        _bounded("database", database(policy, environ)),
        _bounded("ledger", ledger(policy)),
        _bounded("upstreams", upstreams(policy, environ)),
        _bounded("alerts", alerts(policy, post=wanted.slack)),
        _bounded("machine", machine(policy, environ)),
    )
    return [one for each in found for one in each]


async def _bounded(what: str, look: Awaitable[list[Finding]]) -> list[Finding]:
    """Whatever a look meets, the others are still told."""
    try:
        async with asyncio.timeout(LONGEST):
            return await look
    except TimeoutError:
        return [Finding("error", what, f"it took longer than {LONGEST:g} s to look", "try again")]
    except Exception as error:  # the outermost seam of one look
        text = f"it could not be looked at: {type(error).__name__}: {error}"
        return [Finding("error", what, text, "please report this")]


def _arguments(argv: Sequence[str]) -> Wanted:
    wanted = Wanted()
    rest = list(argv)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word == "--" and not equals:
            if not rest:
                raise UsageError("doctor: there is no command after `--`")
            wanted.words = rest
            return wanted
        if word == "--slack" and not equals:
            wanted.slack = True
        elif word == "--policy":
            if not equals:
                if not rest:
                    raise UsageError("doctor: --policy needs a value")
                value = rest.pop(0)
            wanted.policy = value
        else:
            raise UsageError(f"doctor: `{word}` is not known; there are --policy, --slack and -- COMMAND")
    return wanted


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
