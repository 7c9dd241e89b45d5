"""The admin listener: the admin endpoints behind a socket of their own."""

from __future__ import annotations

import socket

from aiohttp import web

from proxy.admin.endpoints import AdminEndpoints
from proxy.admin.messages import AdminRequest, AdminResponse, drop_head_body, problem_response
from proxy.errors import Refusal
from proxy.observe.emit import EmitEvent
from proxy.observe.request_ids import IdGenerator

KEEPALIVE_SECONDS = 75.0
SHUTDOWN_SECONDS = 1.0  # for responses in flight when the listener stops


class AdminListener:
    """Serves a bound socket, which it owns from `start` on."""

    def __init__(self, endpoints: AdminEndpoints, *, ids: IdGenerator, emit: EmitEvent) -> None:
        self._endpoints = endpoints
        self._ids = ids
        self._emit = emit
        self._runner: web.ServerRunner | None = None

    async def start(self, sock: socket.socket) -> None:
        # The low-level server: no router and no middleware, since AdminEndpoints routes by itself.
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=1.0,
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Responses in flight get SHUTDOWN_SECONDS; idle connections end at once. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = self._ids.choose_request_id(
            request.headers.get("X-Request-Id"), request.headers.get("X-Correlation-Id")
        )
        answer = await self._respond(request, request_id)
        response = web.Response(status=answer.status, body=answer.body)
        response.headers.clear()  # aiohttp's own Content-Type
        response.headers.extend(answer.headers)
        # Last, so that no endpoint can replace them.
        response.headers["X-Request-Id"] = request_id
        response.headers["Server"] = "outrigger"
        return response

    async def _respond(self, request: web.BaseRequest, request_id: str) -> AdminResponse:
        path, _, query = request.raw_path.partition("?")
        admin_request = AdminRequest(
            method=request.method,
            path=path,
            query=query,
            headers=request.headers.get,
            body=request.read,
            peer=request.remote or "",
            request_id=request_id,
        )
        try:
            return await self._endpoints.handle(admin_request, public=False)
        except web.HTTPRequestEntityTooLarge:  # by aiohttp's own limit, 1 MiB
            refusal = Refusal("body-too-large", 413, "Content too large", "No request here has so much to say.")
        except Exception as error:  # the outermost seam: the client gets a response, the log the reason
            self._emit(
                "admin.error",
                f"{request.method} {path} failed: {type(error).__name__}: {error}",
                level="error",
                request_id=request_id,
            )
            refusal = Refusal("internal-error", 500, "Internal error", "The log says more under this request id.")
        return drop_head_body(admin_request, problem_response(refusal, request_id))
