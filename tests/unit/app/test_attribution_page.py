"""docs/attribution.md says all that is replaced inside the app, and the code does nothing that the page denies."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from proxy.app.attribution import FOLDER
from proxy.app.attribution._outrigger.import_hooks import HOOKS
from proxy.app.attribution._outrigger.shim import UNHOOKED_MODULES

PAGE = (Path(__file__).parents[3] / "docs" / "attribution.md").read_text(encoding="utf-8")
FILES = sorted(FOLDER.rglob("*.py"))
# What runs inside the app: everything but the package's own file, which the gateway imports.
INSIDE = [file for file in FILES if file != FOLDER / "__init__.py"]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]


def test_every_hooked_module_stands_on_the_page_with_the_name_that_it_is_shown_by():
    rows = {module: shown for shown, modules, *_ in ROWS for module in re.findall(r"`([\w.]+)`", modules)}
    for module, (_, _, shown) in HOOKS.items():
        assert shown in rows[module].split(", "), module


def replaced_functions() -> set[str]:
    """The names that `replace_function` is given, and those that a loop goes over to give it."""
    found: set[str] = set()
    for file in FOLDER.glob("_outrigger/*_*.py"):  # not patching.py, which does the replacing
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "replace_function":
                found |= texts_in(node.args[1])
            elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Tuple):
                found |= texts_in(node.iter)
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "names":
                found |= texts_in(node.value)
    return found


def texts_in(node: ast.expr) -> set[str]:
    items = node.elts if isinstance(node, ast.Tuple) else [node]
    return {one.value for one in items if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def test_every_function_that_is_replaced_stands_on_the_page():
    functions = {
        name.rpartition(".")[2] for row in ROWS for name in re.findall(r"`([\w.]+)`", row[2] if len(row) > 2 else "")
    }
    wanted = {name.removeprefix("_PreparedStatement") for name in replaced_functions()}
    assert len(wanted) > 25
    assert not wanted - functions


def test_what_no_hook_knows_stands_on_the_page():
    left = PAGE.partition("## What it leaves alone")[2].partition("\n## ")[0].lower()
    assert not [name for name in UNHOOKED_MODULES if name.split(".")[0] not in left]


@pytest.mark.parametrize("file", INSIDE, ids=lambda file: file.name)
def test_it_opens_no_file_starts_nothing_and_imports_the_standard_library_alone(file):
    tree = ast.parse(file.read_text())
    allowed = {"__future__", "os", "sys", "contextvars", "_socket", "_outrigger", "sitecustomize"}
    typing_only = {"collections", "types", "typing", "importlib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] in allowed | typing_only
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert name not in {
                "open",
                "exec",
                "eval",
                "compile",
                "system",
                "popen",
                "Popen",
                "fork",
                "connect",
                "__import__",
            }


def test_it_reads_the_four_variables_that_the_page_names_and_no_other():
    text = "\n".join(file.read_text() for file in INSIDE)
    read = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', text))
    named = set(re.findall(r"^\| `(OUTRIGGER_\w+)` \|", PAGE, re.MULTILINE))
    assert read == named == {"OUTRIGGER_EGRESS", "OUTRIGGER_METERED", "OUTRIGGER_POSTGRES", "OUTRIGGER_LINES"}
