"""The routes of an app, read from its code: which of them call a model, which stream, whose they are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from proxy.cli.looks.folder import Folder

METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
_CALLS = re.compile(
    r"\.(chat\.completions|responses|messages|completions|embeddings|images|audio\.\w+)\.(create|parse|generate|stream)$"
    r"|^litellm\.a?completion$|^(openai\.)?ChatCompletion\.a?create$"
)
_STREAMS = {"StreamingResponse", "EventSourceResponse", "stream_with_context", "StreamingHttpResponse"}
_OUTSIDE = {"requests", "httpx", "aiohttp", "urlopen", "boto3"}
_ROUNDS = 3  # how far a call is followed through the app's own functions
_COMMON = {"get", "post", "create", "run", "main", "call", "close", "send", "open", "read", "write", "execute", "add"}
_EXPRESS = re.compile(r"\b\w+\.(get|post|put|patch|delete)\(\s*(['\"`])(/[^'\"`]*)\2")
_JS_CALLS = re.compile(r"\.(chat\.completions|responses|messages|embeddings|images)\.(create|generate|stream)\(")
_NEXT = re.compile(r"(?:src/)?(?:app/(?P<app>(?:.*/)?)route|pages/(?P<page>api/.*?))\.[jt]s")
_EXPORTED = re.compile(r"^export\s+(?:async\s+function|function|const)\s+(GET|POST|PUT|PATCH|DELETE)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seen:
    """`path` as the framework writes it, `where` FILE:LINE; no `methods`: any."""

    methods: tuple[str, ...]
    path: str
    where: str
    name: str
    model: bool = False
    streams: bool = False
    outside: bool = False  # calls another host

    @property
    def pattern(self) -> str:
        """As a policy writes it."""
        path = re.sub(r"\{[^}]*\}|<[^>]*>|:\w+", "*", self.path)
        return re.sub(r"/{2,}", "/", path) or "/"

    @property
    def varies(self) -> bool:
        """Whether its path has parameters."""
        return "*" in self.pattern


def find_routes(folder: Folder) -> list[Seen]:
    return [*_of_python(folder), *_of_node(folder)]


def _of_python(folder: Folder) -> list[Seen]:
    trees = []
    for name, text in folder.sources(".py"):
        try:
            trees.append((name, ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError):
            continue
    callers = _callers(trees)
    mounted = _mounted(trees)
    found = []
    for name, tree in trees:
        prefixes = _prefixes(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for methods, owner, path in _decorated(node):
                    stem = name.rpartition("/")[2].removesuffix(".py")
                    outer = mounted.get(owner) or mounted.get(f"{stem}.{owner}") or mounted.get(stem) or ""
                    whole = f"{outer}{prefixes.get(owner, '')}{path}" or "/"
                    words = set(_words(node))
                    found.append(
                        Seen(
                            methods,
                            whole,
                            f"{name}:{node.lineno}",
                            node.name,
                            model=(name, node.name) in callers,
                            streams=bool(words & _STREAMS),
                            outside=bool(words & _OUTSIDE),
                        )
                    )
    return found


def _decorated(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[tuple[str, ...], str, str]]:
    for call in node.decorator_list:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
            continue
        path, verb = call.args[0], call.func.attr
        if not isinstance(path, ast.Constant) or not isinstance(path.value, str):
            continue
        owner = _dotted(call.func.value).rpartition(".")[2]
        if verb in METHODS:
            yield (verb.upper(),), owner, path.value
        elif verb in ("route", "api_route"):
            methods = next((word.value for word in call.keywords if word.arg == "methods"), None)
            yield tuple(_strings(methods)) or ("GET",), owner, path.value


def _prefixes(tree: ast.AST) -> dict[str, str]:
    """What a router or blueprint of this file puts before its paths."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            if _dotted(node.value.func).rpartition(".")[2] in ("APIRouter", "Blueprint"):
                prefix = _keyword(node.value, "prefix", "url_prefix")
                for target in node.targets:
                    if isinstance(target, ast.Name) and prefix:
                        found[target.id] = prefix
    return found


