"""The rooms of the house and who imports whom: read out of the source, checked by `unit/test_house.py`.

`python tests/helpers/import_graph.py` prints the picture of the rooms as a Mermaid graph; with `--write` it puts the
picture into docs/architecture.md, between its markers.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROXY = ROOT / "proxy"
FILES = sorted(PROXY.rglob("*.py"))
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- the house: begin -->\n", "<!-- the house: end -->\n"

# From the top to the ground. A room may import the rooms of the rows below its own; BESIDE has the rooms that may
# import one of their own row.
LAYERS = (
    ("cli", "__main__"),
    ("build", "gateway"),
    ("operations", "admin"),
    ("parts",),
    ("ingress", "egress", "postgres", "app"),
    ("tasks",),
    ("ledger", "store", "observe", "process"),
    ("http", "policy"),
    ("util", "units", "errors"),
)
BESIDE = {"__main__": {"cli"}, "build": {"gateway"}, "ledger": {"observe"}, "store": {"observe"}, "policy": {"http"}}


def module_of(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def room_of(module: str) -> str:
    """The room of a module; empty for the package `proxy` itself."""
    return module.split(".")[1] if "." in module else ""


def imports_of(file: Path) -> set[str]:
    """The modules of the project that a file imports anywhere: at its top, in functions and under TYPE_CHECKING."""
    found = set()
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{parent}.{base}" if base else parent
            if base.split(".")[0] != "proxy":
                continue
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "proxy"}
    return found - {module_of(file), "proxy"}


def allowed_rooms(room: str) -> set[str]:
    """The rooms that a room may import."""
    level = next(level for level, row in enumerate(LAYERS) if room in row)
    below = {other for row in LAYERS[level + 1 :] for other in row}
    return below | {room} | BESIDE.get(room, set())


def find_circles() -> set[frozenset[str]]:
    """Modules that import each other in a circle: strongly connected components of more than one (Tarjan 1972)."""
    # `from package import name`, in a file of that package, is an import of the name's own file, not a circle.
    graph = {
        name: {other for other in imports_of(file) if other in MODULES and not name.startswith(f"{other}.")}
        for name, file in MODULES.items()
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            component = frozenset(stack[at:])
            del stack[at:]
            if len(component) > 1:
                found.add(component)

    for module in graph:
        if module not in index:
            visit(module)
    return found


def room_arrows() -> dict[str, set[str]]:
    """For each room the other rooms that its files import."""
    arrows: dict[str, set[str]] = {room: set() for row in LAYERS for room in row}
    for module, file in MODULES.items():
        if room := room_of(module):
            arrows[room] |= {room_of(other) for other in imports_of(file)} - {room, ""}
    return arrows


def reduce_arrows(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a longer way says already (transitive reduction; the graph has no circle)."""

    def reachable(room: str) -> set[str]:
        return {far for near in arrows[room] for far in {near} | reachable(near)}

    return {
        room: {near for near in targets if not any(near in reachable(other) for other in targets - {near})}
        for room, targets in arrows.items()
    }


def draw_picture() -> str:
    """The rooms, a box for each row, as a Mermaid graph."""
    arrows = reduce_arrows(room_arrows())
    lines = ["```mermaid", "graph TD"]
    for level, row in enumerate(LAYERS):
        rooms = "; ".join(f'{room}["{room}"]' for room in row)
        lines += [f'  subgraph row{level}[" "]', f"    {rooms}", "  end"]
    for row in LAYERS:
        lines += [f"  {room} --> {target}" for room in row for target in sorted(arrows[room])]
    return "\n".join([*lines, "```", ""])


def picture_on_page() -> str:
    """The picture that docs/architecture.md has."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + draw_picture() + END + rest.partition(END)[2])
    else:
        print(draw_picture(), end="")
