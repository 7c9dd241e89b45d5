"""Calls to other hosts than upstreams: whether one may go, its breaker lets it, and it is answered in time.

CONNECT (RFC 9110 section 9.3.6) is a tunnel whose content nobody here reads: only connecting is judged.
A request in absolute form (RFC 9112 section 3.2.2) is relayed as HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping

from yarl import URL

from proxy.egress import headers
from proxy.egress.app_response import AppResponse, ResponseHead
from proxy.egress.body import read_body
from proxy.egress.circuit_breaker import Breaker
from proxy.egress.deadline import Deadline
from proxy.errors import AttemptFailed, Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.messages import IncomingRequest
from proxy.http.outgoing_client import OutgoingClient, OutgoingResponse, ParentProxy, basic_credentials
from proxy.http.problem import CONTENT_TYPE, render_problem
from proxy.http.retry_after import round_retry_after
from proxy.http.tunnel import Tunnel
from proxy.observe.emit import EmitEvent
from proxy.policy.schema import Egress

MAX_HOSTS = 1000  # whose breakers and counts are kept
MAX_PROXY_HEAD = 64 * 1024  # bytes of a proxy's answer to CONNECT
CONNECT_REPLY = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ForwardProxy:
    """Serves calls to other hosts than upstreams, which come as to a proxy.

    `upstream_addresses` gives the HOST:PORT of every upstream: these pass even if the policy denies other hosts.
    `new_breaker` makes a host's breaker, `parent` names the proxy that the gateway itself has to use. `on_call` is
    called with the HOST:PORT of every call that is let through.

    Attributes:
        policy: `egress` of the policy in force.
        counts: calls by "HOST OUTCOME".
    """

    def __init__(
        self,
        policy: Egress,
        *,
        upstream_addresses: Callable[[], Collection[str]],
        clock: Callable[[], float],
        emit: EmitEvent,
        new_breaker: Callable[[str], Breaker],
        parent: ParentProxy,
        on_call: Callable[[str], None] = lambda address: None,
    ) -> None:
        self.policy = policy
        self._upstream_addresses = upstream_addresses
        self._clock = clock
        self._emit = emit
        self._new_breaker = new_breaker
        self._parent = parent
        self._on_call = on_call
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self._client = OutgoingClient(proxy=parent)

    def apply(self, policy: Egress) -> None:
        self.policy = policy
        for breaker in self._breakers.values():
            breaker.reconfigure(policy.breaker)

    async def close(self) -> None:
        await self._client.close()

    async def handle(self, connection: ClientConnection, request: IncomingRequest, app: AppResponse) -> None:
        """Serve one call to another host, to its end; a refusal is a problem document (RFC 9457)."""
        host, outcome, began, reason = "", "failed", self._clock(), None
        tunnel = request.method == "CONNECT"
        try:
            url = _request_url(request)
            host = url.host or ""
            # The policy before the breaker: a denied host is never connected to, so it has no breaker.
            self._check_allowed(host, url.port)
            self._on_call(f"{host}:{url.port}")
            breaker = self._breaker_of(host)
            admission = breaker.admit()
            if admission is None:
                text = f"{host} has been failing, so it gets no calls for now."
                raise Refusal("upstream-unavailable", 503, "Unavailable", text, retry_after=breaker.retry_after)
            ok: bool | None = None
            deadline = Deadline(began, total=self.policy.timeout.total, patience=None)
            try:
                async with deadline:
                    if tunnel:
                        ok = await self._relay_tunnel(connection, url, deadline)
                    else:
                        ok = await self._relay_request(request, url, app, deadline)
                outcome = "ok"
            except TimeoutError:
                ok = False
                # A tunnel's 200 is written past `app`, so it may have been sent: only breaking off is left.
                if not app.started and not tunnel:
                    text = f"{host} did not answer in time (egress.timeout.{deadline.reason})."
                    raise Refusal("upstream-timeout", 504, "Gateway timeout", text) from None
                reason = f"time-out ({deadline.reason})"
                app.abort()
            except AttemptFailed as failure:
                ok = False
                # Half an answer cannot become an error any more; breaking off shows the app that it is none.
                if app.started:
                    reason = str(failure)
                    app.abort()
                else:
                    text = f"{host} could not be reached: {failure}"
                    raise Refusal("upstream-unreachable", 502, "Bad gateway", text) from failure
            finally:
                breaker.report(admission, ok)
        except Refusal as refusal:
            outcome = "denied" if refusal.status == 403 else "refused" if refusal.status == 503 else "failed"
            reason = refusal.detail
            self._refuse(app, refusal)
        except ConnectionError:
            outcome = "gone"
            app.abort()
        finally:
            self._account(request.method, host, outcome, began, reason)

    def _check_allowed(self, host: str, port: int | None) -> None:
        if self.policy.other_hosts == "deny" and f"{host}:{port}" not in self._upstream_addresses():
            text = f"{host}:{port} is no upstream of the policy, and others are denied (egress.other_hosts)."
            raise Refusal("host-denied", 403, "Forbidden", text)

    def _breaker_of(self, host: str) -> Breaker:
        breaker = self._breakers.get(host)
        if breaker is None:
            breaker = self._breakers[host] = self._new_breaker(host)
            if len(self._breakers) > MAX_HOSTS:
                # The app chooses the hosts. The one longest uncalled goes; its calls under way keep its breaker.
                self._breakers.popitem(last=False)
        self._breakers.move_to_end(host)
        return breaker

    # ── the two ways ─────────────────────────────────────────────────────────────────────────

    async def _relay_tunnel(self, connection: ClientConnection, url: URL, deadline: Deadline) -> bool:
        tunnel = Tunnel(asyncio.get_running_loop(), on_data=deadline.record_progress)
        parent = self._parent(url.with_scheme("https"))
        server, from_server = await dial_tunnel(tunnel, url, parent, self.policy.timeout.connect)
        try:
            if connection.is_gone:
                raise ConnectionResetError("The app has left.")
            connection.write(CONNECT_REPLY)
            client, from_client = connection.switch_protocol(tunnel.client)
            connection.tunnel = tunnel
            # Connected is answered: from here on only silence, or the whole time, ends it.
            deadline.commit(self.policy.timeout.idle)
            tunnel.join(client, from_client, server, from_server)
            await tunnel.closed
            return True
        except asyncio.CancelledError:
            # Connected well, then idle: the tunnel ends, and the host is not to blame.
            if deadline.expired:
                return True
            raise
        finally:
            tunnel.abort()
            server.abort()  # of a tunnel that was never joined
            if connection.tunnel is tunnel:
                connection.detach()

    async def _relay_request(self, request: IncomingRequest, url: URL, app: AppResponse, deadline: Deadline) -> bool:
        stated = request.headers.get("Content-Length")
        length = int(stated) if stated is not None and stated.isdigit() else None
        # Nothing of it is kept, since calls to other hosts are never sent again.
        body = await read_body(None if request.body.at_eof() else request.body, length, pass_on=True)
        response = await self._client.send(
            request.method,
            url,
            headers.outgoing(request.raw_headers),
            body.payload(),
            connect=self.policy.timeout.connect,
            length=body.length,
        )
        try:
            await self._relay_response(response, app, deadline)
        finally:
            response.release()
        return response.status < 500

    async def _relay_response(self, response: OutgoingResponse, app: AppResponse, deadline: Deadline) -> None:
        said = headers.returning(response.fields)
        length = response.headers.get("content-length")
        known = int(length) if length is not None and length.isdigit() else None
        await app.write_head(ResponseHead(response.status, response.reason, said, known))
        deadline.commit(self.policy.timeout.idle)
        while data := await response.read_chunk():
            deadline.record_progress()
            await app.write(data)

    # ── what is said of it ───────────────────────────────────────────────────────────────────

    def _refuse(self, app: AppResponse, refusal: Refusal) -> None:
        said = [("Content-Type", CONTENT_TYPE)]
        if refusal.retry_after is not None:
            said.append(("Retry-After", str(round_retry_after(refusal.retry_after))))
        app.set_whole(ResponseHead(refusal.status, "", said), render_problem(refusal, ""))

    def status(self) -> Mapping[str, object]:
        """How many calls went to which host, and how they ended."""
        return dict(self.counts)

    def _account(self, method: str, host: str, outcome: str, began: float, reason: str | None) -> None:
        key = f"{host} {outcome}"
        # Bounded as well: hosts past the limit are in the log, and not counted.
        if key in self.counts or len(self.counts) < MAX_HOSTS:
            self.counts[key] += 1
        took = round((self._clock() - began) * 1000, 3)
        self._emit(
            "call",
            f"{method} {host} {outcome}",
            level="info" if reason is None else "warning",
            host=host,
            method=method,
            outcome=outcome,
            duration_ms=took,
            reason=reason,
        )


class ProxyHandshake(asyncio.Protocol):
    """Reads the answer of a proxy that was asked to CONNECT. `done` is what came behind its head.

    It fails with AttemptFailed if the proxy refuses, or closes the connection first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[bytes] = loop.create_future()
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank_line, rest = self._received.partition(b"\r\n\r\n")
        if self.done.done():
            return
        if blank_line and b" 200" in head.partition(b"\r\n")[0]:
            self.done.set_result(rest)
        elif blank_line or len(self._received) > MAX_PROXY_HEAD:
            self.done.set_exception(AttemptFailed("connect", "the proxy on the way refused", sent=False))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(AttemptFailed("connect", "the proxy on the way closed the connection", sent=False))
            self.done.exception()  # retrieved, since whoever waited may be gone


