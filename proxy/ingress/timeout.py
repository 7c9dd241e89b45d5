"""A route's two time-outs over one exchange, on one timer that looks again rather than being set again."""

from __future__ import annotations

import asyncio

from proxy.errors import Refusal
from proxy.ingress.exchange import Exchange
from proxy.ingress.leg import Leg
from proxy.ingress.upload import Upload


class Watch:
    """`route.timeout`: from the last byte of the request to the first of the answer, and between bytes.
    `route.total`: the whole exchange. Waiting for the client, either way, is not the app's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, leg: Leg, x: Exchange, upload: Upload) -> None:
        self._loop = loop
        self._leg = leg
        self._x = x
        self._upload = upload
        self._moved = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        route, now = self._x.route, self._loop.time()
        due = []
        if route.total is not None:
            due.append((self._x.received + route.total, "total", route.total))
        if route.timeout is not None and not self._leg.raw:
            if self._upload.waits_for_client or self._leg.paused:
                self._moved = now
            moved = max(self._moved, self._leg.last_read, self._upload.moved_at)
            due.append((moved + route.timeout, "timeout", route.timeout))
        if not due:
            return
        when, key, seconds = min(due)
        if now < when:
            self._timer = self._loop.call_at(when, self._look)
            return
        detail = f"The app did not answer within {seconds:g} s (routes: {route.name}: {key})."
        self._leg.expire(Refusal("timeout", 504, "Gateway timeout", detail))
