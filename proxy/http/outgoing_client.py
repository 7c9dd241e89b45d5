"""A lean HTTP/1.1 client: connections to an origin are kept and used again, one request on each at a time.

aiohttp's connector resolves names (and keeps them), dials (RFC 8305, "happy eyeballs"), does TLS with session
resumption, and asks a forward proxy on the way. Once it is connected, an `UpstreamConnection` takes the transport, as
the database door does with asyncpg's. aiohttp's own client makes a request, a response, a writer, a timer and several
dictionaries of headers each time: a third of what a call cost.

An idle connection that its server has closed is known to be closed, since the loop goes on reading it. Whether a server
that closes at the very moment of a new request has read that request cannot be known (RFC 9112 section 9.3.1), so
nothing is sent again here: that is for the policy's retries to decide.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from urllib import request

import aiohttp
from yarl import URL

from proxy.errors import AttemptFailed, PeerMisframed, PeerUnreachable, Refusal
from proxy.http.aiohttp_loading import trusted_context
from proxy.http.messages import HeaderList
from proxy.http.upstream_connection import UpstreamConnection

IDLE_SECONDS = 60.0  # that an idle connection is kept; vendors close theirs after minutes
SWEEP_SECONDS = 5.0  # between two looks for connections that have been idle for too long
DNS_TTL = 30  # seconds that an address is believed: a vendor that moves is followed
MAX_HEAD = 64 * 1024  # bytes of a response's head
MAX_READ_AHEAD = 256 * 1024  # bytes of a body that are read before somebody asks for them
NO_BODY_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))  # without a body they state no length

Fields = list[tuple[str, str]]
ParentProxy = Callable[[URL], URL | None]
Origin = tuple[str, str | None, int | None]


class SendProgress:
    """Whether a byte of a request is on its way: from then on nobody knows what the server makes of it."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False


