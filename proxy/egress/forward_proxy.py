"""The life of a call to another host: may it go, does its breaker let it, does it answer in time.

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
    """`named` are the HOST:PORT of upstreams: those pass even where others are denied. `passed` is told the
    HOST:PORT of every call that passes."""

    def __init__(
        self,
        policy: Egress,
        *,
        named: Callable[[], Collection[str]],
        clock: Callable[[], float],
        emit: EmitEvent,
        gate: Callable[[str], Breaker],
        parent: ParentProxy,
        passed: Callable[[str], None] = lambda address: None,
    ) -> None:
        self.policy = policy
        self._upstream_addresses = named
        self._clock = clock
        self._emit = emit
        self._new_breaker = gate
        self._parent = parent
        self._on_call = passed
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()
        self.counts: Counter[str] = Counter()  # by "host outcome"
        self._client = HttpClient(proxy=parent)

    def apply(self, policy: Egress) -> None:
        self.policy = policy
        for breaker in self._breakers.values():
            breaker.reconfigure(policy.breaker)

    async def close(self) -> None:
        await self._client.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        sink = AppResponse(request)
        host, outcome, began, reason = "", "failed", self._clock(), None
        tunnel = request.method == "CONNECT"
        try:
            url = _request_url(request)
            host = url.host or ""
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
                if not sink.started and not tunnel:
                    text = f"{host} did not answer in time (egress.timeout.{deadline.reason})."
                    raise Refusal("upstream-timeout", 504, "Gateway timeout", text) from None
                reason = f"time-out ({deadline.reason})"
                sink.abort()
            except AttemptFailed as failure:
                ok = False
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
            deadline.commit(self.policy.timeout.idle)

            async def write(data: bytes) -> None:
                writer.write(data)
                await writer.drain()

            await copy_both_ways(app.read, app.write, lambda: reader.read(64 * 1024), write, deadline.record_progress)
            return True
        except asyncio.CancelledError:
            if deadline.expired:  # connected well, then idle: the tunnel ends, the host is not to blame
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
