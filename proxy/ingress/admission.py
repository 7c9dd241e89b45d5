"""How many requests the app gets at once: by route, and all together."""

from __future__ import annotations

from typing import Literal

Reason = Literal["route_queue_full", "route_wait", "queue_full", "wait", "priority"]

# The queue before an adaptive limit. While the app is quick it takes up bursts; once the app is overloaded
# a long queue would only make everybody late, and a quarter of the limit keeps the app busy.
CALM_QUEUE = 100
QUEUE_WAIT = 10.0

_SAID = {
    "route_queue_full": "This route has its fill of requests, and its queue is full.",
    "route_wait": "This route has its fill of requests, and none ended while this one waited.",
    "queue_full": "The app has its fill of requests, and the queue is full.",
    "wait": "The app has its fill of requests, and none ended while this one waited.",
    "priority": "The app has its fill of requests, and the queue was needed for more important ones.",
}


class Permit:
    """A request's places. `release` belongs in a `finally`; every method may be called again, to no effect."""

    __slots__ = ("_admission", "_calls", "_in_app", "_route", "_since")

    def __init__(self, admission: Admission, route: _RouteGate | None) -> None:
        self._admission = admission
        self._route = route
        self._in_app = route is not None
        self._calls = 0  # outgoing ones that the app waits for
        self._since = admission.clock()

    def head_sent(self) -> None:
        """The answer's head is on its way: what follows is a stream, not the app's work."""
        if self._in_app:
            self._in_app = False
            if not self._calls or not self._admission.adaptive:
                self._admission.app_gives(self._since)
            self._calls = 0

    def release(self) -> None:
        self.head_sent()
        route, self._route = self._route, None
        if route is not None:
            route.gate.give(self._admission.clock() - self._since)

    def sample(self, app_seconds: float) -> None:
        """How long the app itself took over this request, without its outgoing calls.

        For requests that it answered: not for cancelled ones, nor errors, which say nothing of its pace.
        """
        if self._route is not None:
            self._admission.sample(self._route.name, app_seconds)
