"""Which route a request takes: the first of the policy whose path and methods match.

A path can be read in several ways. A server may decode `%61` before it routes or after, take `//` for `/`, resolve
`/../` or pass it on, treat `%2F` or a backslash as a slash, cut a path at `#` or keep it, and ignore case or a slash at
the end. A router whose expressions end in `$` also takes one newline (`%0A`) after the path for its end. Which of these
the app does is not known here, so a pattern is matched against every reading that differs (`path_readings`): a client
cannot step around a limit by writing a path in another way. The app gets the path as it was sent.

Every match ignores case, repeated slashes, and a slash at the end. Escapes are decoded once, as servers do: `%2561` is
`%61`, not `a`. Matrix parameters (`;x=1`) are part of their segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from proxy.policy.schema import DEFAULT_ROUTE, Route

PATTERN_FLAGS = re.DOTALL | re.IGNORECASE

_UNUSUAL = re.compile(r"[%\\#]|//|/\.{1,2}(?:/|\Z)").search
_ESCAPED_SLASH = re.compile(r"%2[fF]")
_DOTS = re.compile(r"/\.{1,2}(?:/|\Z)")
_SLASHES = re.compile(r"//+")
_GAP = re.compile(r"((?:\*|\{[A-Za-z_][A-Za-z0-9_]*\})+)")


def has_one_reading(path: str) -> bool:
    """Whether a path can be read in one way only: true of nearly all, and cheap to know."""
    return _UNUSUAL(path) is None


def path_readings(path: str) -> tuple[str, ...]:
    """Every way in which a server may read this path, the commonest first."""
    if _UNUSUAL(path) is None:
        return (path,)
    return tuple(dict.fromkeys(_iter_readings(path)))


def _iter_readings(path: str) -> Iterator[str]:
    for spelling in _iter_spellings(path):
        for decoded in _iter_decodings(spelling):
            for ended in (decoded, decoded[:-1]) if decoded.endswith("\n") else (decoded,):
                merged = _SLASHES.sub("/", ended)
                # `/a//../b` is `/b` to a server that merges slashes first, and `/a/b` to one that resolves the dots
                # first.
                if _DOTS.search(merged):
                    yield _remove_dot_segments(merged)
                    yield _SLASHES.sub("/", _remove_dot_segments(ended))
                yield merged


def _iter_spellings(path: str) -> Iterator[str]:
    yield path
    head, mark, _ = path.partition("#")
    if mark:
        yield head
    if "\\" in path:  # as the URL Standard's parser does, which many JavaScript servers use
        yield head.replace("\\", "/")


def _iter_decodings(path: str) -> Iterator[str]:
    decoded = unquote(path)
    yield decoded
    if "\ufffd" in decoded:  # not UTF-8: some servers leave such bytes out (Bottle)
        yield unquote(path, errors="ignore")
    if _ESCAPED_SLASH.search(path):  # some routers split first and decode each segment later
        yield unquote(_ESCAPED_SLASH.sub("%252F", path))


def _remove_dot_segments(path: str) -> str:
    """RFC 3986 section 5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1:] in (["."], [".."]):
        kept.append("")
    return "/" + "/".join(kept)


def compile_pattern(pattern: str, *, capture: bool = False) -> str:
    """The regular expression of a pattern, to be matched with PATTERN_FLAGS and ended by `\\Z`. Matching takes time
    linear in the length of the path, whatever the pattern.

    `*` as a segment stands for one segment that is not empty, within a segment for any run of its characters, and at
    the end of the pattern for everything that follows; `/*` at the end also matches without its slash. `{name}` stands
    for one segment, or a part of one. With `capture` it is a group; the pattern must have it only once.
    """
    path = _SLASHES.sub("/", "/" + unquote(pattern))
    # A `*` at the end crosses slashes, unlike any other.
    if path.endswith("*"):
        stem = path.rstrip("*")
        if stem == "/":
            return ".*"  # `OPTIONS *` too
        if stem.endswith("/"):
            return _compile_segments(stem[:-1], capture) + r"(?:/.*)?"
        return _compile_segments(stem, capture) + ".*"
    return _compile_segments(path.rstrip("/"), capture) + "/?"


