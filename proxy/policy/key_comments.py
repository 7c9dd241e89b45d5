"""What the policy reference says of each key: the comments of config/reference.yaml, by key.

A comment stands behind its key, or on lines of its own below it. Keys that share a line (`ready: {path: null, …}`)
share its comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import proxy
from proxy.policy.parsing.nodes import Listing, Node, Table
from proxy.policy.parsing.yaml import parse_document

# Names that the policy chooses: what is said of one upstream or alert rule is said of all.
NAMED_BY_THE_POLICY = ("upstreams", "alerts.rules")
PREAMBLE = ""  # the key of what stands above all keys


def read_reference() -> str:
    """The text of the policy reference: beside the package in a checkout, inside it where it was installed (setup.py).

    Raises FileNotFoundError if neither is there.
    """
    package = Path(proxy.__file__).parent
    inside = package / "config" / "reference.yaml"
    return (inside if inside.exists() else package.parent / "config" / "reference.yaml").read_text(encoding="utf-8")


def find_comments(text: str) -> Mapping[str, str]:
    """The comment of each key of a reference, `[]` for any item of a list and `*` for any name; keys without one are
    not in it."""
    lines = text.splitlines()
    found = {PREAMBLE: "\n".join(_comment_lines(lines, 0))}
    root = parse_document(text)
    taken: dict[int, str] = {}  # the comment of each line that a key begins
    for key, line in _keys_of(root, "") if root is not None else ():
        if line not in taken:
            behind = re.search(r"\s#\s+(.*)$", lines[line - 1])
            # What follows on lines of its own belongs to it, down to the next key.
            taken[line] = "\n".join([*([behind[1].rstrip()] if behind else []), *_comment_lines(lines, line)])
        # All items of a list have one key; what is said of the first of them counts.
        found.setdefault(key, taken[line])
    return {key: comment for key, comment in found.items() if comment}


def _comment_lines(lines: list[str], start: int) -> Iterator[str]:
    """The lines of comments from index `start` on, up to the first other line."""
    for line in lines[start:]:
        if not (match := re.match(r"\s*# ?(.*)$", line)):
            return
        yield match[1].rstrip()


def _keys_of(node: Node, key: str) -> Iterator[tuple[str, int]]:
    """The keys that a text has, each with its line, an enclosing one before what it encloses."""
    if isinstance(node, Listing):
        for item in node.items:
            yield from _keys_of(item, f"{key}[]")
    elif isinstance(node, Table):
        for entry in node.entries:
            name = "*" if key in NAMED_BY_THE_POLICY else entry.key
            path = f"{key}.{name}" if key else name
            yield path, entry.line
            yield from _keys_of(entry.value, path)
