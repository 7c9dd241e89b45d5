"""What stands before the paths of an app's routers: their own prefixes, and those that they are taken in with."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from proxy.cli.detect.constants import Constants

_MAKES = ("APIRouter", "Blueprint", "APIBlueprint", "Router")
_APPS = ("FastAPI", "Flask", "Starlette", "Quart", "Litestar", "Sanic")
_TAKES = ("include_router", "register_blueprint", "mount", "include", "blueprint")
_DEEPEST = 6  # routers within routers
_MOST = 4  # places that a router is taken in at

Router = tuple[str, str]  # its file, and its name there


class Routers:
    """`unread` has a place, FILE:LINE, for each prefix that reading cannot tell."""

    def __init__(self, trees: Sequence[tuple[str, ast.AST]], constants: Constants) -> None:
        self._constants = constants
        self._files = {file for file, _ in trees}
        self._own: dict[Router, str] = {}
        self._imported: dict[Router, Router] = {}  # a name in a file, and what it is elsewhere; "" names a module
        self._within: dict[Router, list[tuple[Router, str, bool]]] = {}
        self.unread: list[str] = []
        for file, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom | ast.Import):
                    self._import(file, node)
        for file, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                    self._make(file, node.targets, node.value)
        for file, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TAKES:
                    self._take(file, node, node.func)

    def prefixes(self, file: str, name: str) -> list[str]:
        """All that may stand before a path of this router; one empty text where nothing does."""
        return list(dict.fromkeys(self._before(self._resolved((file, name)), 0)))[:_MOST] or [""]

    def _before(self, router: Router, depth: int) -> Iterator[str]:
        own = self._own.get(router, "")
        places = self._within.get(router, ())
        if not places or depth > _DEEPEST:
            yield own
            return
        for outer, prefix, replaces in places:
            for before in self._before(outer, depth + 1):
                yield before + prefix + ("" if replaces else own)

    # ── what the files say ───────────────────────────────────────────────────────────────────

    def _make(self, file: str, targets: Sequence[ast.expr], call: ast.Call) -> None:
        made = _dotted(call.func).rpartition(".")[2]
        for target in targets:
            if isinstance(target, ast.Name) and made in (*_MAKES, *_APPS):
                prefix = self._word(file, call, "prefix", "url_prefix") if made in _MAKES else ""
                self._own[file, target.id] = prefix

    def _take(self, file: str, call: ast.Call, func: ast.Attribute) -> None:
        """`outer.include_router(inner, prefix=…)`, `outer.mount("/at", inner)`."""
        outer = self._resolved((file, _dotted(func.value)))
        if func.attr == "mount":
            if len(call.args) < 2 or isinstance(call.args[1], ast.Call):
                return
            inner, prefix = call.args[1], self._constants.text(call.args[0], file) or ""
        elif call.args:
            inner, prefix = call.args[0], self._word(file, call, "prefix", "url_prefix")
        else:
            return
        name = _dotted(inner)
        if name:
            replaces = func.attr == "register_blueprint" and bool(prefix)
            self._within.setdefault(self._resolved((file, name)), []).append((outer, prefix, replaces))

    def _word(self, file: str, call: ast.Call, *names: str) -> str:
        for word in call.keywords:
            if word.arg in names:
                found = self._constants.text(word.value, file)
                if found is None and not (isinstance(word.value, ast.Constant) and word.value.value is None):
                    self.unread.append(f"{file}:{call.lineno}")
                return (found or "").rstrip("/")
        return ""

    def _import(self, file: str, node: ast.ImportFrom | ast.Import) -> None:
        for name in node.names:
            here = (file, name.asname or name.name)
            if isinstance(node, ast.Import):
                if module := self._module(file, name.name, 0):
                    self._imported[here] = (module, "")
                continue
            below = f"{node.module}.{name.name}" if node.module else name.name
            if module := self._module(file, below, node.level):
                self._imported[here] = (module, "")
            elif module := self._module(file, node.module or "", node.level):
                self._imported[here] = (module, name.name)

    def _module(self, file: str, dotted: str, level: int) -> str:
        """The file of a module: relative to this one, or wherever its whole name ends a path."""
        path = dotted.replace(".", "/")
        if level:
            parts = file.split("/")[:-level]
            path = "/".join([*parts, path]) if path else "/".join(parts)
            candidates = [f"{path}.py", f"{path}/__init__.py".lstrip("/")]
            return next((one for one in candidates if one in self._files), "")
        ends = (f"{path}.py", f"{path}/__init__.py")
        return next(
            (one for one in sorted(self._files, key=len) if any(f"/{one}".endswith(f"/{end}") for end in ends)), ""
        )

    def _resolved(self, router: Router) -> Router:
        """Where a router of this name was made."""
        file, name = router
        for _ in range(_DEEPEST):
            if (file, name) in self._own:
                break
            words = name.split(".")
            heads = ((".".join(words[:at]), words[at:]) for at in range(len(words), 0, -1))
            found = next(((there, rest) for head, rest in heads if (there := self._imported.get((file, head)))), None)
            if found is None:
                break
            there, rest = found
            file, name = there[0], ".".join(part for part in (there[1], *rest) if part)
        return file, name


def _dotted(node: ast.AST) -> str:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        names.append(node.id)
    return ".".join(reversed(names))
