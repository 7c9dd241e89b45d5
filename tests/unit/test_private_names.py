"""Private names of a dependency are used at few places, and its version has an upper bound as long as they are.

What is private may be named otherwise in any version: the bound keeps an untried one out, `make oldest` and the tests
of each day try both ends.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# Where private names of others are used, and whose they are. A file that uses none any more may be taken out.
KNOWN = {
    "proxy/postgres/connector.py": ("asyncpg", {"_addr", "_params", "_protocol", "_transport", "_cancel"}),
    "proxy/store/postgres.py": ("asyncpg", {"_protocol"}),
}
STANDARD_LIBRARY = {"_asdict", "_drain_helper"}  # namedtuple's documented method; asyncio's flow control since 3.4
FILES = [file for file in ROOT.glob("proxy/**/*.py") if "_outrigger" not in file.parts]  # hooks: docs/attribution.md


def names_of_ours(trees: list[ast.Module]) -> set[str]:
    """Every name that our own code defines or assigns."""
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


def test_private_names_of_others_are_used_where_it_is_known_and_their_version_is_bounded():
    trees = {file: ast.parse(file.read_text()) for file in FILES}
    ours = names_of_ours(list(trees.values())) | STANDARD_LIBRARY
    used = set()
    for file, tree in trees.items():
        place = str(file.relative_to(ROOT))
        private = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr) and node.attr not in ours
        }
        package, names = KNOWN.get(place, ("", set()))
        assert private <= names, (
            f"{place} uses {private - names}: whose are they? Bound its version, and say it in KNOWN"
        )
        if private:
            used.add(package)
    lines = (re.sub(r"\s*#.*$", "", line).strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    bounds = {one.name: one.specifier for one in map(Requirement, filter(None, lines))}
    assert not [package for package in used if not any(one.operator == "<" for one in bounds[package])]
