"""What both listeners answer themselves: health, readiness, metrics, status. No sockets here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from proxy.admin.ctl import Ctl
from proxy.admin.guard import check_local
from proxy.admin.token import TokenGate
from proxy.errors import Refusal
from proxy.observe.health import Health
from proxy.observe.lines import json_text
from proxy.observe.metrics import Metrics
from proxy.problem import CONTENT_TYPE, render_problem, whole_seconds

Header = tuple[str, str]


async def _no_body() -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """`path` is as sent, `/_outrigger` taken off; `headers` takes a name in lower case.

    `peer` is the client's IP address, after `trusted_proxies` on the public listener.
    """

    method: str
    path: str
    headers: Callable[[str], str | None]
    peer: str
    query: str = ""
    request_id: str = ""
    body: Callable[[], Awaitable[bytes]] = field(default=_no_body)


@dataclass(frozen=True, slots=True)
class AdminAnswer:
    """`headers` are complete but for what the listener adds to every answer (Date, Server, request id).

    Content-Length is among them, for HEAD too, whose `body` is empty.
    """

    status: int
    headers: list[Header]
    body: bytes


Answer = Callable[[AdminRequest, bool], Awaitable[AdminAnswer]]

_INDEX = """Outrigger {version}

healthz   how the app and the gateway are
readyz    whether a request would be served now
metrics   for Prometheus
status    everything, as JSON
ctl/…     what an operator does (POST)
"""


class Endpoints:
    """Answers a request for one of our own paths, or None where the path is none of them.

    `loopback` says that the admin listener is bound to a loopback address: only then is it open without the
    token. `ready` gives whether a request would be served now, and why not. `status` gives what /status has
    beside health: app, routes.
    """

    def __init__(
        self,
        *,
        health: Health,
        metrics: Metrics,
        gate: TokenGate,
        ready: Callable[[], tuple[bool, str]],
        status: Callable[[], Mapping[str, object]],
        version: str,
        loopback: bool = True,
        ctl: Ctl | None = None,
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._gate = gate
        self._ready = ready
        self._status = status
        self._version = version
        self._loopback = loopback
        self._ctl = ctl
        self._paths: Mapping[str, Answer] = {
            "/": self._index,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._scrape,
            "/status": self._everything,
        }

    async def answer(self, request: AdminRequest, *, public: bool) -> AdminAnswer | None:
        """Never raises a Refusal: it comes back as its problem, so that every answer has one shape."""
        guarded = not public and self._loopback
        try:
            if guarded:
                check_local(request.headers)
            if self._ctl is not None and self._ctl.takes(request.path):
                return await self._act(self._ctl, request, guarded)
            handler = self._paths.get(request.path or "/")
            if handler is None:
                return None
            if request.method not in ("GET", "HEAD"):
                refusal = Refusal("method-not-allowed", 405, "Method not allowed", "Only GET and HEAD here.")
                return self._refused(request, refusal, ("Allow", "GET, HEAD"))
            answer = await handler(request, guarded)
        except Refusal as refusal:
            challenge = ("WWW-Authenticate", 'Bearer realm="outrigger"')
            answer = self._refused(request, refusal, *([challenge] if refusal.status == 401 else []))
        if request.method == "HEAD":
            return AdminAnswer(answer.status, answer.headers, b"")
        return answer

    async def _index(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        text = _INDEX.format(version=self._version if open_here else "").encode()
        return _answer(200, "text/plain; charset=utf-8", text)

    async def _healthz(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        report = self._health.report()
        if not open_here and not await self._shown(request):
            report = {"status": report["status"]}
        return _json(503 if report["status"] == "down" else 200, report)

    async def _readyz(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        ready, reason = self._ready()
        return _json(200 if ready else 503, {"status": "ready" if ready else "not ready", "reason": reason})

    async def _scrape(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        if not open_here:
            await self._need_token(request)
        text, content_type = await self._metrics.render(request.headers("accept") or "")
        return _answer(200, content_type, text)

    async def _everything(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        if not open_here or self._gate.token:
            await self._need_token(request)
        return _json(200, {"health": self._health.report(), **self._status()})

    async def _act(self, ctl: Ctl, request: AdminRequest, open_here: bool) -> AdminAnswer:
        if not open_here or self._gate.token:
            await self._need_token(request)
        if request.method != "POST":
            refusal = Refusal("method-not-allowed", 405, "Method not allowed", "An action is a POST.")
            return self._refused(request, refusal, ("Allow", "POST"))
        return _json(200, {"done": await ctl.do(request.path, peer=request.peer, request_id=request.request_id)})

    async def _shown(self, request: AdminRequest) -> bool:
        return await self._gate.shown(request.headers("authorization"), request.peer)

    async def _need_token(self, request: AdminRequest) -> None:
        if await self._shown(request):
            return
        if self._gate.token:
            detail = (
                "Show the admin token as `Authorization: Bearer TOKEN`;"
                " it is the value of OUTRIGGER_ADMIN_TOKEN (policy key admin.token)."
            )
        else:
            detail = (
                "No admin token is set, so this is closed here; set OUTRIGGER_ADMIN_TOKEN"
                " (policy key admin.token) and show it as `Authorization: Bearer TOKEN`."
            )
        raise Refusal("unauthorized", 401, "The admin token is needed", detail)

    def _refused(self, request: AdminRequest, refusal: Refusal, *more: Header) -> AdminAnswer:
        if refusal.retry_after is not None:
            more = (*more, ("Retry-After", str(whole_seconds(refusal.retry_after))))
        body = render_problem(refusal, request.request_id)
        answer = _answer(refusal.status, CONTENT_TYPE, body, *more)
        return AdminAnswer(answer.status, answer.headers, b"") if request.method == "HEAD" else answer


def _answer(status: int, content_type: str, body: bytes, *more: Header) -> AdminAnswer:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *more,
    ]
    return AdminAnswer(status, headers, body)


def _json(status: int, body: Mapping[str, object]) -> AdminAnswer:
    return _answer(status, "application/json", f"{_pretty(body)}\n".encode())


def _pretty(body: Mapping[str, object]) -> str:
    # Through our own encoder first: a status may hold anything.
    return json.dumps(json.loads(json_text(body)), indent=2)
