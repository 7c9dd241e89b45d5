"""`check [FILE] [--print]`: whether a policy can be taken, and what it says with every default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from proxy.cli.arguments import parse
from proxy.cli.load_policy import UNFIT, taken
from proxy.cli.output import complain, styled, write
from proxy.errors import PolicyError, UsageError
from proxy.policy.renderer import render


def check(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0 for a policy that can be taken, 2 for one that cannot. Raises UsageError."""
    line = parse("check", argv, valued=("--policy",), alone=("--print",))
    files = [*line.words, *line.options.get("--policy", ()), *(line.rest or ())]
    if len(files) > 1:
        raise UsageError(f"check: it takes one file, not {len(files)}")
    policy = taken(files[0] if files else None, environ, stderr)
    if policy is None:
        return UNFIT
    from proxy.operations.policy_trial import try_policy  # the parts themselves

    try:
        try_policy(policy, environ)
    except PolicyError as error:
        complain(stderr, error)
        return UNFIT
    for warning in policy.warnings:
        complain(stderr, f"warning: {warning}")
    if "--print" in line.options:
        write(stdout, render(policy))
    else:
        count = len(policy.routes)
        styled(stdout, f"{policy.source}: ok, {count} route{'s' if count != 1 else ''}", "green")
    return 0
