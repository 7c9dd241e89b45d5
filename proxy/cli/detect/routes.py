"""The routes of an app, read from its code: their paths and methods, which of them call a model, which stream."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from proxy.cli.detect.constants import Constants
from proxy.cli.detect.django_urls import find_django_paths
from proxy.cli.detect.path_templates import encode_path, is_policy_path, is_valid
from proxy.cli.detect.project_files import Folder
from proxy.cli.detect.router_prefixes import RouterPrefixes
from proxy.policy.value_types import METHOD

# Names of decorators and of `add_…` methods that are a method of HTTP.
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
# Calls of the OpenAI and Anthropic SDKs by their dotted names, LiteLLM's, and openai's from before 1.0.
_MODEL_CALL = re.compile(
    r"\.(chat\.completions|responses|messages|completions|embeddings|images|audio\.\w+)\.(create|parse|generate|stream)$"
    r"|^litellm\.a?completion$|^(openai\.)?ChatCompletion\.a?create$"
)
# What a function that streams makes or calls: Starlette, sse-starlette, Flask, Django.
_STREAMING_CLASSES = {"StreamingResponse", "EventSourceResponse", "stream_with_context", "StreamingHttpResponse"}
_STREAMING_TYPES = ("text/event-stream", "application/x-ndjson", "multipart/x-mixed-replace")
# Names that tell of a call to another host; a probe should not ask a route that makes one.
_HTTP_CLIENTS = {"requests", "httpx", "aiohttp", "urlopen", "boto3"}
_CALL_DEPTH = 3  # how far a call is followed through the app's own functions
# Too common to say whose method it is: a call of `x.get` does not lead to every `get` that calls a model.
_COMMON_METHODS = {
    "get",
    "post",
    "create",
    "run",
    "main",
    "call",
    "close",
    "send",
    "open",
    "read",
    "write",
    "execute",
    "add",
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# app.get("/x", …) and router.post(`/x`, …).
_EXPRESS_ROUTE = re.compile(r"\b\w+\.(get|post|put|patch|delete)\(\s*(['\"`])(/[^'\"`]*)\2")
_JS_MODEL_CALL = re.compile(r"\.(chat\.completions|responses|messages|embeddings|images)\.(create|generate|stream)\(")
# Route handlers of the App Router and API routes of the Pages Router, whose paths are those of their files.
_NEXT_ROUTE_FILE = re.compile(r"(?:src/)?(?:app/(?P<app>(?:.*/)?)route|pages/(?P<page>api/.*?))\.[jt]s")
_EXPORTED_METHOD = re.compile(
    r"^export\s+(?:async\s+function|function|const)\s+(GET|POST|PUT|PATCH|DELETE)\b", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class AppRoute:
    """A route of the app.

    Attributes:
        methods: none means any.
        path: as the framework writes it, with its parameters.
        location: FILE:LINE.
        name: the function's, empty if it has none.
        calls_model: whether its function calls a model, or a function that does.
        streams: whether it answers with a stream.
        calls_outside: whether it uses an HTTP client.
    """

    methods: tuple[str, ...]
    path: str
    location: str
    name: str
    calls_model: bool = False
    streams: bool = False
    calls_outside: bool = False

    @property
    def pattern(self) -> str:
        """As a policy writes it."""
        path = re.sub(r"\{[^}]*\}|<[^>]*>|:\w+", "*", self.path)
        return re.sub(r"/{2,}", "/", path) or "/"

    @property
    def has_parameters(self) -> bool:
        """Whether its path has parameters."""
        return "*" in self.pattern


def find_routes(folder: Folder) -> tuple[list[AppRoute], list[str]]:
    """The routes, and a sentence on what could not be read."""
    found, notes = _find_python_routes(folder)
    return [
        spelled for one in (*found, *_find_node_routes(folder)) if (spelled := _normalize_route(one)) is not None
    ], notes


def _normalize_route(one: AppRoute) -> AppRoute | None:
    """As a policy can say it."""
    path = encode_path(one.path)
    methods = tuple(method for method in one.methods if is_valid(METHOD, method))
    if path is None or len(methods) < len(one.methods):
        return None
    spelled = replace(one, path=path)
    return spelled if is_policy_path(spelled.pattern) else None


def _find_python_routes(folder: Folder) -> tuple[list[AppRoute], list[str]]:
    trees, broken = [], []
    for name, text in folder.source_files(".py"):
        try:
            trees.append((name, ast.parse(text.lstrip("\ufeff"))))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            broken.append(name)
    # Constants and routers are read of all files first: a prefix may be written in one and used in another.
    callers = _find_model_callers(trees)
    constants = Constants(trees)
    routers = RouterPrefixes(trees, constants)
    # By name alone, since a handler is often registered in another file than its own.
    functions = {node.name: node for _, tree in trees for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)}
    found: list[AppRoute] = []
    unread: list[str] = []

    def see(methods: tuple[str, ...], path: str, where: str, name: str, file: str, node: ast.AST | None) -> None:
        words = set(_names_in(node)) if node is not None else set()
        model = (file, name) in callers or (node is not None and (where.partition(":")[0], name) in callers)
        marks = {"streams": bool(words & _STREAMING_CLASSES), "calls_outside": bool(words & _HTTP_CLIENTS)}
        found.append(AppRoute(methods, path or "/", where, name, calls_model=model, **marks))

    for file, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, _FUNCTIONS):
                for methods, owner, given in _decorator_routes(node):
                    path = constants.resolve_text(given, file)
                    if path is None:
                        unread.append(f"{file}:{node.lineno}")
                        continue
                    for prefix in routers.prefixes_of(file, owner):
                        see(methods, prefix + path, f"{file}:{node.lineno}", node.name, file, node)
            elif isinstance(node, ast.Call) and (added := _registered_route(node)) is not None:
                methods, owner, given, handler = added
                path = constants.resolve_text(given, file)
                if path is None or not path.startswith("/"):
                    continue
                for prefix in routers.prefixes_of(file, owner):
                    see(methods, prefix + path, f"{file}:{node.lineno}", handler, file, functions.get(handler))
    names = {name for _, name in callers}
    for file, path, line, view in find_django_paths(trees, constants):
        words = set(_names_in(functions[view])) if view in functions else set()
        marks = {
            "streams": bool(words & _STREAMING_CLASSES),
            "calls_outside": bool(words & _HTTP_CLIENTS),
            "calls_model": view in names,
        }
        found.append(AppRoute((), path, f"{file}:{line}", view, **marks))
    notes = []
    if places := [*dict.fromkeys([*routers.unread, *unread])]:
        notes.append(
            f"what stands before or in paths at {_list_places(places)} is not in its text: see `routes` for these"
        )
    if broken:
        notes.append(f"{_list_places(broken)} could not be read as Python, so nothing of it is known")
    return found, notes


def _list_places(places: Sequence[str]) -> str:
    return ", ".join(places[:5]) + (" and more" if len(places) > 5 else "")


def _decorator_routes(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[tuple[str, ...], str, ast.expr]]:
    for call in node.decorator_list:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        path = call.args[0] if call.args else next((word.value for word in call.keywords if word.arg == "path"), None)
        verb = call.func.attr
        if path is None or not isinstance(path, ast.Constant | ast.JoinedStr | ast.BinOp | ast.Name | ast.Attribute):
            continue
        # `@mock.patch("a.b")` looks like a route for PATCH but for its text.
        if isinstance(path, ast.Constant) and not (isinstance(path.value, str) and path.value[:1] in ("", "/")):
            continue
        owner = _dotted_call_name(call.func.value)
        if verb in METHODS:
            yield (verb.upper(),), owner, path
        elif verb in ("route", "api_route"):
            methods = next((word.value for word in call.keywords if word.arg == "methods"), None)
            yield tuple(_method_names(methods)) or ("GET",), owner, path


def _registered_route(call: ast.Call) -> tuple[tuple[str, ...], str, ast.expr, str] | None:
    """`app.add_api_route("/x", handler)`, `Route("/x", handler)`, `web.get("/x", handler)`: its methods, whose it is,
    its path and its handler's name."""
    name = _dotted_call_name(call.func).rpartition(".")[2]
    methods = tuple(_method_names(next((word.value for word in call.keywords if word.arg == "methods"), None)))
    words = {word.arg: word.value for word in call.keywords}
    if name in ("add_api_route", "add_url_rule", "Route") and call.args:
        view = words.get("view_func") or words.get("endpoint") or (call.args[-1] if len(call.args) > 1 else None)
        owner = _dotted_call_name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        return methods, owner, call.args[0], _dotted_call_name(view).rpartition(".")[2] if view is not None else ""
    made = name.removeprefix("add_")
    if made in METHODS and len(call.args) == 2 and isinstance(call.func, ast.Attribute):
        on = _dotted_call_name(call.func.value)
        # aiohttp's forms alone: `requests.get(url, params)` has two arguments as well.
        if on == "web" or on.endswith("router"):
            return (made.upper(),), "", call.args[0], _dotted_call_name(call.args[1]).rpartition(".")[2]
    return None


