"""Private names of a dependency are used at few places, and its version has an upper bound as long as they are. And
words that only we have for a thing name nothing in tests.

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
# namedtuple's documented method; asyncio's flow control since 3.4; the end of a process without its clean-up.
STANDARD_LIBRARY = {"_asdict", "_drain_helper", "_exit"}
FILES = [
    file
    for file in (ROOT / "outrigger.py", ROOT / "setup.py", *ROOT.glob("proxy/**/*.py"), *ROOT.glob("deploy/**/*.py"))
    if "_outrigger" not in file.parts  # hooks: docs/attribution.md
]
# Words that nobody but us has for a listener, the database pool, a gateway under test, what was reported, a budget …
OWN_WORDS = {"door", "doors", "doorway", "doorways", "house", "told", "desk", "leg", "purse", "pot", "lookout"}
NOT_OURS = ("tests/apps/", "tests/layouts/")  # apps as they are in the wild


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
            elif isinstance(node, ast.arg):
                found.add(node.arg)
    return found


def private_attributes(tree: ast.Module) -> set[str]:
    """Private names that are read or set, by a dot or by getattr and its kind."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                found.add(str(node.args[1].value))
    return {name for name in found if re.match("_[a-z]", name)}


def test_private_names_of_others_are_used_where_it_is_known_and_their_version_is_bounded():
    trees = {file: ast.parse(file.read_text()) for file in FILES}
    ours = names_of_ours(list(trees.values())) | STANDARD_LIBRARY
    used = set()
    for file, tree in trees.items():
        place = str(file.relative_to(ROOT))
        private = private_attributes(tree) - ours
        package, names = KNOWN.get(place, ("", set()))
        assert private <= names, (
            f"{place} uses {private - names}: whose are they? Bound its version, and say it in KNOWN"
        )
        if private:
            used.add(package)
    lines = (re.sub(r"\s*#.*$", "", line).strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    bounds = {one.name: one.specifier for one in map(Requirement, filter(None, lines))}
    assert not [package for package in used if not any(one.operator == "<" for one in bounds[package])]


def test_no_name_in_a_test_is_a_word_that_only_we_have_for_it():
    found = set()
    for file in ROOT.glob("tests/**/*.py"):
        place = str(file.relative_to(ROOT))
        if not place.startswith(NOT_OURS) and "node_modules" not in file.parts:
            found |= {(place, name) for name in names_of_ours([ast.parse(file.read_text())]) & OWN_WORDS}
    assert found == set()
