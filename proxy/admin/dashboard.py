"""The dashboard: its page, its static files, and the login form that is shown when the token is needed."""

from __future__ import annotations

from urllib.parse import parse_qs

from proxy.admin.assets import DashboardAssets
from proxy.admin.auth import TokenAuthenticator
from proxy.admin.login_sessions import LoginSessions, render_cookie
from proxy.admin.messages import AdminRequest, AdminResponse, Header, build_response
from proxy.admin.origin_check import is_cross_site, is_same_origin
from proxy.errors import Refusal
from proxy.http.retry_after import round_retry_after

DASHBOARD_PATH = "/dashboard"
PUBLIC_PREFIX = "/_outrigger"
MAX_FORM_BYTES = 4096


class Dashboard:
    """Everything at and below `/dashboard`. The files hold no secret, so anybody may have them; the data need the token
    or a login session."""

    def __init__(self, authenticator: TokenAuthenticator, sessions: LoginSessions) -> None:
        self._authenticator = authenticator
        self._sessions = sessions
        self._assets = DashboardAssets()

    def matches(self, path: str) -> bool:
        return path == DASHBOARD_PATH or path.startswith(f"{DASHBOARD_PATH}/")

    async def handle(self, request: AdminRequest, *, public: bool, open_here: bool) -> AdminResponse | None:
        """The response, or None if there is no such file. `open_here`: the listener is on loopback. Raises Refusal."""
        name = request.path.removeprefix(DASHBOARD_PATH).removeprefix("/")
        if name in ("login", "logout"):
            if request.method != "POST":
                return self._redirect(public)
            return await (self._log_in(request, public) if name == "login" else self._log_out(request, public))
        # Checked before the method, so that a file that does not exist is 404 for every method.
        if name and not self._assets.contains(name):
            return None
        if request.method not in ("GET", "HEAD"):
            raise Refusal("method-not-allowed", 405, "Method not allowed", "Only GET and HEAD here.")
        # HTML is left out: those files are templates, to be had by the page's own path alone.
        if name.endswith((".js", ".css", ".txt", ".svg")):
            return self._assets.build_file_response(request, name)
        if name or request.path != DASHBOARD_PATH:
            return self._redirect(public)
        return await self._show_page(request, public, open_here)

    async def _show_page(self, request: AdminRequest, public: bool, open_here: bool) -> AdminResponse:
        if self._sessions.is_logged_in(request.headers("cookie")):
            return self._render(request, "index.html", public)
        # Without a token there is nothing to log in with, and loopback is open anyway.
        if open_here and not self._authenticator.token:
            return self._render(request, "index.html", public, logout="hidden")
        if await self._authenticator.authenticate(request.headers("authorization"), request.peer):
            return self._render(request, "index.html", public, logout="hidden")
        if request.claimed:
            return self._redirect(public)  # to `/_outrigger`, where the cookie counts: the app must not get it
        return self._render(request, "login.html" if self._authenticator.token else "closed.html", public)

    async def _log_in(self, request: AdminRequest, public: bool) -> AdminResponse:
        """POST of the login form. With the right token the browser is redirected to the page and gets a cookie; with a
        wrong one the form comes again, after the delay that wrong tokens cost."""
        if is_cross_site(request.headers):
            raise Refusal("cross-site", 403, "Not for pages of another site", "Log in on the dashboard itself.")
        # Only the beginning is parsed: a token is short, and whoever posts here is not authenticated yet.
        form = parse_qs((await request.body())[:MAX_FORM_BYTES].decode("utf-8", "replace"))
        token = form.get("token", [""])[0]
        try:
            is_right = await self._authenticator.authenticate(f"Bearer {token}", request.peer)
        except Refusal as refusal:
            wait = round_retry_after(refusal.retry_after or 0)
            message = f"{refusal.detail} (In {wait} s.)"
            retry_after = ("Retry-After", str(wait))
            return self._render(request, "login.html", public, message, retry_after, status=refusal.status)
        if not self._authenticator.token:
            return self._render(request, "closed.html", public, status=401)
        if not is_right:
            return self._render(request, "login.html", public, "That is not the token.", status=401)
        cookie = render_cookie(self._sessions.create(), _cookie_path(public), secure=request.secure)
        return self._redirect(public, ("Set-Cookie", cookie))

    async def _log_out(self, request: AdminRequest, public: bool) -> AdminResponse:
        # A foreign page that logs an operator out is a nuisance at least, so the check is the strict one.
        if not is_same_origin(request.headers):
            raise Refusal("cross-site", 403, "Not for pages of another site", "Log out on the dashboard itself.")
        self._sessions.revoke(request.headers("cookie"))
        cookie = render_cookie("", _cookie_path(public), secure=request.secure)
        return self._redirect(public, ("Set-Cookie", cookie))

    def _render(
        self,
        request: AdminRequest,
        name: str,
        public: bool,
        message: str = "",
        *more: Header,
        status: int = 200,
        logout: str = "",
    ) -> AdminResponse:
        base = PUBLIC_PREFIX if public else ""
        # With a token the admin listener's cookie is for the dashboard's own paths alone: cookies are not separated by
        # port (RFC 6265 section 8.5), and the app on the same host must not get it.
        data = base if public or not self._authenticator.token else DASHBOARD_PATH
        text = self._assets.read(name).decode()
        for field, value in (("{base}", base), ("{data}", data), ("{message}", message), ("{logout}", logout)):
            text = text.replace(field, value)
        vary = ("Vary", "Cookie, Authorization")
        return self._assets.build_response(request, name, text.encode(), vary, *more, status=status)

    def _redirect(self, public: bool, *more: Header) -> AdminResponse:
        """303 See Other: the browser fetches the page by GET (RFC 9110 section 15.4.4)."""
        target = f"{PUBLIC_PREFIX if public else ''}{DASHBOARD_PATH}"
        return build_response(303, "text/plain; charset=utf-8", f"{target}\n".encode(), ("Location", target), *more)


def _cookie_path(public: bool) -> str:
    return PUBLIC_PREFIX if public else DASHBOARD_PATH