def _mounted(trees: Iterable[tuple[str, ast.AST]]) -> dict[str, str]:
    """What an app puts before the paths of a router that it takes in, by the router's name or its module's."""
    found = {}
    for _, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                if node.func.attr in ("include_router", "register_blueprint"):
                    prefix = _keyword(node, "prefix", "url_prefix")
                    name = _dotted(node.args[0])
                    if prefix and name:
                        found[name] = prefix
                        module = name.removesuffix(".router").rpartition(".")[2]
                        found.setdefault(module if name.endswith(".router") else name, prefix)
    return found


def _callers(trees: Sequence[tuple[str, ast.AST]]) -> set[tuple[str, str]]:
    """Functions, each with its file, that call a model, or call one of the app's own that does."""
    called: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    callers: set[tuple[str, str]] = set()
    imported: dict[str, set[str]] = {}
    for file, tree in trees:
        imported[file] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                imported[file] |= {name.name for name in node.names}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = [_dotted(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)]
                plain, dotted = called.setdefault((file, node.name), (set(), set()))
                plain.update(name for name in calls if "." not in name)
                dotted.update(name.rpartition(".")[2] for name in calls if "." in name)
                if any(_CALLS.search(name) for name in calls):
                    callers.add((file, node.name))
    for _ in range(_ROUNDS):
        names = {name for _, name in callers}
        for (file, name), (plain, dotted) in called.items():
            mine = {one for where, one in callers if where == file}
            if plain & (mine | (names & imported[file])) or dotted & (names - _COMMON):
                callers.add((file, name))
    return callers


def _of_node(folder: Folder) -> list[Seen]:
    found = []
    for name, text in folder.sources(".js", ".ts", ".mjs", ".cjs"):
        if by_file := _NEXT.fullmatch(name):
            found.append(_of_next(by_file, name, text))
            continue
        hits = list(_EXPRESS.finditer(text))
        for at, hit in enumerate(hits):
            body = text[hit.end() : hits[at + 1].start() if at + 1 < len(hits) else len(text)]
            line = text.count("\n", 0, hit.start()) + 1
            streams = "text/event-stream" in body
            path = hit[3]
            model = _JS_CALLS.search(body) is not None
            outside = re.search(r"\b(?:fetch|axios(?:\.\w+)?)\(", body) is not None
            seen = Seen((hit[1].upper(),), path, f"{name}:{line}", "", model=model, streams=streams, outside=outside)
            found.append(seen)
    return found


def _of_next(file: re.Match[str], name: str, text: str) -> Seen:
    """A route whose path is its file's (nextjs.org/docs/app/api-reference/file-conventions/route)."""
    path = re.sub(r"\([^)/]*\)/", "", file["app"]) if file["app"] is not None else file["page"].removesuffix("/index")
    path = "/" + re.sub(r"\[+(?:\.\.\.)?([^\]]*)\]+", r"{\1}", path).strip("/")
    methods = tuple(dict.fromkeys(_EXPORTED.findall(text))) if file["app"] is not None else ()
    return Seen(
        methods,
        path,
        f"{name}:1",
        "",
        model=_JS_CALLS.search(text) is not None,
        streams="text/event-stream" in text or "ReadableStream" in text,
    )


def _words(node: ast.AST) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Attribute):
            yield one.attr


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return _dotted(node.func) if isinstance(node, ast.Call) else ""


def _keyword(call: ast.Call, *names: str) -> str:
    for word in call.keywords:
        if word.arg in names and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str):
            return word.value.value
    return ""


def _strings(node: ast.AST | None) -> list[str]:
    items = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else []
    return [one.value.upper() for one in items if isinstance(one, ast.Constant) and isinstance(one.value, str)]