class OutgoingResponse:
    """A response whose head has come; its body is read by `read_chunk`, with backpressure.

    `status` and `reason`; `raw_headers` as they came, `fields` the same as text, `headers` by lower-case name, the
    first of each.
    """

    __slots__ = (
        "_chunks",
        "_client",
        "_connection",
        "_finished",
        "_origin",
        "_size",
        "_upload",
        "_waiter",
        "fields",
        "headers",
        "raw_headers",
        "reason",
        "status",
    )

    def __init__(
        self,
        client: OutgoingClient,
        origin: Origin,
        connection: UpstreamConnection,
        upload: asyncio.Task[None] | None,
    ) -> None:
        self._client = client
        self._origin = origin
        self._connection: UpstreamConnection | None = connection
        self._upload = upload
        self._chunks: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self.status = connection.status
        self.reason = connection.reason.decode("latin-1")
        self.raw_headers: HeaderList = connection.headers
        self.fields: Fields = []
        self.headers: dict[str, str] = {}
        for raw_name, raw_value in connection.headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("utf-8", "surrogateescape")
            self.fields.append((name, value))
            self.headers.setdefault(name.lower(), value)
        # A body that came together with its head is all here already, and costs no future.
        self._finished = None if connection.upgraded else connection.stream_body(self)
        if self._finished is not None:
            self._finished.add_done_callback(self._wake)

    def __repr__(self) -> str:
        return f"<OutgoingResponse {self.status}{'' if self._connection is not None else ', released'}>"

    @property
    def at_eof(self) -> bool:
        """Whether all of the body has been read."""
        ended = self._finished is None or (self._finished.done() and self._finished.exception() is None)
        return ended and not self._chunks

    def write_body(self, data: bytes) -> bool:
        """The connection's side: takes what comes. False asks it to pause."""
        self._chunks.append(data)
        self._size += len(data)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return self._size <= MAX_READ_AHEAD

    async def read_chunk(self) -> bytes:
        """The next bytes of the body, empty at its end. Raises AttemptFailed if it breaks off."""
        while not self._chunks:
            finished = self._finished
            if finished is None:
                return b""
            if finished.done():
                error = finished.exception()
                if error is None:
                    return b""
                raise attempt_failure(error)
            self._waiter = self._client.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunks, self._chunks = self._chunks, []
        self._size = 0
        if self._connection is not None and self._connection.reading_paused:
            self._connection.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_whole(self, most: int) -> tuple[bytes, bool]:
        """The body, and whether that is all of it: past `most` bytes the rest is still to come. Raises
        AttemptFailed."""
        data = await self.read_chunk()
        if not data or (self._finished is None and len(data) <= most):
            return data, True
        parts, size = [data], len(data)
        while size <= most:
            data = await self.read_chunk()
            if not data:
                return b"".join(parts), True
            parts.append(data)
            size += len(data)
        return b"".join(parts), False

    def switch_protocol(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Hand the transport of a 101 over to another protocol, with the bytes that have come for it."""
        connection, self._connection = self._connection, None
        assert connection is not None
        self._client.forget(connection)
        return connection.switch_protocol(protocol)

    def release(self) -> None:
        """Give the connection back if the response was read to its end, else close it. To be called again to no
        effect."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        upload = self._upload
        if upload is not None and not upload.done():
            upload.cancel()  # the server has answered without the rest
        elif self.at_eof and (upload is None or not upload.cancelled()):
            self._client.keep(self._origin, connection)
            return
        self._client.discard(connection)

    def close(self) -> None:
        """Give up the rest of the response: its connection is closed."""
        connection, self._connection = self._connection, None
        if self._upload is not None:
            self._upload.cancel()
        if connection is not None:
            self._client.discard(connection)

    def _wake(self, finished: asyncio.Future[None]) -> None:
        if not finished.cancelled():
            finished.exception()  # retrieved, since nobody may read on
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class OutgoingClient:
    """Sends requests, and keeps the connections. `proxy` names the proxy on the way to a URL, if any.

    There is no limit of connections: whoever sends bounds them, and refuses with a reason.
    """

    def __init__(self, *, proxy: ParentProxy = lambda url: None) -> None:
        self.loop = asyncio.get_running_loop()
        self._proxy = proxy
        self._connector: aiohttp.TCPConnector | None = None
        self._idle: dict[Origin, deque[UpstreamConnection]] = {}
        self._connections: set[UpstreamConnection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<OutgoingClient {self.in_use} connections in use, {self.idle} idle>"

    @property
    def idle(self) -> int:
        return sum(map(len, self._idle.values()))

    @property
    def in_use(self) -> int:
        """Connections with a request under way; tunnels do not count."""
        return len(self._connections) - self.idle

    @property
    def closed(self) -> bool:
        return self._closed

    async def send(
        self,
        method: str,
        url: URL,
        fields: Fields,
        body: bytes | AsyncIterator[bytes] | None,
        *,
        connect: float,
        length: int | None = None,
        progress: SendProgress | None = None,
        upgrade: str | None = None,
    ) -> OutgoingResponse:
        """Send a request and read the head of its response. `connect` is seconds for name, TCP and TLS together.

        `fields` are sent as they are, beside Host and the framing; `length` is that of a `body` in pieces, if it is
        known. `upgrade` is the protocol asked for. Redirects, cookies, compression and credentials are the caller's
        business. Raises AttemptFailed; whatever the body's iterator raises goes through.
        """
        parent = self._proxy(url)
        head = _render_head(method, url, fields, body, length, parent, upgrade)
        origin = (url.scheme, url.raw_host, url.port)
        connection = self._take_idle(origin)
        if connection is None:
            connection = await self._connect(url, parent, connect)
        if progress is not None:
            progress.begun = True
        upload: asyncio.Task[None] | None = None
        if isinstance(body, bytes):
            came = connection.send_request(head + body, method, upgrade, None)
        else:
            came = connection.send_request(head, method, upgrade, None)
            if body is not None:
                upload = self.loop.create_task(_send_body(connection, body, chunked=length is None))
                upload.add_done_callback(lambda task: _end_upload(connection, task))
        try:
            await came
        except BaseException as error:
            # Cancellation included: the rest of half an exchange must not meet the connection's next request.
            if upload is not None:
                upload.cancel()
            self.discard(connection)
            if isinstance(error, PeerUnreachable):
                raise attempt_failure(error, answered=False) from error
            raise
        return OutgoingResponse(self, origin, connection, upload)

    async def close(self) -> None:
        """Close the connections, those in use too."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        for connection in list(self._connections):
            connection.abort()
        self._connections.clear()
        connector, self._connector = self._connector, None
        if connector is not None:
            await connector.close()

    # ── what a response gives back ───────────────────────────────────────────────────────────

    def keep(self, origin: Origin, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request if it can serve one, else close it."""
        if self._closed or not connection.reusable:
            self.discard(connection)
            return
        connection.idle_since = self.loop.time()
        self._idle.setdefault(origin, deque()).append(connection)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def discard(self, connection: UpstreamConnection) -> None:
        self._connections.discard(connection)
        connection.abort()

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection has become a tunnel, which whoever made it will close."""
        self._connections.discard(connection)

    # ── connections ──────────────────────────────────────────────────────────────────────────

    def _take_idle(self, origin: Origin) -> UpstreamConnection | None:
        """The connection that was used last, since it is the least likely to be closed just now; or None."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.is_closed and connection.idle_since > self.loop.time() - IDLE_SECONDS:
                return connection
            self.discard(connection)
        return None

    async def _connect(self, url: URL, parent: URL | None, seconds: float) -> UpstreamConnection:
        """Raises AttemptFailed; nothing was sent."""
        if self._connector is None:
            self._connector = aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=DNS_TTL)
        # From `ceil_threshold` on, by default 5 s, aiohttp rounds time-outs up to whole seconds.
        timeout = aiohttp.ClientTimeout(total=None, connect=seconds, ceil_threshold=3600.0)
        try:
            secure = url.scheme == "https" or (parent is not None and parent.scheme == "https")
            trust = trusted_context() if secure else True
            asked = aiohttp.ClientRequest("GET", url, loop=self.loop, proxy=parent, ssl=trust)
            dialled = await self._connector.connect(asked, [], timeout)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise dial_failure(error) from error
        transport, protocol = dialled.transport, dialled.protocol
        assert transport is not None
        assert protocol is not None
        connection = UpstreamConnection(self.loop, peer_name="It", max_head=MAX_HEAD, lenient=True, joins_chunks=True)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        # aiohttp lets go of a connection by closing its protocol, which closes a transport that it still has.
        protocol.transport = None
        dialled.close()
        if self._closed:
            connection.abort()
            raise AttemptFailed("connect", "the gateway is closing", sent=False)
        self._connections.add(connection)
        return connection

    def _sweep(self) -> None:
        oldest = self.loop.time() - IDLE_SECONDS
        for origin, idle in list(self._idle.items()):
            while idle and (idle[0].is_closed or idle[0].idle_since <= oldest):
                self.discard(idle.popleft())
            if not idle:
                del self._idle[origin]
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep) if self._idle else None


