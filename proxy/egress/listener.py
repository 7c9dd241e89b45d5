"""Where the app's outgoing calls come in: a loopback address, and who may call at it.

A browser on the same machine can be sent to a loopback address by any page, or rebound to it by a name of the page's
own. What gives it away is the Host that it asks for, its Origin, and Fetch metadata (W3C), which no page can write.
A proxy's requests (CONNECT, absolute form) are asked none of this: no page can make any.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Collection
from functools import lru_cache

from proxy.egress import error_response
from proxy.egress.app_response import AppResponse, ResponseHead
from proxy.errors import CallRefused, Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.listener import Listener
from proxy.http.messages import IncomingRequest
from proxy.policy.urls import host_of, is_loopback

Serve = Callable[[ClientConnection, IncomingRequest, AppResponse], Awaitable[None]]
Check = Callable[[ClientConnection, IncomingRequest], CallRefused | None]
MakeRefusal = Callable[[CallRefused], tuple[ResponseHead, bytes]]

MAX_HEAD = 64 * 1024  # bytes of a call's head

# Names that nobody can own in the public DNS, so that no page can rebind one: without a dot (RFC 7085; a container's,
# /etc/hosts), and below .internal (reserved by ICANN; host.docker.internal).
_PRIVATE = re.compile(r"[a-z0-9_-]+|[a-z0-9_.-]+\.internal")


class EgressListener:
    """The server that the app's calls come in at.

    `serve_call` serves requests whose path names an upstream, `serve_host` those that come as to a proxy. `refuse`
    makes the answer to what is no request at all, or what `check` refuses.
    """

    def __init__(self, serve_call: Serve, serve_host: Serve, refuse: MakeRefusal, check: Check) -> None:
        self._serve_call = serve_call
        self._serve_host = serve_host
        self._refuse = refuse
        self._check = check
        self._listener = Listener(
            "listen.egress",
            self._handle,
            self._refuse_unreadable,
            max_header=MAX_HEAD,
            evicts_idle=True,
            accepts_connect=True,
        )

    async def start(self, sock: socket.socket) -> None:
        """Raises BindError."""
        self._listener.start(sock)

    async def stop(self) -> None:
        """Take no more calls, and end those that are under way. When it returns, each has settled what it cost."""
        await self._listener.stop()

    async def _handle(self, connection: ClientConnection, request: IncomingRequest) -> bool:
        """Serve one request. True if its connection may serve another one."""
        app = AppResponse(connection, request)
        try:
            if request.method == "CONNECT" or not request.target.startswith("/"):
                await self._serve_host(connection, request, app)
            elif (refused := self._check(connection, request)) is not None:
                app.set_whole(*self._refuse(refused))
            else:
                await self._serve_call(connection, request, app)
            # Written last: an app that reads the end of its answer finds all that is told of it.
            app.finish()
            if connection.writing_paused:
                await connection.drain()
        except asyncio.CancelledError:
            # The app has left, or its own request was abandoned: a call that nobody waits for has no answer.
            connection.abort()
            raise
        return app.keep_alive

    def _refuse_unreadable(self, connection: ClientConnection, refusal: Refusal) -> None:
        """Answer what is no request. The refusal's own words are not shown: they may quote a line with a key in it."""
        head, body = self._refuse(error_response.unreadable_call(refusal.status, MAX_HEAD))
        lines = [f"HTTP/1.1 {head.status} {refusal.title}", *(f"{name}: {value}" for name, value in head.fields)]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "\r\n"]
        connection.write("\r\n".join(lines).encode() + body)


class OriginCheck:
    """Checks the Host, Origin and Fetch metadata of a call.

    `upstream_hosts` gives the hosts of the upstreams: an app may state one as its Host, and no stranger can have that
    name lead here. `is_request_token` says whether a token belongs to a request that came in: a call with such a token
    is the app's, even if it carries along the fields that a page sent to the app.
    """

    def __init__(self, upstream_hosts: Callable[[], Collection[str]], is_request_token: Callable[[str], bool]) -> None:
        self._upstream_hosts = upstream_hosts
        self._is_request_token = is_request_token

    def check(self, connection: ClientConnection, request: IncomingRequest) -> CallRefused | None:
        """Why this call is refused, if it is."""
        fields = request.headers
        host = fields.get("Host")
        if host is not None and not _is_local(host) and not self._is_expected_host(host, connection):
            return error_response.misdirected_call()
        origin, site = fields.get("Origin"), fields.get("Sec-Fetch-Site")
        if origin is None and site is None:
            return None
        if site in ("same-origin", "same-site", "none"):
            return None  # of a page of the app's own, whose fields the app passed on
        if origin is None and site != "cross-site":
            return None
        if origin is not None and _is_local(origin.partition("://")[2]):
            return None
        token = fields.get("X-Outrigger-Request")
        return None if token is not None and self._is_request_token(token) else error_response.cross_site_call()

    def _is_expected_host(self, host: str, connection: ClientConnection) -> bool:
        name = host_of(host)
        if _PRIVATE.fullmatch(name) or name in self._upstream_hosts():
            return True
        # If the policy opened another address than loopback, whoever comes in there may call it by any name.
        at = connection.transport.get_extra_info("sockname") if connection.transport is not None else None
        return at is not None and not is_loopback(str(at[0]))


@lru_cache(maxsize=64)
def _is_local(host: str) -> bool:
    return is_loopback(host_of(host))
