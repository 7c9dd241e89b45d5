"""Admission control: how many requests the app gets at once, by route and in all.

A request passes its route's gate, then the app's, and holds a `Permit` while the app works on it. The app's gate is
off, fixed or adaptive, as the policy's `overload` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.errors import Refusal
from proxy.ingress.admission.adaptive import MIN_STEP_SECONDS, GradientLimiter, Trial
from proxy.ingress.admission.address_share import AddressShare, AddressShares
from proxy.ingress.admission.gate import Gate, Shed
from proxy.policy.schema import Overload, Route

if TYPE_CHECKING:
    from proxy.ingress.admission.adaptive import Trial


# The queue before an adaptive limit. While the app is quick it absorbs bursts. Once the app is overloaded a long queue
# would only make everybody late, and a quarter of the limit is enough to keep the app busy.
CALM_QUEUE = 100
QUEUE_WAIT = 10.0
MAX_RETRY_AFTER = 60.0
LEAST_IMPORTANT = 2**31  # a priority behind every tier's
TASK_RETRY_SECONDS = 0.5  # after which a task that made room asks for a place again
MAX_PROBES = 4  # health probes at once that need no place of the app's; a platform sends one at a time

_DETAILS = {
    "route_queue_full": "This route has its fill of requests, and its queue is full.",
    "route_wait": "This route has its fill of requests, and none ended in time while this one waited.",
    "queue_full": "The app has its fill of requests, and the queue is full.",
    "wait": "The app has its fill of requests, and none ended in time while this one waited.",
    "share_queue_full": "This address has its share of requests whose bodies are still coming, and its queue is full.",
    "share_wait": "This address has its share of requests whose bodies are still coming, and none ended in time.",
    "priority": "The app has its fill of requests, and the queue was needed for more important ones.",
}


class Permit:
    """A request's places at both gates, or a health probe's own place.

    - `route_name`: empty for a health probe.
    - `route_in_flight`: of its route, when it got its place, itself included.
    - `in_app_since`: when the app began to work on it, on the loop's clock.

    Under an adaptive limit the place at the app is given back while the app waits for an outgoing call, since that is
    not its own work:

        state       event           next state
        in the app  call_began()    outside: the place is free for another request
        outside     call_ended()    in the app, whether there is room or not: it has the request already
        either      release_app()   released: the head of the response is sent
        any         release()       both gates are released

    `release` belongs in a `finally`. It and `release_app` may be called again, to no effect.
    """

    __slots__ = (
        "_admission",
        "_app_gate",
        "_app_in_flight",
        "_app_seconds",
        "_began_at",
        "_calls_since",
        "_ended_call_seconds",
        "_in_app",
        "_open_calls",
        "_route_gate",
        "_trial",
        "in_app_since",
        "route_in_flight",
        "route_name",
    )

    def __init__(self, admission: AdmissionController, route: Gate | None, app: Gate | None) -> None:
        self._admission = admission
        self._route_gate = route
        self.route_name = route.name if route is not None else ""
        self.route_in_flight = route.in_flight if route is not None else 0
        self._app_gate = app  # until the head of the response is sent
        self._in_app = app is not None  # the place there is held now
        self._open_calls = 0  # outgoing calls under way
        self._calls_since = 0.0  # since when there are any
        self._ended_call_seconds = 0.0  # in which there were any, but for the present ones
        self._app_in_flight = app.in_flight if app is not None else 0  # at the app when it began, itself included
        self.in_app_since = self._began_at = admission.clock()
        self._trial: Trial | None = None
        self._app_seconds: float | None = None  # without outgoing calls
        # Only the adaptive limit needs to know who is inside; without it a permit costs two counters.
        if app is not None and admission.is_adaptive:
            admission.in_app[self] = None
            self._trial = admission.join_trial()
            if self._trial is not None:
                self._trial.enter(self.in_app_since)

    def release_app(self) -> None:
        """The head of the response is on its way. What follows is a stream, and needs no place at the app."""
        # Taken out first, so that a second call finds nothing to give back.
        app, self._app_gate = self._app_gate, None
        if app is not None and self._in_app:
            self._leave_app()
            app.release(self._admission.clock() - self.in_app_since)
        if self._trial is not None:
            trial, self._trial = self._trial, None
            trial.finish(self._app_seconds, self._admission.clock() - self._began_at - self._call_seconds())

    def release(self) -> None:
        """The exchange is over, or has become a tunnel."""
        if self._app_gate is not None or self._trial is not None:
            self.release_app()
        route, self._route_gate = self._route_gate, None
        if route is not None:
            route.release(self._admission.clock() - self.in_app_since)

    def call_began(self) -> None:
        """The app waits for an outgoing call, which under an adaptive limit is not its own work."""
        self._open_calls += 1
        if self._open_calls == 1:
            self._calls_since = self._admission.clock()
        # A fixed limit counts requests, whatever they do; only an adaptive one measures the app's own work.
        if self._in_app and self._app_gate is not None and self._admission.is_adaptive:
            self._leave_app()
            self._app_gate.release()

    def call_ended(self) -> None:
        """The app goes on working, whether there is room or not, since it has the request already."""
        self._open_calls -= 1
        if not self._open_calls:
            self._ended_call_seconds += self._admission.clock() - self._calls_since
        if not self._open_calls and not self._in_app and self._app_gate is not None:
            self._in_app = True
            self.in_app_since = self._admission.clock()  # the call's time was not the app's
            self._admission.in_app[self] = None
            # Without waiting for a place, so the limit may be exceeded: the app works on the request in any case.
            self._app_gate.in_flight += 1
            if self._trial is not None:
                self._trial.enter(self.in_app_since)

    def record_app_seconds(self, app_seconds: float) -> None:
        """Record how long the app took over this request, outgoing calls included; the time of these is subtracted.

        Only for requests that were answered well: a cancelled one or an error says nothing about the app's speed.
        """
        if self.route_name and self._admission.is_adaptive:
            self._app_seconds = max(0.0, app_seconds - self._call_seconds())
            self._admission.add_sample(self.route_name, self._app_seconds, self._app_in_flight)

    def _leave_app(self) -> None:
        """The app does not work on it any more, for now or for good."""
        self._in_app = False
        if self._admission.in_app:
            self._admission.in_app.pop(self, None)
        if self._trial is not None:
            self._trial.leave(self.in_app_since, self._admission.clock())

    def _call_seconds(self) -> float:
        """Seconds of outgoing calls so far."""
        return self._ended_call_seconds + (self._admission.clock() - self._calls_since if self._open_calls else 0.0)


class AdmissionController:
    """Two gates: the route's `concurrency` with its queue, then the app's `overload` limit with its own.

    Both queues are fair (`PriorityFairQueue`): users are served in turn, and at a full queue an arrival takes the place
    of the newest waiter of the user who has most of them, unless that is its own. The app's queue serves the most
    important tier first (the lowest number in `overload.priority`; tiers that are not named there come last), and if it
    is full, the least important make room first. Before both, a request whose body is still coming needs a share of its
    address.

    A request that finds no place is refused with 503 `overloaded`, and `on_shed` is called with the reason:
    route_queue_full, route_wait, queue_full, wait, priority, share_queue_full or share_wait.

    `clock` must be the loop's, or run with it, since the loop times the waits. `in_app` has the permits that hold a
    place at the app under an adaptive limit.
    """

    def __init__(self, overload: Overload, *, clock: Callable[[], float], on_shed: Callable[[str], None]) -> None:
        self.clock = clock
        self._on_shed = on_shed
        self.in_app: dict[Permit, None] = {}
        self._app_gate = Gate("")
        self._probe_gate = Gate("probe_")
        self._probe_gate.limit = MAX_PROBES
        self._shares = AddressShares()
        self._route_gates: dict[str, RouteGate] = {}
        self._gradient: GradientLimiter | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._overload = overload
        self.is_adaptive = False
        self.reconfigure(overload)

    def __repr__(self) -> str:
        parts = [f"{self._overload.mode}: {self._app_gate!r}"]
        parts += [f"{gate.name}: {gate!r}" for gate in self._route_gates.values()]
        return f"<Admission {' | '.join(parts)}>"

    @property
    def limit(self) -> int | None:
        """How many requests the app gets at once; None if nothing limits that."""
        return self._app_gate.limit

    def is_overfull(self, route_name: str) -> bool:
        """Whether a route in shadow mode has more requests than its places and its queue would hold."""
        gate = self._route_gates.get(route_name)
        return gate is not None and gate.is_overfull

    def in_flight(self, route_name: str) -> int:
        gate = self._route_gates.get(route_name)
        return gate.in_flight if gate is not None else 0

    def queued(self, route_name: str) -> int:
        """Requests of a route that wait at either gate."""
        gate = self._route_gates.get(route_name)
        return len(gate.queue) + gate.waiting_for_app if gate is not None else 0

    def reconfigure(self, overload: Overload) -> None:
        """Put another policy in force. What is in flight stays in flight, and counts."""
        old, self._overload = self._overload, overload
        if overload.mode != "adaptive":
            self._gradient = None
        elif self._gradient is None or overload.adaptive != old.adaptive:
            self._gradient = GradientLimiter(overload.adaptive, self.clock)
        self.is_adaptive = self._gradient is not None
        self._apply_limits()
        # A gate without requests is made anew when it is needed, so those of removed routes do not pile up.
        idle = [gate.name for gate in self._route_gates.values() if not gate.in_flight and not gate.queue]
        for name in idle:
            del self._route_gates[name]

    def try_admit(self, route: Route, *, exempt: bool = False) -> Permit | None:
        """A permit if both gates have room now; None if `admit` would wait or refuse.

        A health probe is exempt: it has places of its own. If these are taken, it is treated like any other request.
        """
        if exempt and self._probe_gate.try_acquire():
            return Permit(self, self._probe_gate, None)
        gate = self._gate_for(route)
        if not gate.try_acquire():
            return None
        if not self._app_gate.try_acquire():
            # Both or none: a place at the route's gate alone would only keep others out.
            gate.release()
            return None
        return Permit(self, gate, self._app_gate)

    async def admit(self, route: Route, tier: str, user: str) -> Permit:
        """A permit, as soon as there is room. Raises Refusal (503 `overloaded`)."""
        gate = self._gate_for(route)
        # The gate at which it fails is the one whose queue its Retry-After is estimated from.
        at: Gate = gate
        try:
            await gate.acquire(0, user)
            at = self._app_gate
            # It keeps its place at the route's gate meanwhile, and counts as queued.
            gate.waiting_for_app += 1
            try:
                await self._acquire_app(tier, user)
            except BaseException:  # cancelled or shed: the place at the first gate is given back either way
                gate.release()
                raise
            finally:
                gate.waiting_for_app -= 1
        except Shed as shed:
            reason = str(shed)
            self._on_shed(reason)
            seconds = min(MAX_RETRY_AFTER, max(1.0, at.expected_wait()))
            raise Refusal("overloaded", 503, "Overloaded", _DETAILS[reason], retry_after=seconds) from None
        return Permit(self, gate, self._app_gate)

    async def admit_task(self, user: str) -> Permit:
        """A permit for a task, which no client waits for: the least important of all, and asked for again whenever it
        had to make room. Its route's places are not counted here; `background.concurrency` is the queue's."""
        while True:
            try:
                if not self._app_gate.try_acquire():
                    if self._gradient is not None:
                        self._gradient.note_reached()
                        self._step_limit()
                        self._schedule_tick()
                    await self._app_gate.acquire(LEAST_IMPORTANT, user)
                return Permit(self, None, self._app_gate)
            except Shed:
                await asyncio.sleep(TASK_RETRY_SECONDS)

    def may_queue(self, route: Route) -> bool:
        """Whether a request of this route can have to wait for a place."""
        return self._app_gate.limit is not None or (route.concurrency is not None and route.enforce)

    async def acquire_share(self, route: Route, address: str) -> AddressShare:
        """A share of its address at each gate, for a request whose body is still coming. Raises Refusal (503)."""
        share = AddressShare(self._shares)
        try:
            if route.concurrency is not None and route.enforce:
                queue = route.queue
                await self._shares.acquire(share, route.name, address, route.concurrency, queue.size, queue.wait)
            if self._app_gate.limit is not None:
                await self._shares.acquire(
                    share, "", address, self._app_gate.limit, self._app_gate.queue_size, self._app_gate.queue_wait
                )
        except Shed as shed:
            share.release()
            self._on_shed(str(shed))
            raise Refusal("overloaded", 503, "Overloaded", _DETAILS[str(shed)], retry_after=1.0, close=True) from None
        except BaseException:
            share.release()
            raise
        return share

    def add_sample(self, route_name: str, app_seconds: float, crowd: int) -> None:
        """See `Permit.sample`."""
        if self._gradient is not None:
            self._gradient.add_sample(route_name, app_seconds, crowd)
            self._step_limit()

    def join_trial(self) -> Trial | None:
        """The adaptive limit's trial that a request which has just been admitted takes part in."""
        return self._gradient.join_trial(self._app_gate.in_flight) if self._gradient is not None else None

    async def _acquire_app(self, tier: str, user: str) -> None:
        if self._app_gate.try_acquire():
            return
        if self._gradient is not None:
            # The limit only grows if somebody would have used a higher one.
            self._gradient.note_reached()
            self._step_limit()
            self._schedule_tick()
        priority = self._overload.priority
        await self._app_gate.acquire(priority.get(tier, max(priority.values(), default=0) + 1), user)

    def _gate_for(self, route: Route) -> RouteGate:
        gate = self._route_gates.get(route.name)
        if gate is None:
            gate = self._route_gates[route.name] = RouteGate(route)
        elif gate.route is not route:
            gate.set_route(route)
        return gate

    def _step_limit(self) -> None:
        if self._gradient is not None and self._gradient.step(self._request_ages):
            self._apply_limits()

    def _request_ages(self) -> list[tuple[str, float]]:
        now = self.clock()
        return [(permit.route_name, now - permit.in_app_since) for permit in self.in_app]

    def _schedule_tick(self) -> None:
        """Look again in a moment: while somebody waits, the limit must be able to change even if no request ends."""
        if self._tick_timer is None:
            self._tick_timer = asyncio.get_running_loop().call_later(MIN_STEP_SECONDS, self._tick)

    def _tick(self) -> None:
        self._tick_timer = None
        if self._gradient is not None and self._app_gate.queue:
            self._gradient.note_reached()
            self._step_limit()
            self._schedule_tick()

    def _apply_limits(self) -> None:
        mode, fixed = self._overload.mode, self._overload.fixed
        if mode == "fixed":
            self._app_gate.configure(fixed.limit, fixed.queue, fixed.wait)
        elif self._gradient is not None:
            limit = self._gradient.limit
            size = max(1, limit // 4) if self._gradient.overloaded else CALM_QUEUE
            self._app_gate.configure(limit, size, QUEUE_WAIT)
        else:
            self._app_gate.configure(None, 0, 0.0)


class RouteGate(Gate):
    """The gate of one route, which also knows how many of its requests wait at the app's."""

    def __init__(self, route: Route) -> None:
        super().__init__("route_", route.name)
        self.waiting_for_app = 0
        self.set_route(route)

    def set_route(self, route: Route) -> None:
        self.route = route
        self.configure(route.concurrency if route.enforce else None, route.queue.size, route.queue.wait)

    @property
    def is_overfull(self) -> bool:
        """In shadow mode, which refuses nobody: whether all places and the queue would be taken."""
        route = self.route
        return (
            not route.enforce and route.concurrency is not None and self.in_flight > route.concurrency + self.queue_size
        )
