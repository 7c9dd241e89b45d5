"""The endpoints that Outrigger answers itself: on its admin listener, and below `/_outrigger` on the public one.

Health, readiness, metrics, status, the operator's commands and the dashboard are served here out of plain values.
The sockets belong to `AdminListener` and to the public listener of the ingress room.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

from proxy.admin.auth import TokenAuthenticator
from proxy.admin.command_endpoint import CommandEndpoint
from proxy.admin.dashboard import DASHBOARD_PATH, PUBLIC_PREFIX, Dashboard
from proxy.admin.login_sessions import LoginSessions
from proxy.admin.messages import (
    AdminRequest,
    AdminResponse,
    build_response,
    compact_json_response,
    drop_head_body,
    json_response,
    problem_response,
)
from proxy.admin.origin_check import check_loopback_request, is_same_origin
from proxy.errors import Refusal
from proxy.observe.health import HealthCheckRegistry
from proxy.observe.metrics import Metrics

Handler = Callable[[AdminRequest, bool], Awaitable[AdminResponse]]

_REFUSAL_HEADERS = {  # by status (RFC 9110 sections 11.6.1 and 15.5.6)
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


class AdminEndpoints:
    """Answers the admin requests of both listeners.

    `loopback` says that the admin listener is bound to a loopback address: only then is it open without the token.
    `check_readiness` returns whether a request would be served now, and the reason. `build_status` returns what
    /status has beside health; `build_history` returns the series of the last 24 hours (`/status?history=1`);
    `build_policies` returns what the policies in force say, without their secrets (`/status?policy=1`). `build_tasks`
    returns what /status has of tasks; `list_tasks` and `show_task` answer `/status?tasks=1&route=R&status=S` and
    `/status?task=ID`.
    """

    def __init__(
        self,
        *,
        health: HealthCheckRegistry,
        metrics: Metrics,
        authenticator: TokenAuthenticator,
        check_readiness: Callable[[], tuple[bool, str]],
        build_status: Callable[[], Mapping[str, object]],
        version: str,
        loopback: bool = True,
        commands: CommandEndpoint | None = None,
        build_history: Callable[[], Mapping[str, object]] = dict,
        build_policies: Callable[[], Mapping[str, object]] = dict,
        build_tasks: Callable[[], Awaitable[Mapping[str, object] | None]] | None = None,
        list_tasks: Callable[[Mapping[str, str]], Awaitable[Mapping[str, object]]] | None = None,
        show_task: Callable[[str], Awaitable[Mapping[str, object]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._authenticator = authenticator
        self._check_readiness = check_readiness
        self._build_status = build_status
        self._build_history = build_history
        self._build_policies = build_policies
        self._build_tasks = build_tasks
        self._list_tasks = list_tasks
        self._show_task = show_task
        self._sessions = LoginSessions(lambda: authenticator.token, clock=clock)
        self._dashboard = Dashboard(authenticator, self._sessions)
        self._version = version
        self._loopback = loopback
        self._commands = commands
        self._handlers: Mapping[str, Handler] = {
            "/healthz": self._show_health,
            "/readyz": self._show_readiness,
            "/metrics": self._show_metrics,
            "/status": self._show_status,
        }

    async def handle(self, request: AdminRequest, *, public: bool) -> AdminResponse:
        """The response to a request. A Refusal is never raised: it becomes a problem response (RFC 9457)."""
        try:
            response = await self._route(request, public)
        except Refusal as refusal:
            headers = [_REFUSAL_HEADERS[refusal.status]] if refusal.status in _REFUSAL_HEADERS else []
            response = problem_response(refusal, request.request_id, *headers)
        return drop_head_body(request, response)

    async def _route(self, request: AdminRequest, public: bool) -> AdminResponse:
        # A handler's `open_here`: a loopback address is the only place where reading needs no token.
        open_here = not public and self._loopback
        if open_here:
            check_loopback_request(request.headers)
        request = _strip_dashboard_path(request)
        if self._dashboard.matches(request.path):
            response = await self._dashboard.handle(request, public=public, open_here=open_here)
            if response is not None:
                return response
        # A command changes something, so it is kept apart from what GET may do.
        elif self._commands is not None and self._commands.matches(request.path):
            return await self._run_command(self._commands, request, open_here)
        # 404 before 405: whether a path exists is no secret, but its methods mean nothing if it does not.
        handler = self._handlers.get(request.path)
        if handler is None and request.path not in ("", "/"):
            place = f"{PUBLIC_PREFIX if public else ''}/"
            raise Refusal("not-found", 404, "Not found", f"There is nothing here; {place} lists what is.")
        if request.method not in ("GET", "HEAD"):
            raise Refusal("method-not-allowed", 405, "Method not allowed", "Only GET and HEAD here.")
        if handler is None:
            return self._show_index(f"{PUBLIC_PREFIX if public else ''}{DASHBOARD_PATH}", open_here)
        return await handler(request, open_here)

    def _show_index(self, page: str, open_here: bool) -> AdminResponse:
        """A browser is redirected to the dashboard; a reader of the body sees what else there is."""
        text = _INDEX.format(version=self._version if open_here else "").encode()
        return build_response(302, "text/plain; charset=utf-8", text, ("Location", page))

    async def _show_health(self, request: AdminRequest, open_here: bool) -> AdminResponse:
        report = self._health.report()
        # Load balancers need the status without a token; reasons name hosts and users, so they are for operators.
        if not open_here and not await self._is_authorized(request):
            report = {"status": report["status"]}
        return json_response(503 if report["status"] == "down" else 200, report)

    async def _show_readiness(self, request: AdminRequest, open_here: bool) -> AdminResponse:
        ready, reason = self._check_readiness()
        return json_response(200 if ready else 503, {"status": "ready" if ready else "not ready", "reason": reason})

    async def _show_metrics(self, request: AdminRequest, open_here: bool) -> AdminResponse:
        if not open_here:
            await self._require_token(request)
        text, content_type = await self._metrics.render(request.headers("accept") or "")
        return build_response(200, content_type, text)

    async def _show_status(self, request: AdminRequest, open_here: bool) -> AdminResponse:
        # Status names users and shows money: with a token set, loopback alone does not open it.
        if not open_here or self._authenticator.token:
            await self._require_token(request)
        if request.query == "history=1":
            return compact_json_response({"history": self._build_history()})
        if request.query == "policy=1":
            return compact_json_response({"policies": self._build_policies()})
        query = dict(parse_qsl(request.query))
        if "tasks" in query and self._list_tasks is not None:
            return compact_json_response(await self._list_tasks(query))
        if "task" in query and self._show_task is not None:
            return compact_json_response(await self._show_task(query["task"]))
        tasks = await self._build_tasks() if self._build_tasks is not None else None
        return compact_json_response({"health": self._health.report(), **self._build_status(), "tasks": tasks})

    async def _run_command(self, commands: CommandEndpoint, request: AdminRequest, open_here: bool) -> AdminResponse:
        if not open_here or self._authenticator.token:
            await self._require_token(request)
        if request.method != "POST":
            refusal = Refusal("method-not-allowed", 405, "Method not allowed", "An action is a POST.")
            return problem_response(refusal, request.request_id, ("Allow", "POST"))
        done = await commands.execute(request.path, peer=request.peer, request_id=request.request_id)
        return json_response(200, {"done": done})

    async def _is_authorized(self, request: AdminRequest) -> bool:
        """Whether the request has the token, or the dashboard's cookie: the cookie lets its holder read, and act only
        from a page of this very origin (a page of another site could make the browser send it)."""
        # The cookie first: it costs no comparison with the token, so no wrong header next to it can slow the dashboard.
        if self._sessions.is_logged_in(request.headers("cookie")):
            if request.method in ("GET", "HEAD") or is_same_origin(request.headers):
                return True
        return await self._authenticator.authenticate(request.headers("authorization"), request.peer)

    async def _require_token(self, request: AdminRequest) -> None:
        if await self._is_authorized(request):
            return
        if self._authenticator.token:
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


class PublicEndpoints:
    """The endpoints as the public listener calls them: plain values in, status, headers and body out.

    `endpoints` is a function since the endpoints report on the public listener and are made after it.
    """

    def __init__(self, endpoints: Callable[[], AdminEndpoints]) -> None:
        self._endpoints = endpoints

    async def __call__(
        self,
        method: str,
        path: str,
        query: str,
        header: Callable[[str], str | None],
        body: bytes,
        peer: str,
        request_id: str,
        secure: bool,
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        async def read_body() -> bytes:
            return body

        # A path without the prefix was claimed from the app (listen.claim).
        below = path.removeprefix(PUBLIC_PREFIX)
        request = AdminRequest(
            method, below or "/", header, peer, query, request_id, read_body, secure, claimed=below == path
        )
        response = await self._endpoints().handle(request, public=True)
        return response.status, response.headers, response.body


def _strip_dashboard_path(request: AdminRequest) -> AdminRequest:
    """The dashboard's data are served below its own path, too: on the admin listener its cookie is for that path
    alone."""
    path = request.path.removeprefix(DASHBOARD_PATH)
    if path == request.path or not (path == "/status" or path.startswith("/ctl/")):
        return request
    return dataclasses.replace(request, path=path)
