"""The rule of the layers: who may know whom, and that nothing goes round in a circle.

Imports under TYPE_CHECKING count: what a file has to know to be read is the same, whether it is loaded or not.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROXY = ROOT / "proxy"
FILES = sorted(PROXY.rglob("*.py"))

# From the top to the ground. A room may know the rooms of the rows below its own; where rooms of one row may know
# each other, BESIDE says so.
LAYERS = (
    ("cli", "__main__"),
    ("build", "gateway"),
    ("operations", "admin"),
    ("parts",),
    ("ingress", "egress", "postgres", "app"),
    ("ledger", "observe", "process"),
    ("http", "policy"),
    ("util", "units", "errors"),
)
BESIDE = {"ledger": {"observe"}, "__main__": {"cli"}, "errors": set()}
FLAT = {"build", "gateway"}
# What is still to be cut; each line that goes is a step.
KNOWN_CIRCLES = {
    frozenset(f"proxy.egress.{one}" for one in ["retry", "upstream"]),
}


def module_of(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> set[str]:
    """The modules of the project that a file names anywhere, functions and TYPE_CHECKING included."""
    found = set()
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{up}.{base}" if base else up
            if base.split(".")[0] != "proxy":
                continue
            for name in node.names:
                one = f"{base}.{name.name}"
                found.add(one if one in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "proxy"}
    return found - {module_of(file), "proxy"}


def allowed_rooms(mine: str) -> set[str]:
    level = next(at for at, row in enumerate(LAYERS) if mine in row)
    below = {one for row in LAYERS[level + 1 :] for one in row}
    return below | {mine} | BESIDE.get(mine, set()) | (FLAT if mine in FLAT else set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_room_knows_one_above_it(file):
    mine = room(module_of(file))
    if not mine:
        return
    wrong = {one for one in imports(file) if room(one) and room(one) not in allowed_rooms(mine)}
    assert not wrong, f"{mine} may not know {sorted(wrong)}"


def circles() -> set[frozenset[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    # `from package import name` of a package that only hands names on is an import of the package, not a circle of
    # the files in it.
    graph = {
        name: {one for one in imports(file) if one in MODULES and not name.startswith(f"{one}.")}
        for name, file in MODULES.items()
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(one: str) -> None:
        index[one] = low[one] = len(index)
        stack.append(one)
        for other in graph[one]:
            if other not in index:
                visit(other)
                low[one] = min(low[one], low[other])
            elif other in stack:
                low[one] = min(low[one], index[other])
        if low[one] == index[one]:
            at = stack.index(one)
            part = frozenset(stack[at:])
            del stack[at:]
            if len(part) > 1:
                found.add(part)

    for one in graph:
        if one not in index:
            visit(one)
    return found


def test_no_imports_go_round_in_a_circle():
    new = {one for one in circles() if not any(one <= known for known in KNOWN_CIRCLES)}
    assert not new, "\n".join(" <-> ".join(sorted(one)) for one in new)


def test_a_gateway_that_runs_never_loads_what_only_a_terminal_needs():
    users = [file for file in FILES if re.search(r"^\s*(from|import) rich\b", file.read_text(), re.MULTILINE)]
    assert [str(file.relative_to(ROOT)) for file in users] == ["proxy/cli/output.py"]
