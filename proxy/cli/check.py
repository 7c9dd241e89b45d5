"""`check [FILE] [--print] [--running]`: whether a policy can be taken, what it says with every default, and what it
would change in the gateway that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY, load_policy
from proxy.cli.output import print_error, print_line, write_text
from proxy.errors import PolicyError, UsageError
from proxy.policy.renderer import render_policy


def run_check(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0 for a policy that can be taken, 2 for one that cannot. Raises UsageError."""
    arguments = parse_arguments("check", argv, with_value=("--policy",), flags=("--print", "--running"))
    running = "--running" in arguments.options
    files = [*arguments.positionals, *(arguments.remainder or ())]
    named = arguments.options.get("--policy", [])
    # `--policy` names the file too; with --running, beside a file, what the gateway runs with.
    if not (running and files):
        files += named
    if len(files) > 1 or len(named) > 1:
        raise UsageError(f"check: it takes one file, not {len({*files, *named})}")
    policy = load_policy(files[0] if files else None, environ, stderr)
    if policy is None:
        return EXIT_BAD_POLICY
    # Loading finds what is wrong with the text; some values are refused only by the parts that use them.
    from proxy.operations.policy_trial import try_policy  # the parts themselves

    try:
        try_policy(policy, environ)
    except PolicyError as error:
        print_error(stderr, error)
        return EXIT_BAD_POLICY
    for warning in policy.warnings:
        print_error(stderr, f"warning: {warning}")
    if running:
        from proxy.cli.check_running import report_effects

        return report_effects(policy, named[-1] if named else None, environ, stdout, stderr)
    if "--print" in arguments.options:
        write_text(stdout, render_policy(policy))
    else:
        count = len(policy.routes)
        print_line(stdout, f"{policy.source}: ok, {count} route{'s' if count != 1 else ''}", "green")
    return 0
