"""The paths of Django's URLconfs: `path` and `re_path`, with what `include` puts before them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from proxy.cli.detect.constants import Constants

_MAX_DEPTH = 6


def find_django_paths(
    trees: Sequence[tuple[str, ast.AST]], constants: Constants
) -> Iterator[tuple[str, str, int, str]]:
    """The file, whole path, line and view's name of each entry; a URLconf that another includes begins no path."""
    confs = {file: _parse_urlconf(file, tree, constants) for file, tree in trees if file.endswith("urls.py")}
    included = {at for entries in confs.values() for _, _, at, _ in entries if at}
    for file in confs:
        if not any(_is_module_file(file, module) for module in included):
            yield from _expand_includes(confs, file, "/", 0)


def _expand_includes(
    confs: dict[str, list[tuple[str, int, str, str]]], file: str, before: str, depth: int
) -> Iterator[tuple[str, str, int, str]]:
    for path, line, module, view in confs[file]:
        if not module:
            yield file, before + path, line, view
        # URLconfs may include each other in a circle.
        elif depth < _MAX_DEPTH and (below := next((one for one in confs if _is_module_file(one, module)), None)):
            yield from _expand_includes(confs, below, before + path, depth + 1)


def _parse_urlconf(file: str, tree: ast.AST, constants: Constants) -> list[tuple[str, int, str, str]]:
    """Each entry's path, its line, and either the module that it includes or its view."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) < 2:
            continue
        path = constants.resolve_text(node.args[0], file)
        if path is None or node.func.id not in ("path", "re_path", "url"):
            continue
        if node.func.id != "path":
            # A regular expression is a path if nothing is left in it that only a regular expression can say.
            path = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"<\1>", path).lstrip("^").rstrip("$")
            if re.search(r"[\\()\[\]|+?]", path):
                continue
        to = node.args[1]
        if isinstance(to, ast.Call) and isinstance(to.func, ast.Name) and to.func.id == "include":
            module = constants.resolve_text(to.args[0], file) if to.args else None
            if module:
                found.append((path, node.lineno, module, ""))
        else:
            found.append((path, node.lineno, "", _view_name(to)))
    return found


def _view_name(node: ast.AST) -> str:
    """`views.page`, `Page.as_view()`, `cache_page(60)(page)`."""
    if isinstance(node, ast.Call):
        return _view_name(node.args[0]) if isinstance(node.func, ast.Call) and node.args else _view_name(node.func)
    if isinstance(node, ast.Attribute):
        return _view_name(node.value) if node.attr == "as_view" else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_module_file(file: str, module: str) -> bool:
    return f"/{file}".endswith(f"/{module.replace('.', '/')}.py")
