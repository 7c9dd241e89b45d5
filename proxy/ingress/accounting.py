"""What a request leaves behind: its metrics and its line in the access log, once, whatever became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from proxy.errors import Refusal
from proxy.ingress.exchange import Exchange
from proxy.observe.access_log import AccessRecord
from proxy.observe.log import EventLog
from proxy.observe.memory_growth import MemoryGrowth
from proxy.observe.metrics import Metrics
from proxy.observe.recent_errors import RecentErrors
from proxy.units import nanos_as_dollars

MIB = 1024 * 1024
USER_REFUSALS = frozenset(("rate-limited", "cost-cap", "blocked"))  # refusals that concern one user


class RequestAccounting:
    """Counts requests, and writes their lines.

    - `in_flight`: requests under way, by route.
    - `growth`: how much the app's memory grew while it served each route.

    `app_bytes` gives the app's memory as last measured, in bytes.
    """

    def __init__(
        self,
        metrics: Metrics,
        log: EventLog,
        clock: Callable[[], float],
        app_bytes: Callable[[], int],
        recent: RecentErrors | None = None,
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._app_bytes = app_bytes
        self._recent = recent
        self.in_flight: Counter[str] = Counter()  # by route
        self.growth = MemoryGrowth(self.in_flight, clock)

    def begin(self, x: Exchange) -> None:
        """The request has a route. `end` must follow."""
        self.in_flight[x.route.name] += 1
        self.growth.started_requests[x.route.name] += 1
        x.memory_before = self._app_bytes()

    def record_concurrency(self, route: str, in_flight: int) -> None:
        """A request was admitted, as one of so many of its route."""
        self._metrics.http_concurrency.labels(route).observe(in_flight)

    def count_rate_limit(self, x: Exchange, refused: bool) -> None:
        decision = "allowed" if not refused else "refused" if x.route.enforce else "shadow"
        self._metrics.rate_limit_total.labels(x.route.name, x.tier, decision).inc()

    def count_shadow_refusal(self, x: Exchange, name: str) -> None:
        self._metrics.shadow_total.labels(x.route.name, name).inc()

    def end(self, x: Exchange) -> None:
        """The request is over, as its exchange says."""
        self.in_flight[x.route.name] -= 1
        took = self._clock() - x.received_at
        self._metrics.observe_request(x.route.name, x.method, x.status, took, x.overhead_seconds)
        # Refusals by limits are counted by name; those with 5xx are failures, and the status counts them.
        if x.refused is not None and x.status < 500:
            self._metrics.http_refusals_total.labels(x.route.name, x.refused.name).inc()
        # Few requests fail, and operators look for these first.
        if self._recent is not None and (x.status >= 500 or x.refused is not None):
            self._remember_failure(self._recent, x, took)
        self._log_access(x, took)

    def end_task(self, x: Exchange) -> None:
        """A try of a task is over. It is no request of a client's: its own metrics and its line are the queue's."""
        self.in_flight[x.route.name] -= 1

    def end_unrouted(self, x: Exchange) -> None:
        """The request was refused before its route was known."""
        took = self._clock() - x.received_at
        self._metrics.observe_request("default", x.method, x.status, took, took)
        self._log_access(x, took)

    def log_unreadable(self, x: Exchange, refusal: Refusal) -> None:
        """Input that never became a request: counted, and logged at debug level only."""
        self._metrics.observe_request("default", "other", refusal.status, 0.0, 0.0)
        self._log.emit(
            "request.unread",
            str(refusal),
            level="debug",
            request_id=x.request_id,
            client_ip=x.peer,
            status=refusal.status,
            refused=refusal.name,
        )

    def _remember_failure(self, recent: RecentErrors, x: Exchange, took: float) -> None:
        refused = x.refused
        if x.status >= 500:
            reason = refused.detail if refused is not None else "the app's own answer"
            recent.add_request_error(x.request_id, x.route.name, x.method, x.target, x.user, x.status, reason, took)
        elif refused is not None and refused.name in USER_REFUSALS:
            recent.add_refusal(x.user, x.tier, x.route.name, refused.name)

    def _log_access(self, x: Exchange, took: float) -> None:
        self._log.log_request(
            AccessRecord(
                x.request_id,
                x.trace_id,
                x.route.name,
                x.method,
                x.target,
                x.status,
                took * 1000,
                x.app_seconds * 1000,
                x.user,
                x.tier,
                x.client.ip,
                x.bytes_in,
                x.bytes_out,
                None if x.cost is None else nanos_as_dollars(x.cost),
                x.calls,
                (self._app_bytes() - x.memory_before) / MIB if x.memory_before else None,
                x.refused.name if x.refused is not None else None,
            )
        )
