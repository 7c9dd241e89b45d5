"""What a request holds while the app works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.ingress.gate import Gate

if TYPE_CHECKING:
    from proxy.ingress.admission import Admission
    from proxy.ingress.gradient import Trial


class Permit:
    """A request's places at both gates; for a health probe one of the places that these have.

    `release` belongs in a `finally`. It and `head_sent` may be called again, to no effect.
    """

    __slots__ = (
        "_admission",
        "_answered",
        "_app",
        "_began",
        "_called",
        "_calls",
        "_crowd",
        "_in_app",
        "_outside",
        "_route",
        "_trial",
        "crowd",
        "route_name",
        "since",
    )

    def __init__(self, admission: Admission, route: Gate | None, app: Gate | None) -> None:
        self._admission = admission
        self._route = route
        self.route_name = route.name if route is not None else ""  # of a probe none
        self.crowd = route.in_flight if route is not None else 0  # of its route when it got its place, itself included
        self._app = app  # until the answer's head is sent
        self._in_app = app is not None  # whether the place there is held now
        self._calls = 0  # outgoing ones of this request that are under way
        self._called = 0.0  # since when there are some
        self._outside = 0.0  # seconds with one at least
        self._crowd = app.in_flight if app is not None else 0  # when it began, itself included
        self.since = self._began = admission.clock()
        self._trial: Trial | None = None
        self._answered: float | None = None  # seconds of the app's own
        if app is not None and admission.adaptive:
            admission.working[self] = None
            self._trial = admission.trial()
            if self._trial is not None:
                self._trial.enters(self.since)

    def head_sent(self) -> None:
        """The answer's head is on its way: what still follows is a stream, and no place at the app's gate."""
        app, self._app = self._app, None
        if app is not None and self._in_app:
            self._leave()
            app.give(self._admission.clock() - self.since)
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.ends(self._answered, self._admission.clock() - self._began - self._time_outside())

    def release(self) -> None:
        """The exchange is over, or a tunnel from here on."""
        self.head_sent()
        route, self._route = self._route, None
        if route is not None:
            route.give(self._admission.clock() - self.since)

    def call_began(self) -> None:
        """The app waits for an outgoing call: under an adaptive limit that is not its own work."""
        self._calls += 1
        if self._calls == 1:
            self._called = self._admission.clock()
        if self._in_app and self._app is not None and self._admission.adaptive:
            self._leave()
            self._app.give()

    def call_ended(self) -> None:
        """The app goes on working, whether there is room or not: it has the request already."""
        self._calls -= 1
        if not self._calls:
            self._outside += self._admission.clock() - self._called
        if not self._calls and not self._in_app and self._app is not None:
            self._in_app = True
            self.since = self._admission.clock()  # the call's time was not the app's
            self._admission.working[self] = None
            self._app.in_flight += 1
            if self._trial is not None:
                self._trial.enters(self.since)

    def sample(self, app_seconds: float) -> None:
        """The app took so long over this request, outgoing calls included: what is left without them is its pace.

        For requests that it answered well: a cancelled one or an error says nothing of its pace.
        """
        if self.route_name and self._admission.adaptive:
            self._answered = max(0.0, app_seconds - self._time_outside())
            self._admission.sample(self.route_name, self._answered, self._crowd)

    def _leave(self) -> None:
        """The app works on it no more, for now or for good."""
        self._in_app = False
        self._admission.working.pop(self, None)
        if self._trial is not None:
            self._trial.leaves(self.since, self._admission.clock())

    def _time_outside(self) -> float:
        """Seconds of outgoing calls so far."""
        return self._outside + (self._admission.clock() - self._called if self._calls else 0.0)
