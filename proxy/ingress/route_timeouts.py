"""A route's two timeouts, kept by one timer for all exchanges instead of one for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.errors import Refusal
from proxy.http.upstream_connection import UpstreamConnection
from proxy.ingress.exchange import Exchange
from proxy.ingress.request_body import RequestUpload

CHECK_SECONDS = 0.05  # between two checks: a timeout is at most this late
LATE_SECONDS = 0.05  # a check that comes so much later than it was due means that this process was held up


class RouteTimeouts:
    """Exchanges under way on routes that have a timeout. The timer runs only while there are any."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Most exchanges end before the first look at them, and never need a timer: three values do until then.
        self._timers: dict[UpstreamConnection, ExchangeTimer | tuple[Exchange, RequestUpload, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._was_late = False

    def __len__(self) -> int:
        return len(self._timers)

    def add(self, app_connection: UpstreamConnection, x: Exchange, upload: RequestUpload, now: float) -> None:
        self._timers[app_connection] = (x, upload, now)
        if self._timer is None:
            self._set_timer()

    def remove(self, app_connection: UpstreamConnection) -> None:
        self._timers.pop(app_connection, None)

    def _set_timer(self) -> None:
        self._timer_due = self._loop.time() + CHECK_SECONDS
        self._timer = self._loop.call_at(self._timer_due, self._check_all)

    def _check_all(self) -> None:
        now = self._loop.time()
        # A process that got no CPU for a while (cgroup throttling) has bytes of the app waiting in its sockets, which
        # it reads after its timers. That silence was its own: they are read before the app is judged.
        if now - self._timer_due > LATE_SECONDS and not self._was_late:
            self._was_late = True  # not twice: a loop that is always late has read in between
            self._set_timer()
            return
        self._was_late = False
        # A copy, since entries are removed meanwhile.
        for app_connection, timer in list(self._timers.items()):
            if isinstance(timer, tuple):
                timer = self._timers[app_connection] = ExchangeTimer(*timer)
            refusal = timer.due_refusal(app_connection, now)
            if refusal is not None:
                del self._timers[app_connection]
                app_connection.fail(refusal)
        if self._timers:
            self._set_timer()
        else:
            self._timer = None


class ExchangeTimer:
    """The timeouts of one exchange.

    `route.timeout` is from the last byte of the request to the first of the response, and between bytes. `route.total`
    is the whole exchange. Waiting for the client, in either direction, is not the app's time.
    """

    __slots__ = ("_client_progress_at", "_upload", "_x")

    def __init__(self, x: Exchange, upload: RequestUpload, now: float) -> None:
        self._x = x
        self._upload = upload
        self._client_progress_at = now

    def due_refusal(self, app_connection: UpstreamConnection, now: float) -> Refusal | None:
        """The refusal that is due now, or None."""
        route = self._x.route
        if route.total is not None and now >= self._x.received_at + route.total:
            return timeout_refusal(self._x, "total", route.total)
        if route.timeout is None:
            return None
        # While the client is waited for, the app's time does not run: it starts again from now.
        if self._upload.waits_for_client or app_connection.reading_paused:
            self._client_progress_at = now
        if now >= max(self._client_progress_at, app_connection.last_read, self._upload.progress_at) + route.timeout:
            return timeout_refusal(self._x, "timeout", route.timeout)
        return None


def timeout_refusal(x: Exchange, key: str, seconds: float) -> Refusal:
    detail = f"The app did not answer within {seconds:g} s (routes: {x.route.name}: {key})."
    return Refusal("timeout", 504, "Gateway timeout", detail)


@asynccontextmanager
async def within_total(x: Exchange) -> AsyncIterator[None]:
    """Limit a wait, before the app has the request, to what is left of `route.total`. Raises Refusal (504)."""
    total = x.route.total
    if total is None:
        yield
        return
    try:
        async with asyncio.timeout_at(x.received_at + total):
            yield
    except TimeoutError:
        raise timeout_refusal(x, "total", total) from None
