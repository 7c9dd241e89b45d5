"""`doctor [--policy FILE] [--slack] [-- COMMAND ARG…]`: tries what the policy names, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from proxy.cli.arguments import parse
from proxy.cli.load_policy import UNFIT
from proxy.cli.output import Finding, show, styled, write
from proxy.errors import PolicyError, UsageError
from proxy.policy.loading import find, load
from proxy.policy.schema.policy import Policy

LONGEST = 15.0  # seconds for any one look, which have bounds of their own


def doctor(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, 1 where something will not work, 2 for a policy that cannot be taken. Raises UsageError."""
    line = parse("doctor", argv, valued=("--policy",), alone=("--slack",))
    if line.words:
        raise UsageError(f"doctor: `{line.words[0]}` is not known here; an app's command goes after `--`")
    if line.rest == []:
        raise UsageError("doctor: there is no command after `--`")
    words = line.rest or []
    try:
        policy = load(find(line.last("--policy"), environ, Path.cwd()), environ)
    except PolicyError as error:
        faults = [Finding("error", "policy", f"{f.file}:{f.line}: {f.key}: {f.problem}", f.mend) for f in error.faults]
        show(faults, stdout)
        return UNFIT
    if words and policy.app.url is not None:
        raise UsageError("doctor: app.url names an app that something else runs, yet there is a command after `--`")
    findings = [Finding("ok", "policy", f"{policy.source} can be taken")]
    findings += [Finding("warning", "policy", warning) for warning in policy.warnings]
    findings += asyncio.run(_looked(policy, words, environ, slack="--slack" in line.options))
    show(findings, stdout)
    wrong = sum(one.level == "error" for one in findings)
    warned = sum(one.level == "warning" for one in findings)
    style = "bold red" if wrong else "yellow" if warned else "green"
    write(stdout, "\n")
    styled(stdout, f"{_count(wrong, 'error')}, {_count(warned, 'warning')}", style)
    return 1 if wrong else 0


async def _looked(policy: Policy, words: Sequence[str], environ: Mapping[str, str], *, slack: bool) -> list[Finding]:
    from proxy.cli.checks.app import app
    from proxy.cli.checks.machine import machine
    from proxy.cli.checks.ports import ports
    from proxy.cli.checks.stores import database, ledger
    from proxy.cli.checks.upstreams import alerts, upstreams

    found = await asyncio.gather(
        _bounded("ports", ports(policy, environ)),
        _bounded("app", app(policy, words, environ, Path.cwd())),
        _bounded("database", database(policy, environ, Path.cwd())),
        _bounded("ledger", ledger(policy)),
        _bounded("upstreams", upstreams(policy, environ, Path.cwd())),
        _bounded("alerts", alerts(policy, post=slack)),
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