def _render_head(
    method: str,
    url: URL,
    fields: Fields,
    body: bytes | AsyncIterator[bytes] | None,
    length: int | None,
    parent: URL | None,
    upgrade: str | None,
) -> bytes:
    """Raises AttemptFailed if a field has a line break in it, which would begin a field of its own."""
    target = url.raw_path_qs
    lines = ["", f"Host: {url.host_port_subcomponent}"]
    if parent is not None and url.scheme == "http":
        # Absolute form, as a proxy is asked (RFC 9112 section 3.2.2); through TLS it is asked to CONNECT instead.
        target = str(url.with_user(None).with_fragment(None))
        if parent.user is not None:
            lines.append(f"Proxy-Authorization: {basic_credentials(parent)}")
    lines[0] = f"{method} {target} HTTP/1.1"
    if url.user is not None:  # credentials in the policy's base_url
        fields = [(name, value) for name, value in fields if name.lower() != "authorization"]
        lines.append(f"Authorization: {basic_credentials(url)}")
    lines += [f"{name}: {value}" for name, value in fields]
    if isinstance(body, bytes):
        lines.append(f"Content-Length: {len(body)}")
    elif body is not None:
        lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    elif method not in NO_BODY_METHODS:
        lines.append("Content-Length: 0")
    if upgrade is not None:
        lines.append(f"Connection: Upgrade\r\nUpgrade: {upgrade}")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 + (upgrade is not None) or head.count("\r") != head.count("\n"):
        raise AttemptFailed("reset", "a field of its request has a line break in it", sent=False)
    return (head + "\r\n\r\n").encode("utf-8", "surrogateescape")


