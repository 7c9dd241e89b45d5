"""Text that code puts together from constants, f-strings and settings, as far as it can be known without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

_SETTING_CALLS = ("getenv", "get", "config", "str", "Field")  # calls whose default stands for them
_MAX_DEPTH = 8


class Constants:
    """The values that names stand for. A name is looked up in its own file first, then in all files by the name alone:
    a setting such as `settings.API_PREFIX` is found without following imports."""

    def __init__(self, trees: Iterable[tuple[str, ast.AST]]) -> None:
        self._local: dict[tuple[str, str], ast.expr] = {}
        self._anywhere: dict[str, ast.expr] = {}
        for file, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef):
                    self._collect_assignments(file, node)

    def resolve_text(self, node: ast.AST | None, file: str, depth: int = 0) -> str | None:
        """The text that an expression makes, None if reading cannot know it."""
        if node is None or depth > _MAX_DEPTH:
            return None
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.Name(id=name):
                return self.resolve_text(self._local.get((file, name)) or self._anywhere.get(name), file, depth + 1)
            case ast.Attribute(attr=name):
                return self.resolve_text(self._anywhere.get(name), file, depth + 1)
            case ast.JoinedStr(values=parts):
                return self._concatenate(parts, file, depth)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._concatenate([left, right], file, depth)
            case ast.FormattedValue(value=value):
                return self.resolve_text(value, file, depth + 1)
            # `os.getenv("X") or "/api"`: the last operand is the default.
            case ast.BoolOp(op=ast.Or(), values=[*_, last]):
                return self.resolve_text(last, file, depth + 1)
            # A setting's default stands for it: what the environment will hold cannot be known here.
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in _SETTING_CALLS:
                default = next((word.value for word in node.keywords if word.arg == "default"), None)
                return self.resolve_text(default or (node.args[-1] if len(node.args) > 1 else None), file, depth + 1)
        return None

    def _concatenate(self, parts: Sequence[ast.expr], file: str, depth: int) -> str | None:
        found = [self.resolve_text(part, file, depth + 1) for part in parts]
        return None if None in found else "".join(part for part in found if part is not None)

    def _collect_assignments(self, file: str, scope: ast.Module | ast.ClassDef) -> None:
        for node in scope.body:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            for target in targets:
                if isinstance(target, ast.Name) and value is not None:
                    # The first assignment counts: reading cannot tell which of several is carried out.
                    if isinstance(scope, ast.Module):
                        self._local.setdefault((file, target.id), value)
                    self._anywhere.setdefault(target.id, value)
