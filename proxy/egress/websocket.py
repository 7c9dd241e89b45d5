"""WebSockets (RFC 6455), relayed as raw bytes both ways. Other upgrades (Java clients offer h2c) are not taken up, as
RFC 9110 section 7.8 lets any server do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from proxy.egress import error_response
from proxy.egress.app_response import AppResponse, ResponseHead
from proxy.egress.call import Call
from proxy.egress.deadline import Deadline
from proxy.egress.headers import fields, returning
from proxy.egress.http_client import discard_response, read_whole
from proxy.egress.response_head import outrigger_fields
from proxy.egress.tunnel import relay_upgrade
from proxy.egress.upstream_response import MAX_BUFFERED_RESPONSE
from proxy.errors import AttemptFailed


async def relay_websocket(
    call: Call, request: web.BaseRequest, app: AppResponse, deadline: Deadline, clock: Callable[[], float]
) -> web.StreamResponse:
    """Relay the handshake, then, after a 101, raw bytes both ways without a deadline. Raises CallRefused."""
    upstream = call.upstream
    # A breaker of its own: sockets that fail say nothing of the upstream's HTTP calls.
    breaker = upstream.breakers.breaker_of("websocket", None)
    admission = breaker.admit()
    if admission is None:
        raise error_response.upstream_unavailable(upstream.name, breaker.retry_after, held=breaker.forced is not None)
    ok: bool | None = None
    # Both are hop by hop, so what goes on does not have them.
    asked = [*call.fields, ("Connection", "Upgrade"), ("Upgrade", request.headers["Upgrade"])]
    call.attempts = 1
    try:
        response = await upstream.client.send(
            call.method, upstream.url(call.target), asked, None, connect=upstream.policy.timeout.connect
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
            await relay_upgrade(request, response, outrigger_fields(call))
            return web.Response()  # for form: the connection is closed
        body, _ = await read_whole(response, MAX_BUFFERED_RESPONSE)
        discard_response(response)
        said = returning(fields(response.raw_headers)) + outrigger_fields(call)
        return app.set_whole(ResponseHead(response.status, response.reason or "", said), body)
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