def basic_credentials(url: URL) -> str:
    """The Authorization of RFC 7617 that a URL's user and password stand for."""
    return "Basic " + b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()


async def _send_body(connection: UpstreamConnection, body: AsyncIterator[bytes], *, chunked: bool) -> None:
    """Raises what the body's iterator raises."""
    try:
        async for data in body:
            if not data:
                continue
            if chunked:
                connection.write_chunk(data)
            else:
                connection.write(data)
            await connection.drain()
        if chunked:
            connection.write(b"0\r\n\r\n")
    except PeerUnreachable:
        pass  # whoever waits for the response is told


def _end_upload(connection: UpstreamConnection, task: asyncio.Task[None]) -> None:
    """A body that broke off on its way breaks the exchange off: half of it must not pass for a whole one."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not connection.complete:
        connection.fail(error if isinstance(error, Exception) else ConnectionResetError("The body broke off."))


def attempt_failure(error: BaseException, *, answered: bool = True) -> AttemptFailed:
    """The AttemptFailed for a connection that broke. `answered`: the head of a response has come.

    What is not known to have failed before anything was sent counts as sent: a vendor that has the request may bill it.
    """
    if isinstance(error, AttemptFailed):
        return error
    if isinstance(error, PeerMisframed):
        return AttemptFailed("reset", f"its answer is no sound HTTP: {error.why}", sent=True)
    if isinstance(error, PeerUnreachable) and not answered:
        return AttemptFailed("reset", "it closed the connection without an answer", sent=True)
    if isinstance(error, Refusal):
        return AttemptFailed("reset", str(error), sent=True)
    return AttemptFailed("reset", "its answer broke off", sent=True)


def dial_failure(error: Exception) -> AttemptFailed:
    """The AttemptFailed for an exception of aiohttp's connector; nowhere else is one told from another."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return AttemptFailed("certificate", f"its certificate is not valid: {text}", sent=False)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return AttemptFailed("connect", f"its name could not be resolved: {text}", sent=False)
    if isinstance(error, TimeoutError):
        return AttemptFailed("connect", "connecting took too long", sent=False)
    return AttemptFailed("connect", text, sent=False)


def find_parent_proxies(environ: Mapping[str, str]) -> ParentProxy:
    """Which proxy the gateway itself has to use for a URL, by HTTPS_PROXY, HTTP_PROXY and NO_PROXY of its environment.

    As in curl and Python, lower case wins, and HTTP_PROXY in upper case does not count if a CGI's REQUEST_METHOD is set
    (httpoxy).
    """
    found: dict[str, str] = {}
    for scheme in ("http", "https", "no"):
        value = environ.get(f"{scheme}_proxy") or environ.get(f"{scheme.upper()}_PROXY")
        if value and not (scheme == "http" and "REQUEST_METHOD" in environ and f"{scheme}_proxy" not in environ):
            found[scheme] = value
    if not found:
        return lambda url: None

    def parent(url: URL) -> URL | None:
        value = found.get({"ws": "http", "wss": "https"}.get(url.scheme, url.scheme))
        host = url.host or ""
        # A parent proxy elsewhere would take loopback for its own machine.
        if value is None or host in ("localhost", "127.0.0.1", "::1") or _bypassed(host, found):
            return None
        return URL(value if "://" in value else f"http://{value}")

    return parent


def _bypassed(host: str, found: Mapping[str, str]) -> bool:
    bypassed: bool = request.proxy_bypass_environment(host, found)  # type: ignore[attr-defined]  # not in its stubs
    return bypassed
