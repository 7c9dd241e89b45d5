"""The policy that a command goes by."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TextIO

from proxy.cli.output import print_error
from proxy.errors import PolicyError
from proxy.policy.loading import find_source
from proxy.policy.loading import load_policy as load
from proxy.policy.schema import Policy

EXIT_BAD_POLICY = 2  # the exit status for a policy that cannot be taken


def load_policy(
    option: str | None, environ: Mapping[str, str], stderr: TextIO, needs: Set[str] | None = None
) -> Policy | None:
    """The policy that `run` would use from here; None if it has faults, and each of them is printed.

    A command that `needs` some keys alone does its work even if variables that other keys name are not set: a shell
    beside the service does not have all of its environment.
    """
    try:
        return load(find_source(option, environ, Path.cwd()), environ, needs)
    except PolicyError as error:
        print_error(stderr, error)
        return None