def _find_model_callers(trees: Sequence[tuple[str, ast.AST]]) -> set[tuple[str, str]]:
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
                calls = [_dotted_call_name(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)]
                plain, dotted = called.setdefault((file, node.name), (set(), set()))
                plain.update(name for name in calls if "." not in name)
                dotted.update(name.rpartition(".")[2] for name in calls if "." in name)
                if any(_MODEL_CALL.search(name) for name in calls):
                    callers.add((file, node.name))
    # Each round adds the callers of those found so far; a name counts if it is of the same file or imported into it.
    for _ in range(_CALL_DEPTH):
        names = {name for _, name in callers}
        for (file, name), (plain, dotted) in called.items():
            mine = {one for where, one in callers if where == file}
            if plain & (mine | (names & imported[file])) or dotted & (names - _COMMON_METHODS):
                callers.add((file, name))
    return callers


def _find_node_routes(folder: Folder) -> list[AppRoute]:
    found = []
    for name, text in folder.source_files(".js", ".ts", ".mjs", ".cjs"):
        if by_file := _NEXT_ROUTE_FILE.fullmatch(name):
            found.append(_next_route(by_file, name, text))
            continue
        hits = list(_EXPRESS_ROUTE.finditer(text))
        for at, hit in enumerate(hits):
            # Handlers stand behind their path, so what is up to the next route is taken for this one's.
            body = text[hit.end() : hits[at + 1].start() if at + 1 < len(hits) else len(text)]
            line = text.count("\n", 0, hit.start()) + 1
            streams = "text/event-stream" in body or re.search(r"\bres(?:ponse)?\.write\(", body) is not None
            path = hit[3]
            model = _JS_MODEL_CALL.search(body) is not None
            outside = re.search(r"\b(?:fetch|axios(?:\.\w+)?)\(", body) is not None
            seen = AppRoute(
                (hit[1].upper(),), path, f"{name}:{line}", "", calls_model=model, streams=streams, calls_outside=outside
            )
            found.append(seen)
    return found