async def dial_tunnel(tunnel: Tunnel, url: URL, parent: URL | None, connect: float) -> tuple[asyncio.Transport, bytes]:
    """The transport to the host, whose protocol is `tunnel.server`, with the bytes that have come from it.

    `parent` is a proxy that the gateway itself has to use: it is asked to connect in its turn. `connect` is seconds.
    Raises AttemptFailed.
    """
    loop = asyncio.get_running_loop()
    to = parent if parent is not None else url
    host, port = to.host or "", to.port or 0
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(connect):
            if parent is None:
                transport, _ = await loop.create_connection(lambda: tunnel.server, host, port)
                return transport, b""
            secure = True if parent.scheme == "https" else None
            transport, handshake = await loop.create_connection(lambda: ProxyHandshake(loop), host, port, ssl=secure)
            transport.write(_connect_request(url, parent))
            rest = await handshake.done
            transport.set_protocol(tunnel.server)
            return transport, rest
    except BaseException as error:
        if transport is not None:
            transport.abort()
        if isinstance(error, TimeoutError):
            raise AttemptFailed("connect", "connecting took too long", sent=False) from None
        if isinstance(error, OSError | UnicodeError):
            text = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise AttemptFailed("connect", text, sent=False) from error
        raise


def _connect_request(url: URL, parent: URL) -> bytes:
    lines = [f"CONNECT {url.host}:{url.port} HTTP/1.1", f"Host: {url.host}:{url.port}"]
    if parent.user is not None:
        lines.append(f"Proxy-Authorization: {basic_credentials(parent)}")
    return "\r\n".join([*lines, "", ""]).encode()


def _request_url(request: IncomingRequest) -> URL:
    """Raises Refusal (400)."""
    target = request.target
    try:
        if request.method == "CONNECT":
            url = URL(f"http://{target}", encoded=True)
            if url.host is None or ":" not in target:
                raise ValueError(target)
            return url
        url = URL(target, encoded=True)
        if url.scheme != "http" or not url.host:
            raise ValueError(target)
        return url
    except ValueError:
        text = "A proxy takes CONNECT HOST:PORT, or http://HOST/PATH; an upstream is called by /NAME/PATH."
        raise Refusal("bad-request", 400, "Bad request", text) from None
