"""The policy that a command goes by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from proxy.cli.screen import complain
from proxy.errors import PolicyError
from proxy.policy.load import find, load
from proxy.policy.policy import Policy

UNFIT = 2  # the exit status for a policy that cannot be taken


def taken(option: str | None, environ: Mapping[str, str], stderr: TextIO) -> Policy | None:
    """The policy that `run` would take from here; None where it cannot be, and every reason is told."""
    try:
        return load(find(option, environ, Path.cwd()), environ)
    except PolicyError as error:
        complain(stderr, error)
        return None
