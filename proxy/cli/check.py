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
        _line(stdout, USAGE)
        return 0
    if options - {"--print"} or len(files) > 1:
        wrong = ", ".join(sorted(options - {"--print"})) or f"{len(files)} files"
        _line(stderr, f"check: it does not take {wrong}; {USAGE}")
        return 2
    try:
        policy = load(find(files[0] if files else None, environ, Path.cwd()), environ)
    except PolicyError as error:
        _line(stderr, error)
        return 2
    for warning in policy.warnings:
        _line(stderr, f"warning: {warning}")
    if "--print" in options:
        _write(stdout, render(policy))
    else:
        count = len(policy.routes)
        _line(stdout, f"{policy.source}: ok, {count} route{'s' if count != 1 else ''}")
    return 0


def _line(stream: TextIO, text: object) -> None:
    _write(stream, f"{text}\n")


def _write(stream: TextIO, text: str) -> None:
    # A terminal that is not UTF-8 gets escapes, which double-quoted YAML understands as well.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
