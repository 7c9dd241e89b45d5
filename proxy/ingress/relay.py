"""Passing an admitted request on to the app, and the response back to the client.

A request is sent a second time only if the app cannot have acted on it: nothing was sent yet, or its method is
idempotent (RFC 9110 section 9.2.2) and an idle connection turned out to be dead before a byte of a response came. A
response that breaks off after its head has gone out cannot be taken back, so it is ended in a way that the client
notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from proxy.errors import OutOfDescriptors, OutriggerError, PeerMisframed, PeerUnreachable, Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.messages import HeaderList
from proxy.http.request_errors import bad_request
from proxy.http.tunnel import Tunnel
from proxy.http.upstream_connection import UpstreamConnection
from proxy.ingress.app_pool import AppPool
from proxy.ingress.cache.switch import ResponseCacheSwitch
from proxy.ingress.detached_client import ResponseClient
from proxy.ingress.exchange import Exchange
from proxy.ingress.headers import dropped_response_fields, render_request_head
from proxy.ingress.message_head import ResponseHead
from proxy.ingress.ports import AppBackend
from proxy.ingress.request_body import RequestUpload, make_upload
from proxy.ingress.response_collector import ResponseCollector
from proxy.ingress.response_writer import ResponseWriter, render_informational_head, write_whole_response
from proxy.ingress.route_timeouts import RouteTimeouts, within_total
from proxy.ingress.stream_limits import StreamLimits
from proxy.tasks.record import TaskResponse

if TYPE_CHECKING:
    from proxy.ingress.compression.compressed_response import CompressedBody, ResponseSink

# RFC 9110 section 9.2.2. If a connection breaks, nobody can know whether the app had read the request.
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))  # section 9.2.1
STATUS_CONTINUE = 100
# Seconds for which an app may refuse connections while it still counts as ready. By then its end has been noticed,
# either by probes of its port (app.liveness) or by the end of its process alone.
MAX_REFUSING_SECONDS = 4.5
MAX_REFUSING_SECONDS_UNPROBED = 1.0
RECONNECT_SECONDS = 0.05


class ResponseCut(OutriggerError):
    """The app's response broke off after its head had been sent to the client. The client's connection ends with it."""


class Relay:
    """Requests to the app, responses to clients.

    - `restart_wait`: seconds for which a request waits for an app that restarts (`app.hold`).
    - `port_is_probed`: whether the app's port is probed (`app.liveness`).
    - `app_stopping`: the app is being stopped, so nobody waits for it any more.
    - `stream_limits`: the limits on open streams; the pipeline sets them.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, backend: AppBackend, pool: AppPool, caching: ResponseCacheSwitch
    ) -> None:
        self._loop = loop
        self._backend = backend
        self._pool = pool
        self._caching = caching
        self._timeouts = RouteTimeouts(loop)
        self.stream_limits: StreamLimits | None = None
        self.restart_wait = 15.0
        self.port_is_probed = True
        self.app_stopping = False

    async def forward(self, connection: ResponseClient, x: Exchange, forwarding: Iterable[tuple[bytes, bytes]]) -> bool:
        """Pass a request on, and the response back. True if the client's connection may serve another request.

        Raises Refusal if the app gave no head of a response, ResponseCut if the response broke off after its head.
        """
        head = render_request_head(x, forwarding, connection.local_authority() if "Host" not in x.headers else "")
        upload = make_upload(x)
        try:
            app_connection = await self._exchange_heads(connection, x, head, upload)
        except OutOfDescriptors as error:
            raise Refusal("overloaded", 503, "Overloaded", str(error), retry_after=1.0) from error
        except PeerUnreachable as error:
            raise Refusal("app-unreachable", 502, "Bad gateway", str(error)) from error
        # Only the response shows whether it is a stream. Nothing of it was sent to the client, so it can still be
        # refused.
        if x.route.streams is not None and self.stream_limits is not None:
            try:
                self.stream_limits.admit(x, app_connection)
            except Refusal:
                upload.stop()
                self._timeouts.remove(app_connection)
                self._pool.discard(app_connection)
                raise
        if app_connection.upgraded:
            assert isinstance(connection, ClientConnection)  # whoever asks while nobody waits asks for no upgrade
            await self._finish_upload(x, app_connection, upload)
            await self._relay_tunnel(connection, x, app_connection)
            return False
        is_framed = app_connection.content_length is not None or app_connection.bodyless
        if app_connection.complete and is_framed and x.filters is None and x.lookup is None:
            keep_alive = self._write_whole(connection, x, app_connection, upload)
            # Else the next response would pile up in memory behind this one.
            if connection.writing_paused:
                await connection.drain()
            return keep_alive
        return await self._relay_response(connection, x, app_connection, upload)

    async def collect_response(
        self, x: Exchange, forwarding: Iterable[tuple[bytes, bytes]], max_bytes: int
    ) -> TaskResponse:
        """Pass a task's request on, and keep the response whole: there is no client that waits for it.

        Raises PeerUnreachable if it did not come or broke off, Refusal if it was late or the app is away, and
        ResultTooLarge.
        """
        upload = make_upload(x)
        app_connection = await self._exchange_heads(None, x, render_request_head(x, forwarding, ""), upload)
        collector = ResponseCollector(self._loop, app_connection, max_bytes)
        try:
            if x.permit is not None:
                x.permit.release_app()  # what follows is a stream, and needs no place at the app
            finished = app_connection.stream_body(collector)
            if finished is not None:
                await finished
            collector.check_size()
        finally:
            upload.stop()
            self._timeouts.remove(app_connection)
            if upload.done and not collector.is_too_large:
                self._pool.release(app_connection, repeatable=False)
            else:
                self._pool.discard(app_connection)
        x.status = app_connection.status
        x.bytes_out = collector.size
        head: ResponseHead = app_connection if x.filters is None else x.filters.edit_fields(app_connection)
        if x.method not in SAFE_METHODS and (cache := self._caching.cache) is not None:
            cache.empty_after_write(x, head)
        names = [name.lower() for name, _ in head.headers]
        # Its length is said anew by whoever hands it on.
        dropped = dropped_response_fields(x, names, head.headers) | {b"content-length"}
        fields = tuple(pair for name, pair in zip(names, head.headers, strict=True) if name not in dropped)
        return TaskResponse(app_connection.status, app_connection.reason, fields, collector.body())

    # ── the request ───────────────────────────────────────────────────────────────────────────────

    async def _exchange_heads(
        self, connection: ResponseClient | None, x: Exchange, head: bytes, upload: RequestUpload
    ) -> UpstreamConnection:
        """Send the request; the connection on which the head of its response has come.

        `connection` is the client's, which gets interim responses; None if nobody waits.

        An idle connection that proves dead is replaced once, if nothing of a response was seen and the method may be
        repeated. A fresh connection that fails is the app's failure, and is not replaced.
        """
        if self.app_stopping:
            raise self._app_unavailable()
        # A body that is streamed is gone once it was sent, so such a request cannot be sent again either.
        repeatable = x.method in IDEMPOTENT and upload.fits_with_head
        # An app that is not ready gets nothing more over the connections that it still holds: it is about to stop.
        # A task does not take an idle one either: if that proved dead, one of its few tries would be lost.
        may_be_idle = self._backend.is_ready and x.task is None
        app_connection = self._pool.acquire_idle(repeatable=repeatable) if may_be_idle else None
        if app_connection is not None:
            try:
                await self._send_request(connection, x, head, upload, app_connection)
                self._note_answer(x, upload, app_connection)
                return app_connection
            except BaseException as error:
                self._give_up(upload, app_connection)
                # Else the app has answered, if badly, and so has read the request; or it is not the app's failure.
                if not isinstance(error, PeerUnreachable) or isinstance(error, PeerMisframed):
                    raise
                if app_connection.nothing_received:
                    self._pool.discard_closed_early(app_connection)
                if not (repeatable and app_connection.nothing_received):
                    raise
                # Sent anew, it has not reached the app yet: if that fails too, it does not count against its user's
                # rate.
                x.reached_app = False
        app_connection = await self._connect_within_total(x)
        try:
            await self._send_request(connection, x, head, upload, app_connection)
            self._note_answer(x, upload, app_connection)
        except BaseException:
            self._give_up(upload, app_connection)
            raise
        return app_connection

    def _send_request(
        self,
        connection: ResponseClient | None,
        x: Exchange,
        head: bytes,
        upload: RequestUpload,
        app_connection: UpstreamConnection,
    ) -> asyncio.Future[None]:
        """What it returns is done when the head of the response has come."""
        x.sent_at = now = self._loop.time()
        if x.route.timeout is not None or x.route.total is not None:
            self._timeouts.add(app_connection, x, upload, now)
        first = upload.initial_bytes()
        x.reached_app = True  # before the write: a part of it may arrive even if the write fails
        on_informational = None if connection is None else partial(_write_informational, connection, x)
        head_received = app_connection.send_request(head + first, x.method, x.upgrade, on_informational)
        # The body follows while the response may already come: an app may answer before it has read everything.
        if not upload.fits_with_head:
            upload.start(app_connection)
        return head_received

    def _give_up(self, upload: RequestUpload, app_connection: UpstreamConnection) -> None:
        """Also if the client leaves and its task is cancelled: a connection with half an exchange is of no use."""
        upload.stop()
        self._timeouts.remove(app_connection)
        self._pool.discard(app_connection)

    def _note_answer(self, x: Exchange, upload: RequestUpload, app_connection: UpstreamConnection) -> None:
        """The head of the response has come."""
        # The app's time begins when it has the whole request, which may be after its response has begun.
        x.app_seconds = max(0.0, app_connection.head_received_at - max(x.sent_at, upload.done_at))
        x.overhead_seconds = x.sent_at - x.received_at - x.waited_seconds
        self._backend.record_answer()

    async def _connect_within_total(self, x: Exchange) -> UpstreamConnection:
        """A fresh connection, within `route.total`. Nothing was sent yet, so waiting for the app does no harm."""
        started = self._loop.time()
        try:
            async with within_total(x):
                return await self._connect_with_retries(x, started)
        finally:
            x.waited_seconds += self._loop.time() - started

    async def _connect_with_retries(self, x: Exchange, started: float) -> UpstreamConnection:
        """Try as often as the route's `retries` say, if the method may be repeated; else once."""
        retries = x.route.retries
        left = retries.attempts if "connect" in retries.on and x.method in IDEMPOTENT else 1
        while True:
            left -= 1
            try:
                return await self._connect_when_ready(x, started, self._loop.time())
            except PeerUnreachable:
                if not left:
                    raise

    async def _connect_when_ready(self, x: Exchange, started: float, tried: float) -> UpstreamConnection:
        """A fresh connection to an app that is ready; an app that is away is waited for (`app.hold`).

        `started` is when the request began to wait, `tried` when this attempt began. Raises Refusal (503) if the app
        stays away, PeerUnreachable if it says that it is ready and refuses connections.
        """
        # A stale answer that may stand in is given at once.
        patience = 0.0 if x.lookup is not None and x.lookup.stands_in_at_once else self.restart_wait
        while True:
            if not self._backend.is_ready:
                left = patience - (self._loop.time() - started)
                if self.app_stopping or left <= 0 or not await self._backend.wait_ready(left):
                    raise self._app_unavailable()
            try:
                app_connection = await self._pool.connect()
                if self._backend.is_ready:
                    return app_connection
                # It was told to stop in the meantime, and may not wait for a request.
                self._pool.discard(app_connection)
            except PeerUnreachable:
                # A ready app that refuses has probably just died, and will be known to be away in a moment: wait for
                # that.
                settle = MAX_REFUSING_SECONDS if self.port_is_probed else MAX_REFUSING_SECONDS_UNPROBED
                if not patience or (self._backend.is_ready and self._loop.time() - tried > settle):
                    raise
                await asyncio.sleep(RECONNECT_SECONDS)

    def _app_unavailable(self) -> Refusal:
        if self.app_stopping or self._backend.state in ("stopping", "ended"):
            detail = "This instance is being replaced."
            return Refusal("draining", 503, "Service unavailable", detail, retry_after=1, close=True)
        detail = f"The app is {self._backend.state}; it was waited for {self.restart_wait:g} s (app.hold)."
        return Refusal("app-starting", 503, "Service unavailable", detail, retry_after=5)

    # ── the response ────────────────────────────────────────────────────────────────────────────

    def _write_whole(
        self, connection: ResponseClient, x: Exchange, app_connection: UpstreamConnection, upload: RequestUpload
    ) -> bool:
        """Write a response that came in one piece, as most do. True if the client's connection may go on."""
        try:
            if x.method not in SAFE_METHODS and (cache := self._caching.cache) is not None:
                cache.empty_after_write(x, app_connection)
            self._release_place(x, app_connection)
            keep_alive = write_whole_response(connection, x, app_connection, app_connection.take_body())
            x.overhead_seconds += self._loop.time() - app_connection.head_received_at
        finally:
            self._end_exchange(x, app_connection, upload)
        return keep_alive and upload.done

    def _release_place(self, x: Exchange, app_connection: UpstreamConnection) -> None:
        permit = x.permit
        if permit is not None:
            if app_connection.status < 400:  # errors are quick, and say nothing about the app's speed
                permit.record_app_seconds(x.app_seconds)
            permit.release_app()

    def _end_exchange(self, x: Exchange, app_connection: UpstreamConnection, upload: RequestUpload) -> None:
        upload.stop()
        self._timeouts.remove(app_connection)
        # An app that answered without reading the whole request would take the rest of it for the next one.
        if upload.done:
            self._pool.release(app_connection, repeatable=x.method in IDEMPOTENT and upload.fits_with_head)
        else:
            self._pool.discard(app_connection)

    async def _relay_response(
        self, connection: ResponseClient, x: Exchange, app_connection: UpstreamConnection, upload: RequestUpload
    ) -> bool:
        """Stream the response to the client as it comes, or give one that is kept in its place. True if the client's
        connection may go on.
        """
        head: ResponseHead = app_connection
        coding = None
        if x.filters is not None:
            head = x.filters.edit_fields(head)
        if x.method not in SAFE_METHODS and (cache := self._caching.cache) is not None:
            cache.empty_after_write(x, head)
        if x.lookup is not None:
            if (kept := x.lookup.receive_head(head)) is not None:
                self._drop_response(x, app_connection, upload)
                assert self._caching.cache is not None  # it has made the look-up
                return await self._caching.cache.write(connection, x, kept) and upload.done
            head = x.lookup.edit_head(head)
        if x.filters is not None:
            head, coding = x.filters.choose_coding(x, head, app_connection.known_size)
        # When the client reads again, so is the app.
        writer = ResponseWriter(connection, x, head, app_connection.resume_reading)
        # The body passes from the last of these to the first: it is compressed, then kept, then written.
        sink: ResponseSink = writer
        compressed: CompressedBody | None = None
        if x.lookup is not None:
            sink = x.lookup.record(sink, coding)
        if coding is not None and x.filters is not None:
            # A body of unknown length may be a stream that stays open.
            stream = app_connection.known_size is None
            sink = compressed = x.filters.compress_body(coding, sink, self._loop, stream=stream)
        try:
            writer.write_head()
            self._release_place(x, app_connection)
            # The body goes from the app's data_received straight to the client's transport. This task only waits for
            # the end of it; a response that came in one piece needs no waiting.
            finished = app_connection.stream_body(sink)
            if finished is not None:
                if not sink.flush():
                    app_connection.pause_reading()
                x.overhead_seconds += self._loop.time() - app_connection.head_received_at
                await finished
                sink.finish()
            else:
                sink.finish()
                x.overhead_seconds += self._loop.time() - app_connection.head_received_at
            # Else the next response would pile up in memory behind this one.
            if connection.writing_paused:
                await connection.drain()
        except Refusal as late:  # a timeout after the head
            connection.abort_response(framed=writer.is_framed)
            raise ResponseCut(str(late)) from late
        except PeerUnreachable as error:
            # What did come belongs to the client, even if more should have.
            sink.flush()
            connection.abort_response(framed=writer.is_framed)
            raise ResponseCut(str(error)) from error
        finally:
            connection.on_writable = None
            if compressed is not None:
                compressed.cancel()
            self._end_exchange(x, app_connection, upload)
        return writer.keep_alive and upload.done

    def _drop_response(self, x: Exchange, app_connection: UpstreamConnection, upload: RequestUpload) -> None:
        """The head of the response was all that was wanted of it."""
        if x.permit is not None:
            x.permit.release_app()
        upload.stop()
        self._timeouts.remove(app_connection)
        if upload.done and app_connection.complete:
            self._pool.release(app_connection, repeatable=x.method in IDEMPOTENT and upload.fits_with_head)
        else:
            self._pool.discard(app_connection)

    async def _finish_upload(self, x: Exchange, app_connection: UpstreamConnection, upload: RequestUpload) -> None:
        """Wait for the end of the request: the other protocol begins only behind it (RFC 9110 section 7.8).

        Raises Refusal, or ConnectionError if the client left.
        """
        if upload.done:
            return
        try:
            if await upload.wait_done():
                return
            error = x.body.exception()
            unknown = bad_request("The rest of the request never reached the app.")
            raise error if isinstance(error, Refusal | ConnectionError) else unknown
        except BaseException:
            upload.stop()
            self._timeouts.remove(app_connection)
            self._pool.discard(app_connection)
            raise

    async def _relay_tunnel(
        self, connection: ClientConnection, x: Exchange, app_connection: UpstreamConnection
    ) -> None:
        """Answer 101 and join both connections: what either side sends goes to the other as it is."""
        lines = [b"HTTP/1.1 101 %s\r\n" % (app_connection.reason or b"Switching Protocols")]
        lines += [b"%s: %s\r\n" % pair for pair in app_connection.headers]
        lines.append(b"X-Request-Id: %s\r\nVia: 1.1 outrigger\r\n\r\n" % x.request_id.encode())
        connection.write(b"".join(lines))
        x.status = 101
        x.response_started = True
        # The client left while the head was written: there is nothing to join any more.
        if connection.is_gone:
            self._pool.discard(app_connection)
            return
        self._timeouts.remove(app_connection)
        tunnel = Tunnel(self._loop, x.user)
        # From here on no HTTP parser sees a byte: both transports belong to the tunnel.
        self._pool.detach(app_connection)
        app, from_app = app_connection.switch_protocol(tunnel.server)
        client, from_client = connection.switch_protocol(tunnel.client)
        connection.tunnel = tunnel
        if x.permit is not None:  # a tunnel lasts for as long as its users like, and is no request at work
            x.permit.release_app()
            x.permit.release()
        tunnel.join(client, from_client, app, from_app)
        try:
            await tunnel.closed
        finally:
            tunnel.abort()  # a no-op unless this task was cancelled
            x.bytes_in, x.bytes_out = tunnel.client.bytes_received, tunnel.server.bytes_received
            self._pool.release_tunnel()
            connection.detach()


def _write_informational(
    connection: ResponseClient, x: Exchange, status: int, reason: bytes, headers: HeaderList
) -> None:
    # HTTP/1.0 knows no interim responses, and a 100 must not come twice.
    if not (x.http10 or (status == STATUS_CONTINUE and x.held is not None and x.held.continue_sent)):
        write = connection.write_continue if status == STATUS_CONTINUE else connection.write
        write(render_informational_head(status, reason, headers))
