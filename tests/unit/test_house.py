"""Who may know whom, and how big a room may get."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "proxy").rglob("*.py"))
MIDDLE = ("ingress", "egress", "postgres", "app", "admin")
BELOW = ("observe", "ledger", "store", "policy")
GROUND = ("errors", "hardening", "problem", "retryafter", "units")
TOP = (
    "outfit",
    "trial",
    "waiting",
    "__main__",
    "cli",
    "start",
    "gateway",
    "actions",
    "facts",
    "lookout",
    "overview",
    "picture",
    "reload",
    "bind",
    "activation",
    "notify",
)
LONGEST = 500  # lines of a file: past that it holds a second noun


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "proxy":
            found |= {f"{node.module}.{name.name}" if node.module == "proxy" else node.module for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "proxy"}
    return {one for one in found if room(one)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_knows_whom_they_may_not(file):
    parts = file.relative_to(ROOT / "proxy").with_suffix("").parts
    mine = parts[0]
    allowed = {mine, *GROUND}
    if mine in TOP or mine == "__init__":
        return
    if mine in MIDDLE:
        allowed |= set(BELOW)
    if mine == "observe":
        allowed |= {"policy"}
    if mine == "ledger":
        allowed |= {"observe", "policy"}
    wrong = {
        one for one in imports(file) if room(one) not in allowed and room(one) not in ("__version__", "__repository__")
    }
    assert not wrong, f"{mine} may not know {sorted(wrong)}"


def test_a_gateway_that_runs_never_loads_what_only_a_terminal_needs():
    users = [file for file in FILES if re.search(r"^\s*(from|import) rich\b", file.read_text(), re.MULTILINE)]
    assert [str(file.relative_to(ROOT)) for file in users] == ["proxy/cli/screen.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_hides_a_second_noun(file):
    assert len(file.read_text().splitlines()) <= LONGEST
