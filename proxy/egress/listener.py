"""Where the app's outgoing calls come in: aiohttp's low-level server on a loopback address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict

from proxy.egress import error_response
from proxy.egress.app_response import ResponseHead
from proxy.errors import BindError, CallRefused

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Check = Callable[[web.BaseRequest], CallRefused | None]
MakeRefusal = Callable[[CallRefused], tuple[ResponseHead, bytes]]

APP_KEEPALIVE_SECONDS = 3600.0  # seconds: the app's pools end idle connections themselves, and then no race is lost
MAX_FIELD_SIZE = 64 * 1024
SETUP_TURNS = 3  # of the loop, within which it sets up a connection


class EgressListener:
    """The server that the app's calls come in at.

    `calls` serves requests whose path names an upstream, `hosts` those that come as to a proxy. `refuse` makes the
    answer to what is no request at all, or what `check` refuses.
    """

    def __init__(self, calls: Handler, hosts: Handler, refuse: MakeRefusal, check: Check) -> None:
        self._calls = calls
        self._check = check
        self._hosts = hosts
        self._refuse = refuse
        self._server: _Server | None = None
        self._sock: socket.socket | None = None
        self._runner: web.ServerRunner | None = None

    async def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        server = self._server = _Server(
            self._handle,
            access_log=None,
            handler_cancellation=True,  # a call whose app has left is not worth its price
            keepalive_timeout=APP_KEEPALIVE_SECONDS,
            max_line_size=MAX_FIELD_SIZE,
            max_field_size=MAX_FIELD_SIZE,
            auto_decompress=False,
        )
        server.refuse = self._refuse
        self._sock = sock
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.SockSite(self._runner, sock, backlog=512).start()
        except OSError as error:
            raise BindError(f"listen.egress cannot be listened on: {error}.") from error

    async def stop(self) -> None:
        """Take no more calls, and end those that are under way."""
        runner, self._runner = self._runner, None
        server, self._server = self._server, None
        if server is not None and self._sock is not None:
            # asyncio forgets a connection that it has taken but not set up when its server closes: first no more come.
            asyncio.get_running_loop().remove_reader(self._sock)
            for _ in range(SETUP_TURNS):
                await asyncio.sleep(0)
            server.over = True
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "CONNECT" or not request.raw_path.startswith("/"):
            return await self._hosts(request)
        why = self._check(request)
        if why is not None:
            head, body = self._refuse(why)
            return web.Response(status=head.status, headers=CIMultiDict(head.fields), body=body)
        return await self._calls(request)


class _Server(web.Server):
    refuse: MakeRefusal
    over = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if self.over:  # it was taken as the listener closed, and nobody would look at it any more
            transport.abort()

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """aiohttp answers what it cannot read in plain text, and shows the line in its log, keys and all."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        assert isinstance(self._manager, _Server)
        head, body = self._manager.refuse(error_response.unreadable_call(status, exc, MAX_FIELD_SIZE))
        answer = web.Response(status=head.status, headers=CIMultiDict(head.fields), body=body)
        answer.force_close()
        return answer
