"""`check [FILE] [--print]`: whether a policy can be taken, and what it says with every default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from proxy.errors import PolicyError
from proxy.policy.load import find, load
from proxy.policy.render import render

USAGE = "usage: check [FILE] [--print]"


def check(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0 for a policy that can be taken, 2 for one that cannot or a line that makes no sense."""
    options = {argument for argument in argv if argument.startswith("-")}
    files = [argument for argument in argv if not argument.startswith("-")]
    if options & {"-h", "--help"}:
        print(USAGE, file=stdout)
        return 0
    if options - {"--print"} or len(files) > 1:
        wrong = ", ".join(sorted(options - {"--print"})) or f"{len(files)} files"
        print(f"check: it does not take {wrong}; {USAGE}", file=stderr)
        return 2
    try:
        policy = load(find(files[0] if files else None, environ, Path.cwd()), environ)
    except PolicyError as error:
        print(error, file=stderr)
        return 2
    for warning in policy.warnings:
        print(f"warning: {warning}", file=stderr)
    if "--print" in options:
        stdout.write(render(policy))
    else:
        count = len(policy.routes)
        print(f"{policy.source}: ok, {count} route{'s' if count != 1 else ''}", file=stdout)
    return 0
