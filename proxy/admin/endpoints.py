"""What both listeners answer themselves: health, readiness, metrics, status, dashboard. No sockets here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping

from proxy.admin.ctl import Ctl
from proxy.admin.dashboard import PATH, PUBLIC, Dashboard
from proxy.admin.guard import check_local, same_origin
from proxy.admin.message import AdminAnswer as AdminAnswer
from proxy.admin.message import AdminRequest as AdminRequest
from proxy.admin.message import Header, as_json, as_numbers, plain
from proxy.admin.session import Sessions
from proxy.admin.token import TokenGate
from proxy.errors import Refusal
from proxy.observe.health import Health
from proxy.observe.metrics import Metrics
from proxy.problem import CONTENT_TYPE, render_problem, whole_seconds

Answer = Callable[[AdminRequest, bool], Awaitable[AdminAnswer]]

_INDEX = """Outrigger {version}

dashboard all of it on a page
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
    beside health, `history` what it has of the last 24 hours (`/status?history=1`).
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
        history: Callable[[], Mapping[str, object]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._gate = gate
        self._ready = ready
        self._status = status
        self._history = history
        self._sessions = Sessions(lambda: gate.token, clock=clock)
        self._dashboard = Dashboard(gate, self._sessions)
        self._version = version
        self._loopback = loopback
        self._ctl = ctl
        self._paths: Mapping[str, Answer] = {
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
            request = _straight(request)
            if self._dashboard.takes(request.path):
                return _bare(request, await self._dashboard.answer(request, public=public, guarded=guarded))
            if self._ctl is not None and self._ctl.takes(request.path):
                return _bare(request, await self._act(self._ctl, request, guarded))
            if request.path in ("", "/") and request.method in ("GET", "HEAD"):
                return _bare(request, self._index(f"{PUBLIC if public else ''}{PATH}", guarded))
            handler = self._paths.get(request.path)
            if handler is None and request.path not in ("", "/"):
                return None
            if handler is None or request.method not in ("GET", "HEAD"):
                refusal = Refusal("method-not-allowed", 405, "Method not allowed", "Only GET and HEAD here.")
                return _bare(request, self._refused(request, refusal, ("Allow", "GET, HEAD")))
            answer = await handler(request, guarded)
        except Refusal as refusal:
            challenge = ("WWW-Authenticate", 'Bearer realm="outrigger"')
            answer = self._refused(request, refusal, *([challenge] if refusal.status == 401 else []))
        return _bare(request, answer)

    def _index(self, page: str, open_here: bool) -> AdminAnswer:
        """A browser is led on to the page; who reads the body sees what else there is."""
        text = _INDEX.format(version=self._version if open_here else "").encode()
        return plain(302, "text/plain; charset=utf-8", text, ("Location", page))

    async def _healthz(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        report = self._health.report()
        if not open_here and not await self._shown(request):
            report = {"status": report["status"]}
        return as_json(503 if report["status"] == "down" else 200, report)

    async def _readyz(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        ready, reason = self._ready()
        return as_json(200 if ready else 503, {"status": "ready" if ready else "not ready", "reason": reason})

    async def _scrape(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        if not open_here:
            await self._need_token(request)
        text, content_type = await self._metrics.render(request.headers("accept") or "")
        return plain(200, content_type, text)

    async def _everything(self, request: AdminRequest, open_here: bool) -> AdminAnswer:
        if not open_here or self._gate.token:
            await self._need_token(request)
        if request.query == "history=1":
            return as_numbers({"history": self._history()})
        return as_json(200, {"health": self._health.report(), **self._status()})

    async def _act(self, ctl: Ctl, request: AdminRequest, open_here: bool) -> AdminAnswer:
        if not open_here or self._gate.token:
            await self._need_token(request)
        if request.method != "POST":
            refusal = Refusal("method-not-allowed", 405, "Method not allowed", "An action is a POST.")
            return self._refused(request, refusal, ("Allow", "POST"))
        return as_json(200, {"done": await ctl.do(request.path, peer=request.peer, request_id=request.request_id)})

    async def _shown(self, request: AdminRequest) -> bool:
        """The token, or the dashboard's cookie: for reading, and from the dashboard itself for acting."""
        if self._sessions.holds(request.headers("cookie")):
            if request.method in ("GET", "HEAD") or same_origin(request.headers):
                return True
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
        return plain(refusal.status, CONTENT_TYPE, body, *more)


def _straight(request: AdminRequest) -> AdminRequest:
    """The dashboard's data are at its own path too: where its cookie is for that path alone."""
    path = request.path.removeprefix(PATH)
    if path == request.path or not (path == "/status" or path.startswith("/ctl/")):
        return request
    return dataclasses.replace(request, path=path)


def _bare(request: AdminRequest, answer: AdminAnswer | None) -> AdminAnswer | None:
    if answer is None or request.method != "HEAD":
        return answer
    return AdminAnswer(answer.status, answer.headers, b"")
