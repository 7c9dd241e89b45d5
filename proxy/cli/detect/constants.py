"""Text that code puts together from constants, f-strings and settings, as far as reading alone tells it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

_READS = ("getenv", "get", "config", "str", "Field")  # calls whose default stands for them
_DEEPEST = 8


class Constants:
    """What names stand for: those of a file, and of settings and other files by their names alone."""

    def __init__(self, trees: Iterable[tuple[str, ast.AST]]) -> None:
        self._local: dict[tuple[str, str], ast.expr] = {}
        self._anywhere: dict[str, ast.expr] = {}
        for file, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef):
                    self._take(file, node)

    def text(self, node: ast.AST | None, file: str, depth: int = 0) -> str | None:
        """None where it cannot be told."""
        if node is None or depth > _DEEPEST:
            return None
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.Name(id=name):
                return self.text(self._local.get((file, name)) or self._anywhere.get(name), file, depth + 1)
            case ast.Attribute(attr=name):
                return self.text(self._anywhere.get(name), file, depth + 1)
            case ast.JoinedStr(values=parts):
                return self._joined(parts, file, depth)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._joined([left, right], file, depth)
            case ast.FormattedValue(value=value):
                return self.text(value, file, depth + 1)
            case ast.BoolOp(op=ast.Or(), values=[*_, last]):
                return self.text(last, file, depth + 1)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in _READS:
                default = next((word.value for word in node.keywords if word.arg == "default"), None)
                return self.text(default or (node.args[-1] if len(node.args) > 1 else None), file, depth + 1)
        return None

    def _joined(self, parts: Sequence[ast.expr], file: str, depth: int) -> str | None:
        found = [self.text(part, file, depth + 1) for part in parts]
        return None if None in found else "".join(part for part in found if part is not None)

    def _take(self, file: str, scope: ast.Module | ast.ClassDef) -> None:
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
                    if isinstance(scope, ast.Module):
                        self._local.setdefault((file, target.id), value)
                    self._anywhere.setdefault(target.id, value)
