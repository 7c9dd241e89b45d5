"""The admin listener: `Endpoints` behind a socket of its own."""

from __future__ import annotations

import socket

from aiohttp import web

from proxy.admin.endpoints import AdminAnswer, AdminRequest, Endpoints
from proxy.admin.messages import bare, problem
from proxy.errors import Refusal
from proxy.observe.emit import Emit
from proxy.observe.request_ids import Ids

KEEPALIVE = 75.0
STOP = 1.0  # seconds that answers under way have when the listener stops


class AdminListener:
    """Serves a bound socket, which it owns from `start` on."""

    def __init__(self, endpoints: Endpoints, *, ids: Ids, emit: Emit) -> None:
        self._endpoints = endpoints
        self._ids = ids
        self._emit = emit
        self._runner: web.ServerRunner | None = None

    async def start(self, sock: socket.socket) -> None:
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE,
            lingering_time=1.0,
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=STOP)
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Answers under way get a second, idle connections end at once. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = self._ids.request_id(request.headers.get("X-Request-Id"), request.headers.get("X-Correlation-Id"))
        answer = await self._answer(request, request_id)
        response = web.Response(status=answer.status, body=answer.body)
        response.headers.clear()
        response.headers.extend(answer.headers)
        response.headers["X-Request-Id"] = request_id
        response.headers["Server"] = "outrigger"
        return response

    async def _answer(self, request: web.BaseRequest, request_id: str) -> AdminAnswer:
        path, _, query = request.raw_path.partition("?")
        asked = AdminRequest(
            method=request.method,
            path=path,
            query=query,
            headers=request.headers.get,
            body=request.read,
            peer=request.remote or "",
            request_id=request_id,
        )
        try:
            return await self._endpoints.answer(asked, public=False)
        except web.HTTPRequestEntityTooLarge:  # by aiohttp's own limit, 1 MiB
            refusal = Refusal("body-too-large", 413, "Content too large", "No request here has so much to say.")
        except Exception as error:  # outermost: whoever asks gets an answer, the log gets the reason
            self._emit(
                "admin.error",
                f"{request.method} {path} failed: {type(error).__name__}: {error}",
                level="error",
                request_id=request_id,
            )
            refusal = Refusal("internal-error", 500, "Internal error", "The log says more under this request id.")
        return bare(asked, problem(refusal, request_id))
