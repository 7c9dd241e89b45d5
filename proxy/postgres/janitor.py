"""What a pool does by the clock: ends what is idle or old or takes too long, and opens ahead."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.postgres import wire
from proxy.units import format_duration

if TYPE_CHECKING:
    from proxy.postgres.pool import Pool
    from proxy.postgres.server import ServerConnection

REACTION_SECONDS = 5.0  # seconds that a server has to react to a cancel, and to a check


class Janitor:
    """Looks once a second, or more often where a time-out is that short."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.look()
        bounds = [bound for bound in (self._query, self._idle) if bound is not None]
        pause = max(0.05, min(1.0, *(bound / 5 for bound in bounds))) if bounds else 1.0
        self._handle = asyncio.get_running_loop().call_later(pause, self.start)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    @property
    def _query(self) -> float | None:
        return self._pool.policy.timeout.query

    @property
    def _idle(self) -> float | None:
        return self._pool.policy.timeout.idle_in_transaction

    def look(self) -> None:
        pool, now = self._pool, self._pool.now()
        for server in list(pool.servers):
            self._judge(server, now)
        spare = len(pool.servers) - pool.policy.pool.min
        for server in list(pool.idle):
            old = now >= server.retire or len(pool.servers) > pool.policy.pool.max
            if old or (spare > 0 and now - server.since > pool.policy.pool.idle):
                pool.idle.remove(server)
                spare -= 1
                server.close()
        pool.launcher.fill()

    def _judge(self, server: ServerConnection, now: float) -> None:
        since = now - server.since
        if server.checking and since > REACTION_SECONDS:
            server.abort()
            return
        session, client = server.session, server.client
        if session is None or client is None:
            return
        if session.busy:
            bound = self._query
            if bound is None or since <= bound:
                return
            text = f"canceled: it took longer than postgres.timeout.query ({format_duration(bound)})"
            if not server.expired:
                server.expired = True
                session.outstanding.cancel_error = wire.error_response("57014", text)
                self._pool.cancel(server)
            elif since > bound + REACTION_SECONDS:  # nobody answers there
                client.end(wire.fatal_response("57014", text))
                server.abort()
        elif server.state == "idle_in_transaction" and self._idle is not None and since > self._idle:
            allowed = format_duration(self._idle)
            text = f"terminated: idle in a transaction for longer than postgres.timeout.idle_in_transaction ({allowed})"
            client.end(wire.fatal_response("25P03", text))
