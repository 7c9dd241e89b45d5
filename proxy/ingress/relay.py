"""From a request that may pass to the app's answer, and back: sending, sending again, streaming, breaking off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from proxy.errors import AppMisframed, AppUnreachable, NoDescriptors, OutriggerError, Refusal
from proxy.http.tunnel import Tunnel
from proxy.ingress.app_connection import AppConnection
from proxy.ingress.app_pool import AppPool
from proxy.ingress.client_connection import ClientConnection
from proxy.ingress.exchange import Exchange, HeaderList
from proxy.ingress.headers import render_request_head
from proxy.ingress.ports import AppBackend
from proxy.ingress.request_body import RequestUpload
from proxy.ingress.request_errors import bad_request
from proxy.ingress.response_writer import ResponseWriter, render_informational_head
from proxy.ingress.route_timeouts import RouteTimeouts, within_total
from proxy.ingress.stream_limits import StreamLimits

# RFC 9110 section 9.2.2. Whether a broken connection's app had read the request cannot be known.
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
STATUS_CONTINUE = 100
# Seconds for which an app may refuse connections while it counts as ready: its end is noticed by then, by its port
# (app.liveness), or by its process alone.
MAX_REFUSING_SECONDS = 4.5
MAX_REFUSING_SECONDS_UNPROBED = 1.0
RECONNECT_SECONDS = 0.05


class ResponseCut(OutriggerError):
    """The app's answer ended before it was whole, with its head already sent: the client's ends too."""


class Relay:
    """`hold` is how long a request waits for an app that restarts, in seconds; `watched` whether the app's port is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backend: AppBackend, pool: AppPool) -> None:
        self._loop = loop
        self._backend = backend
        self._pool = pool
        self._timeouts = RouteTimeouts(loop)
        self.stream_limits: StreamLimits | None = None
        self.restart_wait = 15.0
        self.port_is_probed = True
        self.app_stopping = False  # the app is being stopped: nothing to wait for

    async def forward(
        self, connection: ClientConnection, x: Exchange, forwarding: Iterable[tuple[bytes, bytes]]
    ) -> bool:
        """Pass a request on and its answer back; whether the client's connection may go on.

        Raises Refusal where the app gave no head of an answer, AnswerCut where it broke off after it.
        """
        head = render_request_head(x, forwarding, connection.local_authority() if "Host" not in x.headers else "")
        upload = RequestUpload(x, connection)
        try:
            leg = await self._exchange_heads(connection, x, head, upload)
        except NoDescriptors as error:
            raise Refusal("overloaded", 503, "Overloaded", str(error), retry_after=1.0) from error
        except AppUnreachable as error:
            raise Refusal("app-unreachable", 502, "Bad gateway", str(error)) from error
        if x.route.streams is not None and self.stream_limits is not None:
            try:
                self.stream_limits.admit(x, leg)
            except Refusal:
                upload.stop()
                self._timeouts.remove(leg)
                self._pool.discard(leg)
                raise
        if leg.upgraded:
            await self._finish_upload(x, leg, upload)
            await self._relay_tunnel(connection, x, leg)
            return False
        return await self._relay_response(connection, x, leg, upload)

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    async def _exchange_heads(
        self, connection: ClientConnection, x: Exchange, head: bytes, upload: RequestUpload
    ) -> AppConnection:
        """The leg whose answer's head has come. An idle leg that proves dead is replaced once, where
        nothing of the answer was seen and the method may be repeated."""
        if self.app_stopping:
            raise self._app_unavailable()
        repeatable = x.method in IDEMPOTENT and upload.fits_with_head
        # An app that is away gets nothing more over the connections it still holds: it is about to stop.
        leg = self._pool.acquire_idle(repeatable=repeatable) if self._backend.is_ready else None
        if leg is not None:
            try:
                return await self._send_request(connection, x, head, upload, leg)
            except AppMisframed:
                raise
            except AppUnreachable:
                if leg.nothing_received:
                    self._pool.discard_closed_early(leg)
                if not (repeatable and leg.nothing_received):
                    raise
                x.reached_app = False
        leg = await self._connect_within_total(x)
        return await self._send_request(connection, x, head, upload, leg)

    async def _send_request(
        self, connection: ClientConnection, x: Exchange, head: bytes, upload: RequestUpload, leg: AppConnection
    ) -> AppConnection:
        def informational(status: int, reason: bytes, headers: HeaderList) -> None:
            if not (x.http10 or (status == STATUS_CONTINUE and x.held is not None and x.held.continue_sent)):
                write = connection.write_continue if status == STATUS_CONTINUE else connection.write
                write(render_informational_head(status, reason, headers))

        sent = self._loop.time()
        if x.route.timeout is not None or x.route.total is not None:
            self._timeouts.add(leg, x, upload)
        try:
            first = upload.initial_bytes()
            x.reached_app = True
            answered = leg.send_request(head + first, x.method, x.upgrade, informational)
            if not upload.fits_with_head:
                upload.start(leg)
            await answered
        except BaseException:
            upload.stop()
            self._timeouts.remove(leg)
            self._pool.discard(leg)
            raise
        x.app_seconds = max(0.0, leg.head_received_at - max(sent, upload.done_at))
        x.overhead_seconds = sent - x.received_at - x.waited_seconds
        self._backend.record_answer()
        return leg

    async def _connect_within_total(self, x: Exchange) -> AppConnection:
        """A fresh leg; an app that is away is waited for (`app.hold`): nothing was sent yet."""
        started = self._loop.time()
        try:
            async with within_total(x):
                return await self._connect_with_retries(x, started)
        finally:
            x.waited_seconds += self._loop.time() - started

    async def _connect_with_retries(self, x: Exchange, started: float) -> AppConnection:
        """As often as the route's `retries` say, where the method may be repeated."""
        retries = x.route.retries
        left = retries.attempts if "connect" in retries.on and x.method in IDEMPOTENT else 1
        while True:
            left -= 1
            try:
                return await self._connect_when_ready(started, self._loop.time())
            except AppUnreachable:
                if not left:
                    raise

    async def _connect_when_ready(self, started: float, tried: float) -> AppConnection:
        """`started` is when the request began to wait for an app that is away, `tried` when for one that refuses."""
        while True:
            if not self._backend.is_ready:
                left = self.restart_wait - (self._loop.time() - started)
                if self.app_stopping or left <= 0 or not await self._backend.wait_ready(left):
                    raise self._app_unavailable()
            try:
                leg = await self._pool.connect()
                if self._backend.is_ready:
                    return leg
                self._pool.discard(leg)  # it was told to go while we connected, and may not wait for us
            except AppUnreachable:
                settle = MAX_REFUSING_SECONDS if self.port_is_probed else MAX_REFUSING_SECONDS_UNPROBED
                if self._backend.is_ready and self._loop.time() - tried > settle:
                    raise
                await asyncio.sleep(RECONNECT_SECONDS)

    def _app_unavailable(self) -> Refusal:
        if self.app_stopping or self._backend.state in ("stopping", "ended"):
            detail = "This instance is being replaced."
            return Refusal("draining", 503, "Service unavailable", detail, retry_after=1, close=True)
        detail = f"The app is {self._backend.state}; it was waited for {self.restart_wait:g} s (app.hold)."
        return Refusal("app-starting", 503, "Service unavailable", detail, retry_after=5)

    # ── answering ────────────────────────────────────────────────────────────────────────────

    async def _relay_response(
        self, connection: ClientConnection, x: Exchange, leg: AppConnection, upload: RequestUpload
    ) -> bool:
        downstream = ResponseWriter(connection, x, leg)
        try:
            downstream.write_head()
            if x.permit is not None:
                if leg.status < 400:  # errors are quick, and say nothing of the app's pace
                    x.permit.record_app_seconds(x.app_seconds)
                x.permit.release_app()
            finished = leg.stream_body(downstream)
            if finished is not None:
                if not downstream.flush():
                    leg.pause_reading()
                x.overhead_seconds += self._loop.time() - leg.head_received_at
                await finished
                downstream.finish()
            else:
                downstream.finish()
                x.overhead_seconds += self._loop.time() - leg.head_received_at
            if connection.writing_paused:
                await connection.drain()
        except Refusal as late:  # a time-out after the head
            connection.abort_response(framed=downstream.is_framed)
            raise ResponseCut(str(late)) from late
        except AppUnreachable as error:
            downstream.flush()
            connection.abort_response(framed=downstream.is_framed)
            raise ResponseCut(str(error)) from error
        finally:
            connection.on_writable = None
            upload.stop()
            self._timeouts.remove(leg)
            if upload.done:
                self._pool.release(leg, repeatable=x.method in IDEMPOTENT and upload.fits_with_head)
            else:
                self._pool.discard(leg)
        return downstream.keep_alive and upload.done

    async def _finish_upload(self, x: Exchange, leg: AppConnection, upload: RequestUpload) -> None:
        """The other protocol begins behind the whole request (RFC 9110 section 7.8). Raises Refusal."""
        if upload.done:
            return
        try:
            if await upload.wait_done():
                return
            why = x.body.exception()
            unknown = bad_request("The rest of the request never reached the app.")
            raise why if isinstance(why, Refusal | ConnectionError) else unknown
        except BaseException:
            upload.stop()
            self._timeouts.remove(leg)
            self._pool.discard(leg)
            raise

    async def _relay_tunnel(self, connection: ClientConnection, x: Exchange, leg: AppConnection) -> None:
        """Both connections become one: what either side sends goes to the other as it is."""
        lines = [b"HTTP/1.1 101 %s\r\n" % (leg.reason or b"Switching Protocols")]
        lines += [b"%s: %s\r\n" % pair for pair in leg.headers]
        lines.append(b"X-Request-Id: %s\r\nVia: 1.1 outrigger\r\n\r\n" % x.request_id.encode())
        connection.write(b"".join(lines))
        x.status = 101
        x.response_started = True
        if connection.is_gone:
            self._pool.discard(leg)
            return
        self._timeouts.remove(leg)
        tunnel = Tunnel(self._loop, x.user)
        self._pool.detach(leg)
        app, from_app = leg.switch_protocol(tunnel.app)
        client, from_client = connection.switch_protocol(tunnel.client)
        connection.tunnel = tunnel
        if x.permit is not None:
            x.permit.release_app()
            x.permit.release()
        tunnel.join(client, from_client, app, from_app)
        try:
            await tunnel.closed
        finally:
            tunnel.abort()
            x.bytes_in, x.bytes_out = tunnel.client.bytes_received, tunnel.app.bytes_received
            self._pool.release_tunnel()
            connection.detach()
