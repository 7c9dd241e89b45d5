"""The policy that a command goes by."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TextIO

from proxy.cli.output import complain
from proxy.errors import PolicyError
from proxy.policy.loading import find, load
from proxy.policy.schema.policy import Policy

UNFIT = 2  # the exit status for a policy that cannot be taken


def taken(
    option: str | None, environ: Mapping[str, str], stderr: TextIO, needs: Set[str] | None = None
) -> Policy | None:
    """The policy that `run` would take from here; None where it cannot be, and every reason is told. A command that
    `needs` some keys alone is not kept from its work by variables that others name: a shell beside the service has
    not all of its environment."""
    try:
        return load(find(option, environ, Path.cwd()), environ, needs)
    except PolicyError as error:
        complain(stderr, error)
        return None
