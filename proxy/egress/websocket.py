"""WebSockets (RFC 6455), relayed as raw bytes both ways. Other upgrades (Java clients offer h2c) are not taken up, as
RFC 9110 section 7.8 lets any server do."""

from __future__ import annotations

import asyncio

from proxy.egress import error_response
from proxy.egress.app_response import AppResponse, ResponseHead
from proxy.egress.call import Call
from proxy.egress.deadline import Deadline
from proxy.egress.headers import returning
from proxy.egress.response_head import outrigger_fields
from proxy.egress.upstream_response import MAX_BUFFERED_RESPONSE
from proxy.errors import AttemptFailed
from proxy.http.client_connection import ClientConnection
from proxy.http.outgoing_client import OutgoingResponse
from proxy.http.tunnel import Tunnel


async def relay_websocket(
    call: Call, connection: ClientConnection, protocol: str, app: AppResponse, deadline: Deadline
) -> None:
    """Relay the handshake, then, after a 101, raw bytes both ways without a deadline. `protocol` is what the app's
    Upgrade field says. Raises CallRefused."""
    upstream = call.upstream
    clock = asyncio.get_running_loop().time
    # A breaker of its own: sockets that fail say nothing of the upstream's HTTP calls.
    breaker = upstream.breakers.breaker_of("websocket", None)
    admission = breaker.admit()
    if admission is None:
        raise error_response.upstream_unavailable(upstream.name, breaker.retry_after, held=breaker.forced is not None)
    ok: bool | None = None
    call.attempts = 1
    try:
        response = await upstream.client.send(
            call.method,
            upstream.url(call.target),
            call.fields,
            None,
            connect=upstream.policy.timeout.connect,
            upgrade=protocol,
        )
        upstream.count_attempt("ok" if response.status < 400 else str(response.status))
        call.status, call.first_byte_at = response.status, clock()
        # A 4xx is the doing of the app, and says nothing of the upstream.
        ok = None if 400 <= response.status < 500 else response.status < 400
        call.outcome = "ok" if response.status < 500 else "error"
        if response.status == 101:
            deadline.disable()
            # Judged by its handshake: a socket may stay open for days, and a probe's end cannot wait for that.
            breaker.report(admission, ok)
            await _relay_frames(call, connection, response)
            return
        try:
            body, _ = await response.read_whole(MAX_BUFFERED_RESPONSE)
        finally:
            response.release()
        said = returning(response.fields) + outrigger_fields(call)
        app.set_whole(ResponseHead(response.status, response.reason, said), body)
    except AttemptFailed as failure:
        ok = False
        upstream.count_attempt(failure.reason)
        raise error_response.upstream_unreachable(upstream.name, failure, 1) from failure
    except asyncio.CancelledError:
        # Only a time of the upstream's own says that it is slow.
        ok = False if ok is None and deadline.expired and deadline.reason != "request" else ok
        raise
    finally:
        breaker.report(admission, ok)


async def _relay_frames(call: Call, connection: ClientConnection, response: OutgoingResponse) -> None:
    """Pass the upstream's 101 on, and from here on everything, until both sides have ended."""
    if connection.is_gone:
        response.close()
        raise ConnectionResetError("The app has left.")
    lines = [f"HTTP/1.1 101 {response.reason or 'Switching Protocols'}\r\n".encode()]
    lines += [b"%s: %s\r\n" % pair for pair in response.raw_headers]
    lines += [f"{name}: {value}\r\n".encode() for name, value in outrigger_fields(call)]
    connection.write(b"".join(lines) + b"\r\n")
    tunnel = Tunnel(asyncio.get_running_loop())
    server, from_server = response.switch_protocol(tunnel.server)
    client, from_client = connection.switch_protocol(tunnel.client)
    connection.tunnel = tunnel
    tunnel.join(client, from_client, server, from_server)
    try:
        await tunnel.closed
    finally:
        tunnel.abort()  # a no-op unless this task was cancelled
        connection.detach()
