"""What both listeners answer themselves: health, readiness, metrics, status, dashboard. No sockets here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping

from proxy.admin.auth import TokenGate
from proxy.admin.command_endpoint import Ctl
from proxy.admin.dashboard import PATH, PUBLIC, Dashboard
from proxy.admin.login_sessions import Sessions
from proxy.admin.messages import AdminAnswer as AdminAnswer
from proxy.admin.messages import AdminRequest as AdminRequest
from proxy.admin.messages import as_data, as_json, bare, plain, problem
from proxy.admin.origin_check import check_local, same_origin
from proxy.errors import Refusal
from proxy.observe.health import Health
from proxy.observe.metrics import Metrics

Answer = Callable[[AdminRequest, bool], Awaitable[AdminAnswer]]

_MORE = {  # of a refusal: RFC 9110 sections 11.6.1 and 15.5.6
    401: ("WWW-Authenticate", 'Bearer realm="outrigger"'),
    405: ("Allow", "GET, HEAD"),
}
_INDEX = """Outrigger {version}

dashboard all of it on a page
healthz   how the app and the gateway are
readyz    whether a request would be served now
metrics   for Prometheus
status    everything, as JSON
ctl/…     what an operator does (POST)
"""


class Endpoints:
    """Answers requests of both listeners.

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

    async def answer(self, request: AdminRequest, *, public: bool) -> AdminAnswer:
        """Never raises a Refusal: it comes back as its problem, so that every answer has one shape."""
        try:
            answer = await self._answer(request, public)
        except Refusal as refusal:
            more = [_MORE[refusal.status]] if refusal.status in _MORE else []
            answer = problem(refusal, request.request_id, *more)
        return bare(request, answer)

    async def _answer(self, request: AdminRequest, public: bool) -> AdminAnswer:
        guarded = not public and self._loopback
        if guarded:
            check_local(request.headers)
        request = _straight(request)
        if self._dashboard.takes(request.path):
            found = await self._dashboard.answer(request, public=public, guarded=guarded)
            if found is not None:
                return found
        elif self._ctl is not None and self._ctl.takes(request.path):
            return await self._act(self._ctl, request, guarded)
        handler = self._paths.get(request.path)
        if handler is None and request.path not in ("", "/"):
            place = f"{PUBLIC if public else ''}/"
            raise Refusal("not-found", 404, "Not found", f"There is nothing here; {place} lists what is.")
        if request.method not in ("GET", "HEAD"):
            raise Refusal("method-not-allowed", 405, "Method not allowed", "Only GET and HEAD here.")
        if handler is None:
            return self._index(f"{PUBLIC if public else ''}{PATH}", guarded)
        return await handler(request, guarded)

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
            return as_data({"history": self._history()})
        return as_data({"health": self._health.report(), **self._status()})

    async def _act(self, ctl: Ctl, request: AdminRequest, open_here: bool) -> AdminAnswer:
        if not open_here or self._gate.token:
            await self._need_token(request)
        if request.method != "POST":
            refusal = Refusal("method-not-allowed", 405, "Method not allowed", "An action is a POST.")
            return problem(refusal, request.request_id, ("Allow", "POST"))
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


def _straight(request: AdminRequest) -> AdminRequest:
    """The dashboard's data are at its own path too: where its cookie is for that path alone."""
    path = request.path.removeprefix(PATH)
    if path == request.path or not (path == "/status" or path.startswith("/ctl/")):
        return request
    return dataclasses.replace(request, path=path)
