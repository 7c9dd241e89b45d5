"""The cache of the routes, made when a policy first names one: without it none of its modules is loaded (1 MiB)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.policy.schema import Route

if TYPE_CHECKING:
    from proxy.ingress.cache.response_cache import ResponseCache


class ResponseCacheSwitch:
    """`cache` is None until a route has one. `make` is called at most once."""

    def __init__(self, make: Callable[[], ResponseCache]) -> None:
        self._make = make
        self.cache: ResponseCache | None = None

    def apply(self, routes: tuple[Route, ...]) -> None:
        """Take over the routes of a policy."""
        if self.cache is None and any(route.cache is not None for route in routes):
            self.cache = self._make()
        if self.cache is not None:
            self.cache.apply(routes)

    def close(self) -> None:
        """End what goes on while nobody waits."""
        if self.cache is not None:
            self.cache.close()
