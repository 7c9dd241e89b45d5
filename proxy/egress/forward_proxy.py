"""Calls to other hosts than upstreams: whether one may go, its breaker lets it, and it is answered in time.

CONNECT (RFC 9110 section 9.3.6) is a tunnel whose content nobody here reads: only connecting is judged.
A request in absolute form (RFC 9112 section 3.2.2) is relayed as HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping

import aiohttp
from aiohttp import web
from yarl import URL

from proxy.egress import headers
from proxy.egress.app_response import AppResponse, ResponseHead
from proxy.egress.body import read_body
from proxy.egress.circuit_breaker import Breaker
from proxy.egress.deadline import Deadline
from proxy.egress.http_client import HttpClient, ParentProxy, read_chunk
from proxy.egress.tunnel import open_app_side
from proxy.errors import AttemptFailed, Refusal
from proxy.http.problem import CONTENT_TYPE, render_problem
from proxy.http.retry_after import round_retry_after
from proxy.http.tunnel import copy_both_ways
from proxy.observe.emit import EmitEvent
from proxy.policy.schema import Egress

MAX_HOSTS = 1000  # whose breakers and counts are kept
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
        self._client = HttpClient(proxy=parent)

    def apply(self, policy: Egress) -> None:
        self.policy = policy
        for breaker in self._breakers.values():
            breaker.reconfigure(policy.breaker)

    async def close(self) -> None:
        await self._client.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one call to another host, to its end; a refusal is a problem document (RFC 9457)."""
        sink = AppResponse(request)
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
                    ok = await (self._relay_tunnel if tunnel else self._relay_request)(
                        request, url, sink, deadline, admission
                    )
                outcome = "ok"
            except TimeoutError:
                ok = False
                # A tunnel's 200 does not pass through the sink, so it may have been sent: only breaking off is left.
                if not sink.started and not tunnel:
                    text = f"{host} did not answer in time (egress.timeout.{deadline.reason})."
                    raise Refusal("upstream-timeout", 504, "Gateway timeout", text) from None
                reason = f"time-out ({deadline.reason})"
                sink.abort()
            except AttemptFailed as failure:
                ok = False
                # Half an answer cannot become an error any more; breaking off shows the app that it is none.
                if sink.started:
                    reason = str(failure)
                    sink.abort()
                else:
                    text = f"{host} could not be reached: {failure}"
                    raise Refusal("upstream-unreachable", 502, "Bad gateway", text) from failure
            finally:
                breaker.report(admission, ok)
        except Refusal as refusal:
            outcome = "denied" if refusal.status == 403 else "refused" if refusal.status == 503 else "failed"
            reason = refusal.detail
            self._refuse(sink, refusal)
        except ConnectionError:
            outcome = "gone"
            sink.abort()
        finally:
            self._account(request.method, host, outcome, began, reason)
        return sink.response if sink.response is not None else web.Response()

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

    async def _relay_tunnel(
        self, request: web.BaseRequest, url: URL, sink: AppResponse, deadline: Deadline, admission: object
    ) -> bool:
        reader, writer = await connect_tunnel(url, self._parent(url.with_scheme("https")), self.policy.timeout.connect)
        try:
            app = open_app_side(request, CONNECT_REPLY)
            # Connected is answered: from here on only silence, or the whole time, ends it.
            deadline.commit(self.policy.timeout.idle)

            async def write(data: bytes) -> None:
                writer.write(data)
                await writer.drain()

            await copy_both_ways(app.read, app.write, lambda: reader.read(64 * 1024), write, deadline.record_progress)
            return True
        except asyncio.CancelledError:
            # Connected well, then idle: the tunnel ends, and the host is not to blame.
            if deadline.expired:
                return True
            raise
        finally:
            writer.close()
            if request.transport is not None:
                request.transport.close()

    async def _relay_request(
        self, request: web.BaseRequest, url: URL, sink: AppResponse, deadline: Deadline, admission: object
    ) -> bool:
        came = headers.fields(request.raw_headers)
        source = request.content if request.body_exists else None
        # Nothing of it is kept, since calls to other hosts are never sent again.
        body = await read_body(source, request.content_length, pass_on=True)
        response = await self._client.send(
            request.method,
            url,
            headers.outgoing(came),
            body.payload(),
            connect=self.policy.timeout.connect,
            length=body.length,
        )
        try:
            await self._relay_response(response, sink, deadline)
        finally:
            # Half read, its connection would begin the next answer with the rest of this one.
            if response.content.at_eof():
                response.release()
            else:
                response.close()
        return response.status < 500

    async def _relay_response(self, response: aiohttp.ClientResponse, sink: AppResponse, deadline: Deadline) -> None:
        said = headers.returning(headers.fields(response.raw_headers))
        length = response.headers.get("Content-Length")
        known = int(length) if length is not None and length.isdigit() else None
        await sink.write_head(ResponseHead(response.status, response.reason or "", said, known))
        deadline.commit(self.policy.timeout.idle)
        while data := await read_chunk(response):
            deadline.record_progress()
            await sink.write(data)
        await sink.write_eof()

    # ── what is said of it ───────────────────────────────────────────────────────────────────

    def _refuse(self, sink: AppResponse, refusal: Refusal) -> None:
        said = [("Content-Type", CONTENT_TYPE)]
        if refusal.retry_after is not None:
            said.append(("Retry-After", str(round_retry_after(refusal.retry_after))))
        sink.set_whole(ResponseHead(refusal.status, "", said), render_problem(refusal, ""))

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


async def connect_tunnel(
    url: URL, parent: URL | None, connect: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`parent` is a proxy that the gateway itself has to use: it is asked to connect in its turn. `connect` is
    seconds. Raises AttemptFailed."""
    to = parent if parent is not None else url
    try:
        async with asyncio.timeout(connect):
            secure = parent is not None and parent.scheme == "https"
            reader, writer = await asyncio.open_connection(to.host, to.port, ssl=secure or None)
            if parent is not None:
                writer.write(_connect_request(url, parent))
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 200" not in head.partition(b"\r\n")[0]:
                    writer.close()
                    raise AttemptFailed("connect", "the proxy on the way refused", sent=False)
            return reader, writer
    except TimeoutError:
        raise AttemptFailed("connect", "connecting took too long", sent=False) from None
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, UnicodeError) as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise AttemptFailed("connect", text, sent=False) from error


def _connect_request(url: URL, parent: URL) -> bytes:
    lines = [f"CONNECT {url.host}:{url.port} HTTP/1.1", f"Host: {url.host}:{url.port}"]
    if parent.user is not None:
        word = aiohttp.BasicAuth(parent.user, parent.password or "", "utf-8").encode()
        lines.append(f"Proxy-Authorization: {word}")
    return "\r\n".join([*lines, "", ""]).encode()


def _request_url(request: web.BaseRequest) -> URL:
    """Raises Refusal (400)."""
    target = request.raw_path
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
