"""The admin listener: the admin endpoints behind a socket of their own."""

from __future__ import annotations

import asyncio
import socket
import time
from http import HTTPStatus

from proxy.admin.endpoints import AdminEndpoints
from proxy.admin.messages import AdminRequest, AdminResponse, drop_head_body, problem_response
from proxy.errors import Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.listener import Listener
from proxy.http.messages import IncomingRequest
from proxy.http.problem import http_date
from proxy.http.request_errors import request_too_slow
from proxy.observe.emit import EmitEvent
from proxy.observe.request_ids import IdGenerator

MAX_HEAD = 32 * 1024  # bytes of a request's head
MAX_BODY = 1024 * 1024  # bytes: a login is all that has one
SWEEP_SECONDS = 1.0  # between two looks for connections that have used up their time
HEAD_SECONDS = 20.0  # for a head to come whole; and a body is waited for as long, from its last byte on
KEEPALIVE_SECONDS = 75.0
STALL_SECONDS = 60.0  # for a client that reads nothing of a response


class AdminListener:
    """Serves a bound socket, which it owns from `start` on."""

    def __init__(self, endpoints: AdminEndpoints, *, ids: IdGenerator, emit: EmitEvent) -> None:
        self._endpoints = endpoints
        self._ids = ids
        self._emit = emit
        # Who is in stays in: when descriptors are short an operator looks for the reason here.
        self._listener = Listener(
            "listen.admin", self._handle, self._refuse_unreadable, max_header=MAX_HEAD, evicts_idle=False
        )
        self._loop = asyncio.get_running_loop()
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        self._listener.start(sock)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    async def stop(self) -> None:
        """Responses in flight get a second; idle connections end at once. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._listener.stop()

    async def _handle(self, connection: ClientConnection, request: IncomingRequest) -> bool:
        """Serve one request. True if its connection may serve another one."""
        header = request.headers.get
        request_id = self._ids.choose_request_id(header("X-Request-Id"), header("X-Correlation-Id"))
        answer = await self._respond(connection, request, request_id)
        # Where an unread body ends, and the next request begins, nobody knows.
        keep_alive = not (request.should_close or connection.body_incomplete)
        connection.response_started = True
        connection.write(_render_head(answer, request_id, keep_alive, request.http10) + answer.body)
        await connection.drain()
        return keep_alive

    async def _respond(self, connection: ClientConnection, request: IncomingRequest, request_id: str) -> AdminResponse:
        path, _, query = request.target.partition("?")

        async def read_body() -> bytes:
            return await _read_body(connection, request)

        admin_request = AdminRequest(
            method=request.method,
            path=path,
            query=query,
            headers=request.headers.get,
            body=read_body,
            peer=request.peer,
            request_id=request_id,
        )
        try:
            return await self._endpoints.handle(admin_request, public=False)
        except ConnectionError:
            raise  # the client left
        except Exception as error:  # the outermost seam: the client gets a response, the log the reason
            self._emit(
                "admin.error",
                f"{request.method} {path} failed: {type(error).__name__}: {error}",
                level="error",
                request_id=request_id,
            )
            refusal = Refusal("internal-error", 500, "Internal error", "The log says more under this request id.")
        return drop_head_body(admin_request, problem_response(refusal, request_id))

    def _refuse_unreadable(self, connection: ClientConnection, refusal: Refusal) -> None:
        request_id = self._ids.new_token()
        answer = problem_response(refusal, request_id)
        connection.write(_render_head(answer, request_id, False, False) + answer.body)

    def _sweep(self) -> None:
        """End the connections that have used up their time. A request that is being worked on has no time-out."""
        now = self._loop.time()
        for connection in list(self._listener.connections):
            if connection.stalled_since:
                if now - connection.stalled_since > STALL_SECONDS:
                    connection.abort()
            elif connection.busy:
                waits_for_body = connection.body_incomplete and not connection.reading_paused
                if waits_for_body and now - connection.last_read > HEAD_SECONDS:
                    connection.reject_input(request_too_slow("body"))
            elif connection.head_started_at:
                if now - connection.head_started_at > HEAD_SECONDS:
                    connection.reject_input(request_too_slow("head"))
            elif now - connection.idle_since > KEEPALIVE_SECONDS:
                connection.close()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)


async def _read_body(connection: ClientConnection, request: IncomingRequest) -> bytes:
    """Raises Refusal if it is too large or does not come, ConnectionError if the client leaves."""
    if connection.awaits_continue:
        connection.write_continue(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    while not request.body.at_eof():
        body += await request.body.readany()
        if len(body) > MAX_BODY:
            raise Refusal("body-too-large", 413, "Content too large", "No request here has so much to say.")
    return bytes(body)


def _render_head(answer: AdminResponse, request_id: str, keep_alive: bool, http10: bool) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    lines += [f"Date: {http_date(int(time.time())).decode()}", "Server: outrigger", f"X-Request-Id: {request_id}"]
    if not keep_alive:
        lines.append("Connection: close")
    elif http10:
        lines.append("Connection: keep-alive")
    return "\r\n".join([*lines, "\r\n"]).encode("utf-8", "surrogateescape")
