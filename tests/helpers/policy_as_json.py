"""A policy's text as tools that know no Outrigger read it: numbers, booleans and null as such."""

from __future__ import annotations

import json
import re

from proxy.policy.parsing.nodes import Listing, Node, Scalar, Table


def tree_of(node: Node | None, off: object = "off") -> object:
    """As a converter of YAML to JSON writes it: numbers and null as such, `off` as false where it knows YAML 1.1."""
    if node is None:
        return None
    if isinstance(node, Table):
        return {entry.key: tree_of(entry.value, off) for entry in node.entries}
    if isinstance(node, Listing):
        return [tree_of(item, off) for item in node.items]
    assert isinstance(node, Scalar)
    if node.is_null:
        return None
    words = {"true": True, "false": False, "off": off}
    if node.plain and node.text in words:
        return words[node.text]
    return json.loads(node.text) if node.plain and re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", node.text) else node.text
