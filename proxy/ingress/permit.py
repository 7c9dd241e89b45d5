"""What a request holds while the app works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.ingress.gate import Gate

if TYPE_CHECKING:
    from proxy.ingress.admission import Admission


class Permit:
    """A request's places at both gates; for a health probe one of the places that these have.

    `release` belongs in a `finally`. It and `head_sent` may be called again, to no effect.
    """

    __slots__ = ("_admission", "_app", "_calls", "_crowd", "_in_app", "_route", "route_name", "since")

    def __init__(self, admission: Admission, route: Gate | None, app: Gate | None) -> None:
        self._admission = admission
        self._route = route
        self.route_name = route.name if route is not None else ""  # of a probe none
        self._app = app  # until the answer's head is sent
        self._in_app = app is not None  # whether the place there is held now
        self._calls = 0  # outgoing ones of this request that are under way
        self._crowd = app.in_flight if app is not None else 0  # when it began, itself included
        self.since = admission.clock()
        if app is not None and admission.adaptive:
            admission.working[self] = None

    def head_sent(self) -> None:
        """The answer's head is on its way: what still follows is a stream, and no place at the app's gate."""
        app, self._app = self._app, None
        if app is not None and self._in_app:
            self._in_app = False
            self._admission.working.pop(self, None)
            app.give(self._admission.clock() - self.since)

    def release(self) -> None:
        """The exchange is over, or a tunnel from here on."""
        self.head_sent()
        route, self._route = self._route, None
        if route is not None:
            route.give(self._admission.clock() - self.since)

    def call_began(self) -> None:
        """The app waits for an outgoing call: under an adaptive limit that is not its own work."""
        self._calls += 1
        if self._in_app and self._app is not None and self._admission.adaptive:
            self._in_app = False
            self._admission.working.pop(self, None)
            self._app.give()

    def call_ended(self) -> None:
        """The app goes on working, whether there is room or not: it has the request already."""
        self._calls -= 1
        if not self._calls and not self._in_app and self._app is not None:
            self._in_app = True
            self.since = self._admission.clock()  # the call's time was not the app's
            self._admission.working[self] = None
            self._app.in_flight += 1

    def sample(self, app_seconds: float) -> None:
        """How long the app itself took over this request, without its outgoing calls.

        For requests that it answered well: a cancelled one or an error says nothing of its pace.
        """
        if self.route_name:
            self._admission.sample(self.route_name, app_seconds, self._crowd)
