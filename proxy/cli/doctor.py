"""`doctor [--policy FILE] [--slack] [-- COMMAND ARG…]`: tries what the policy names, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY
from proxy.cli.output import Finding, print_findings, print_line, write_text
from proxy.errors import PolicyError, UsageError
from proxy.policy.loading import find_source, load_policy
from proxy.policy.schema import Policy

CHECK_TIMEOUT = 15.0  # seconds for any one check; what it waits for has bounds of its own


def run_doctor(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, 1 if something will not work, 2 for a policy that cannot be taken. Raises UsageError."""
    arguments = parse_arguments("doctor", argv, with_value=("--policy",), flags=("--slack",))
    if arguments.positionals:
        raise UsageError(f"doctor: `{arguments.positionals[0]}` is not known here; an app's command goes after `--`")
    if arguments.remainder == []:
        raise UsageError("doctor: there is no command after `--`")
    words = arguments.remainder or []
    try:
        policy = load_policy(find_source(arguments.last_value("--policy"), environ, Path.cwd()), environ)
    except PolicyError as error:
        faults = [Finding("error", "policy", f"{f.file}:{f.line}: {f.key}: {f.problem}", f.fix) for f in error.faults]
        print_findings(faults, stdout)
        return EXIT_BAD_POLICY
    if words and policy.app.url is not None:
        raise UsageError("doctor: app.url names an app that something else runs, yet there is a command after `--`")
    findings = [Finding("ok", "policy", f"{policy.source} can be taken")]
    findings += [Finding("warning", "policy", warning) for warning in policy.warnings]
    findings += asyncio.run(_run_checks(policy, words, environ, slack="--slack" in arguments.options))
    print_findings(findings, stdout)
    wrong = sum(one.level == "error" for one in findings)
    warned = sum(one.level == "warning" for one in findings)
    style = "bold red" if wrong else "yellow" if warned else "green"
    write_text(stdout, "\n")
    print_line(stdout, f"{_format_count(wrong, 'error')}, {_format_count(warned, 'warning')}", style)
    return 1 if wrong else 0


async def _run_checks(
    policy: Policy, words: Sequence[str], environ: Mapping[str, str], *, slack: bool
) -> list[Finding]:
    # Imported here, since they bring aiohttp and the readers of code: a faulty policy is reported without them.
    from proxy.cli.checks.alert_channels import check_alert_channels
    from proxy.cli.checks.app import check_app
    from proxy.cli.checks.machine import check_machine
    from proxy.cli.checks.ports import check_ports
    from proxy.cli.checks.shared_store import check_shared_store
    from proxy.cli.checks.stores import check_database, check_ledger, check_tasks
    from proxy.cli.checks.upstreams import check_upstreams

    # All at once: each waits for a network most of the time. The order of the findings stays this one.
    found = await asyncio.gather(
        _run_bounded("ports", check_ports(policy, environ)),
        _run_bounded("app", check_app(policy, words, environ, Path.cwd())),
        _run_bounded("database", check_database(policy, environ, Path.cwd())),
        _run_bounded("ledger", check_ledger(policy)),
        _run_bounded("store", check_shared_store(policy)),
        _run_bounded("tasks", check_tasks(policy)),
        _run_bounded("upstreams", check_upstreams(policy, environ, Path.cwd())),
        _run_bounded("alerts", check_alert_channels(policy, post=slack)),
        _run_bounded("machine", check_machine(policy, environ)),
    )
    return [one for each in found for one in each]


async def _run_bounded(subject: str, check: Awaitable[list[Finding]]) -> list[Finding]:
    """One check, which neither waits for ever nor keeps the findings of the others back, whatever it meets."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            return await check
    except TimeoutError:
        return [Finding("error", subject, f"it took longer than {CHECK_TIMEOUT:g} s to look", "try again")]
    except Exception as error:  # the outermost seam of one check
        text = f"it could not be looked at: {type(error).__name__}: {error}"
        return [Finding("error", subject, text, "please report this")]


def _format_count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
