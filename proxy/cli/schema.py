"""`schema`: the policy language as a JSON Schema, for editors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TextIO

from proxy.cli.arguments import parse_arguments
from proxy.cli.output import write_text
from proxy.errors import UsageError
from proxy.policy.json_schema import make_schema
from proxy.policy.key_comments import find_comments, read_reference


def run_schema(argv: Sequence[str], stdout: TextIO) -> int:
    """Exit status 0. Raises UsageError."""
    arguments = parse_arguments("schema", argv)
    if arguments.positionals or arguments.remainder:
        raise UsageError("schema: it takes no arguments; send what it prints into a file")
    write_text(stdout, format_schema())
    return 0


def format_schema() -> str:
    """The schema as `config/outrigger.schema.json` has it."""
    return json.dumps(make_schema(find_comments(read_reference())), indent=2, ensure_ascii=False) + "\n"
