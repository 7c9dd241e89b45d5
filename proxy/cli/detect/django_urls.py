"""The paths of Django's URLconfs: `path` and `re_path`, with what `include` puts before them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from proxy.cli.detect.constants import Constants

_DEEPEST = 6


def find_paths(trees: Sequence[tuple[str, ast.AST]], constants: Constants) -> Iterator[tuple[str, str, int, str]]:
    """Of each its file, whole path, line and view's name."""
    confs = {file: _entries(file, tree, constants) for file, tree in trees if file.endswith("urls.py")}
    included = {at for entries in confs.values() for _, _, at, _ in entries if at}
    for file in confs:
        if not any(_is(file, module) for module in included):
            yield from _walk(confs, file, "/", 0)


def _walk(
    confs: dict[str, list[tuple[str, int, str, str]]], file: str, before: str, depth: int
) -> Iterator[tuple[str, str, int, str]]:
    for path, line, module, view in confs[file]:
        if not module:
            yield file, before + path, line, view
        elif depth < _DEEPEST and (below := next((one for one in confs if _is(one, module)), None)):
            yield from _walk(confs, below, before + path, depth + 1)


def _entries(file: str, tree: ast.AST, constants: Constants) -> list[tuple[str, int, str, str]]:
    """The path, the line, the module that is included, the view."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) < 2:
            continue
        path = constants.text(node.args[0], file)
        if path is None or node.func.id not in ("path", "re_path", "url"):
            continue
        if node.func.id != "path":
            path = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"<\1>", path).lstrip("^").rstrip("$")
            if re.search(r"[\\()\[\]|+?]", path):
                continue
        to = node.args[1]
        if isinstance(to, ast.Call) and isinstance(to.func, ast.Name) and to.func.id == "include":
            module = constants.text(to.args[0], file) if to.args else None
            if module:
                found.append((path, node.lineno, module, ""))
        else:
            found.append((path, node.lineno, "", _view(to)))
    return found


def _view(node: ast.AST) -> str:
    """`views.page`, `Page.as_view()`, `cache_page(60)(page)`."""
    if isinstance(node, ast.Call):
        return _view(node.args[0]) if isinstance(node.func, ast.Call) and node.args else _view(node.func)
    if isinstance(node, ast.Attribute):
        return _view(node.value) if node.attr == "as_view" else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is(file: str, module: str) -> bool:
    return f"/{file}".endswith(f"/{module.replace('.', '/')}.py")
