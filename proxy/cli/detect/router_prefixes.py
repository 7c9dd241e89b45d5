"""The prefixes of an app's routers: each router's own, and those that it is included with."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from proxy.cli.detect.constants import Constants

# Classes that make a router, which may have a prefix of its own, and those that make the app, which has none.
_ROUTER_CLASSES = ("APIRouter", "Blueprint", "APIBlueprint", "Router")
_APP_CLASSES = ("FastAPI", "Flask", "Starlette", "Quart", "Litestar", "Sanic")
# Methods by which an app or a router includes another one.
_INCLUDE_METHODS = ("include_router", "register_blueprint", "mount", "include", "blueprint")
_MAX_DEPTH = 6  # routers within routers
_MAX_PREFIXES = 4  # places that one router is included at

RouterKey = tuple[str, str]  # its file, and its name there


class RouterPrefixes:
    """Which router is included where. `unread` names the place, FILE:LINE, of each prefix that reading cannot know."""

    def __init__(self, trees: Sequence[tuple[str, ast.AST]], constants: Constants) -> None:
        self._constants = constants
        self._files = {file for file, _ in trees}
        self._own_prefixes: dict[RouterKey, str] = {}
        self._imported: dict[RouterKey, RouterKey] = {}  # a name in a file, and what it is elsewhere; "" names a module
        self._inclusions: dict[RouterKey, list[tuple[RouterKey, str, bool]]] = {}
        self.unread: list[str] = []
        # Three passes, each over all files: imports name routers, routers have prefixes, inclusions join them.
        for file, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom | ast.Import):
                    self._record_import(file, node)
        for file, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                    self._record_router(file, node.targets, node.value)
        for file, tree in trees:
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in _INCLUDE_METHODS
                ):
                    self._record_inclusion(file, node, node.func)

    def prefixes_of(self, file: str, name: str) -> list[str]:
        """All prefixes that a path of this router may have; one empty text if it has none."""
        return list(dict.fromkeys(self._expand_prefixes(self._resolve_router((file, name)), 0)))[:_MAX_PREFIXES] or [""]

    def _expand_prefixes(self, router: RouterKey, depth: int) -> Iterator[str]:
        own = self._own_prefixes.get(router, "")
        places = self._inclusions.get(router, ())
        if not places or depth > _MAX_DEPTH:
            yield own
            return
        for outer, prefix, replaces in places:
            for before in self._expand_prefixes(outer, depth + 1):
                yield before + prefix + ("" if replaces else own)

    # ── what the files say ───────────────────────────────────────────────────────────────────

    def _record_router(self, file: str, targets: Sequence[ast.expr], call: ast.Call) -> None:
        made = _dotted_name(call.func).rpartition(".")[2]
        for target in targets:
            if isinstance(target, ast.Name) and made in (*_ROUTER_CLASSES, *_APP_CLASSES):
                prefix = self._read_prefix(file, call, "prefix", "url_prefix") if made in _ROUTER_CLASSES else ""
                self._own_prefixes[file, target.id] = prefix

    def _record_inclusion(self, file: str, call: ast.Call, func: ast.Attribute) -> None:
        """`outer.include_router(inner, prefix=…)`, `outer.mount("/at", inner)`."""
        outer = self._resolve_router((file, _dotted_name(func.value)))
        if func.attr == "mount":
            # An app that is made in place, such as StaticFiles(…), has no routes to find.
            if len(call.args) < 2 or isinstance(call.args[1], ast.Call):
                return
            inner, prefix = call.args[1], self._constants.resolve_text(call.args[0], file) or ""
        elif call.args:
            inner, prefix = call.args[0], self._read_prefix(file, call, "prefix", "url_prefix")
        else:
            return
        name = _dotted_name(inner)
        if name:
            # Flask's url_prefix at the registration replaces the blueprint's own; FastAPI's prefix comes before it.
            replaces = func.attr == "register_blueprint" and bool(prefix)
            self._inclusions.setdefault(self._resolve_router((file, name)), []).append((outer, prefix, replaces))

    def _read_prefix(self, file: str, call: ast.Call, *names: str) -> str:
        for word in call.keywords:
            if word.arg in names:
                found = self._constants.resolve_text(word.value, file)
                if found is None and not (isinstance(word.value, ast.Constant) and word.value.value is None):
                    self.unread.append(f"{file}:{call.lineno}")
                return (found or "").rstrip("/")
        return ""

    def _record_import(self, file: str, node: ast.ImportFrom | ast.Import) -> None:
        for name in node.names:
            here = (file, name.asname or name.name)
            if isinstance(node, ast.Import):
                if module := self._find_module_file(file, name.name, 0):
                    self._imported[here] = (module, "")
                continue
            below = f"{node.module}.{name.name}" if node.module else name.name
            if module := self._find_module_file(file, below, node.level):
                self._imported[here] = (module, "")
            elif module := self._find_module_file(file, node.module or "", node.level):
                self._imported[here] = (module, name.name)

    def _find_module_file(self, file: str, dotted: str, level: int) -> str:
        """The file of a module: relative to this one, or wherever its whole name ends a path."""
        path = dotted.replace(".", "/")
        if level:
            parts = file.split("/")[:-level]
            path = "/".join([*parts, path]) if path else "/".join(parts)
            candidates = [f"{path}.py", f"{path}/__init__.py".lstrip("/")]
            return next((one for one in candidates if one in self._files), "")
        # Which folder imports begin in is not known, so any path that ends so counts, the shortest first.
        ends = (f"{path}.py", f"{path}/__init__.py")
        return next(
            (one for one in sorted(self._files, key=len) if any(f"/{one}".endswith(f"/{end}") for end in ends)), ""
        )

    def _resolve_router(self, router: RouterKey) -> RouterKey:
        """Where a router of this name was made."""
        file, name = router
        # A name may be imported from a file that imports it itself; a circle ends at the bound.
        for _ in range(_MAX_DEPTH):
            if (file, name) in self._own_prefixes:
                break
            words = name.split(".")
            heads = ((".".join(words[:at]), words[at:]) for at in range(len(words), 0, -1))
            found = next(((there, rest) for head, rest in heads if (there := self._imported.get((file, head)))), None)
            if found is None:
                break
            there, rest = found
            file, name = there[0], ".".join(part for part in (there[1], *rest) if part)
        return file, name


def _dotted_name(node: ast.AST) -> str:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        names.append(node.id)
    return ".".join(reversed(names))
