"""Which route a request takes: the first of the policy whose path and methods fit."""

from __future__ import annotations

import re

from proxy.ingress import pattern
from proxy.policy.route import DEFAULT_ROUTE, Route


class RouteTable:
    """The routes of a policy, compiled to one regular expression a method.

    Paths are compared as `pattern` describes: in any spelling that some server would take for the same
    path. Where the spellings of one path lead to several routes, the first of these with a limit of any
    sort has it, so that ambiguity never loosens a limit. HEAD goes where GET does; methods are compared in
    capitals, as WSGI and ASGI servers hand them on.
    """

    def __init__(self, routes: tuple[Route, ...]) -> None:
        methods = {method.upper() for route in routes for method in route.match.methods}
        if "GET" in methods:
            methods.add("HEAD")
        self._others = _Choice(routes, None)
        self._by_method = {method: _Choice(routes, method) for method in methods}

    def match(self, method: str, path: str) -> Route:
        """The route of a request; DEFAULT_ROUTE where none fits."""
        if not pattern.is_plain(path):
            return self.reading(method, path)[0]
        choice = self._by_method.get(method)
        if choice is None:
            choice = self._by_method.get(method.upper(), self._others)
        return choice.routes[choice.index(path)]

    def reading(self, method: str, path: str) -> tuple[Route, str]:
        """The route of a request, and the reading of its path that led there."""
        choice = self._by_method.get(method.upper(), self._others)
        ranks = []
        for order, reading in enumerate(pattern.readings(path)):
            index = choice.index(reading)
            ranks.append((not _guards(choice.routes[index]), index, order, reading))
        _, index, _, reading = min(ranks)
        return choice.routes[index], reading


class _Choice:
    """The routes open to one method, None being any that no route names."""

    def __init__(self, routes: tuple[Route, ...], method: str | None) -> None:
        open_to_it = [route for route in routes if _takes(route, method)]
        self.routes = (*open_to_it, DEFAULT_ROUTE)
        # Each alternative ends in an empty group of its own: the last group tells which one it was.
        alternatives = [rf"{pattern.regex(route.match.path)}()\Z" for route in open_to_it]
        self._match = re.compile("|".join([*alternatives, "()"]), pattern.FLAGS).match

    def index(self, path: str) -> int:
        found = self._match(path)
        assert found is not None  # the last alternative fits anything
        return (found.lastindex or 1) - 1


def _takes(route: Route, method: str | None) -> bool:
    methods = {name.upper() for name in route.match.methods}
    return not methods or method in methods or (method == "HEAD" and "GET" in methods)


def _guards(route: Route) -> bool:
    return bool(route.rate_limit or route.concurrency or route.requires_budget)