def _compile_segments(path: str, capture: bool) -> str:
    return "/".join(_compile_segment(segment, capture) for segment in path.split("/"))


def _compile_segment(segment: str, capture: bool) -> str:
    """One segment's expression: words, and gaps between them that are never tried twice.

    If words follow a gap, the first place where they match is as good as any later one, since what follows has more
    room; so the gap is atomic. The last gap ends where its segment ends. The gap that names the user is as long as
    possible if only a `*` comes after its words: `{user}-*` names `a-b` in `a-b-c`.
    """
    if segment == "*":
        return "[^/]+"
    pieces = _GAP.split(segment)  # words, gap, words, gap, …, words
    out = [re.escape(pieces[0])]
    for index in range(1, len(pieces), 2):
        gap, words = pieces[index], re.escape(pieces[index + 1])
        min_length = gap.count("{")
        named = capture and min_length > 0
        last = index == len(pieces) - 2
        longest = last or (named and index == len(pieces) - 4 and not pieces[-1])
        run = f"[^/]{{{min_length},}}" + ("" if longest else "?")
        run = f"({run})" if named else run
        out.append(f"{run}{words}" if longest else f"(?>{run}{words})")
    return "".join(out)


class RouteTable:
    """The routes of a policy, compiled to one regular expression for each method.

    If the readings of one path lead to several routes, the first of these that has a limit of any sort is taken, so
    that ambiguity never loosens a limit. HEAD is routed like GET. Methods are compared in capitals, as WSGI and ASGI
    servers pass them on.
    """

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._by_name = {route.name: route for route in routes}
        methods = {method.upper() for route in routes for method in route.match.methods}
        if "GET" in methods:
            # RFC 9110 section 9.3.2: HEAD is GET without the body, so it takes the same route.
            methods.add("HEAD")
        self._other_methods = _MethodRoutes(routes, None)
        self._by_method = {method: _MethodRoutes(routes, method) for method in methods}

    def match(self, method: str, path: str) -> Route:
        """The route of a request; DEFAULT_ROUTE if none matches."""
        # One regular expression decides nearly every request; only unusual paths take the slow way.
        if not has_one_reading(path):
            return self.match_reading(method, path)[0]
        choice = self._by_method.get(method)
        if choice is None:
            choice = self._by_method.get(method.upper(), self._other_methods)
        return choice.routes[choice.find_index(path)]

    def named(self, name: str) -> Route | None:
        return self._by_name.get(name)

    def match_reading(self, method: str, path: str) -> tuple[Route, str]:
        """The route of a request, and the reading of its path that led there."""
        choice = self._by_method.get(method.upper(), self._other_methods)
        ranks = []
        for order, reading in enumerate(path_readings(path)):
            index = choice.find_index(reading)
            # Routes with limits come first, then the policy's order, then the commoner reading.
            ranks.append((not _has_limits(choice.routes[index]), index, order, reading))
        _, index, _, reading = min(ranks)
        return choice.routes[index], reading


class _MethodRoutes:
    """The routes that accept one method; None stands for any method that no route names."""

    def __init__(self, routes: tuple[Route, ...], method: str | None) -> None:
        open_to_it = [route for route in routes if _accepts_method(route, method)]
        self.routes = (*open_to_it, DEFAULT_ROUTE)
        # Each alternative ends in an empty group of its own: the last group that matched tells which one it was.
        alternatives = [rf"{compile_pattern(route.match.path)}()\Z" for route in open_to_it]
        self._match = re.compile("|".join([*alternatives, "()"]), PATTERN_FLAGS).match

    def find_index(self, path: str) -> int:
        """Of the route for one reading of a path."""
        found = self._match(path)
        assert found is not None  # the last alternative matches anything
        return (found.lastindex or 1) - 1


def _accepts_method(route: Route, method: str | None) -> bool:
    methods = {name.upper() for name in route.match.methods}
    return not methods or method in methods or (method == "HEAD" and "GET" in methods)


def _has_limits(route: Route) -> bool:
    return bool(route.rate_limit or route.concurrency or route.requires_budget)