def _next_route(file: re.Match[str], name: str, text: str) -> AppRoute:
    """A route whose path is its file's (nextjs.org/docs/app/api-reference/file-conventions/route)."""
    path = re.sub(r"\([^)/]*\)/", "", file["app"]) if file["app"] is not None else file["page"].removesuffix("/index")
    path = "/" + re.sub(r"\[+(?:\.\.\.)?([^\]]*)\]+", r"{\1}", path).strip("/")
    methods = tuple(dict.fromkeys(_EXPORTED_METHOD.findall(text))) if file["app"] is not None else ()
    return AppRoute(
        methods,
        path,
        f"{name}:1",
        "",
        calls_model=_JS_MODEL_CALL.search(text) is not None,
        streams="text/event-stream" in text or "ReadableStream" in text,
    )


def _names_in(node: ast.AST) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Attribute):
            yield one.attr
        elif isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value.startswith(_STREAMING_TYPES):
            yield "StreamingResponse"  # Flask's Response(generator, mimetype="text/event-stream")


def _dotted_call_name(node: ast.AST) -> str:
    names: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return ".".join(["", *reversed(names)]) if names else ""
    return ".".join([node.id, *reversed(names)])


def _method_names(node: ast.AST | None) -> list[str]:
    items = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else []
    return [one.value.upper() for one in items if isinstance(one, ast.Constant) and isinstance(one.value, str)]
