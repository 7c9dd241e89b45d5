"""The dashboard: its page and files, and the form that stands before it where the token is needed."""

from __future__ import annotations

from urllib.parse import parse_qs

from proxy.admin.assets import Assets
from proxy.admin.auth import TokenGate
from proxy.admin.login_sessions import Sessions, set_cookie
from proxy.admin.messages import AdminAnswer, AdminRequest, Header, plain
from proxy.admin.origin_check import of_another_site, same_origin
from proxy.errors import Refusal
from proxy.http.problem import whole_seconds

PATH = "/dashboard"
PUBLIC = "/_outrigger"
FORM = 4096  # bytes of a form that is read


class Dashboard:
    """Everything at and below `dashboard`. The files hold no secret and are anybody's; the data are not."""

    def __init__(self, gate: TokenGate, sessions: Sessions) -> None:
        self._gate = gate
        self._sessions = sessions
        self._assets = Assets()

    def takes(self, path: str) -> bool:
        return path == PATH or path.startswith(f"{PATH}/")

    async def answer(self, request: AdminRequest, *, public: bool, guarded: bool) -> AdminAnswer | None:
        """None where there is no such file. `guarded`: the listener is on loopback. Raises Refusal."""
        name = request.path.removeprefix(PATH).removeprefix("/")
        if name in ("login", "logout"):
            if request.method != "POST":
                return self._lead(public)
            return await (self._login(request, public) if name == "login" else self._logout(request, public))
        if name and not self._assets.has(name):
            return None
        if request.method not in ("GET", "HEAD"):
            raise Refusal("method-not-allowed", 405, "Method not allowed", "Only GET and HEAD here.")
        if name.endswith((".js", ".css", ".txt", ".svg")):
            return self._assets.answer(request, name)
        if name or request.path != PATH:
            return self._lead(public)
        return await self._page(request, public, guarded)

    async def _page(self, request: AdminRequest, public: bool, guarded: bool) -> AdminAnswer:
        if self._sessions.holds(request.headers("cookie")):
            return self._fill(request, "index.html", public)
        if guarded and not self._gate.token:
            return self._fill(request, "index.html", public, logout="hidden")
        if await self._gate.shown(request.headers("authorization"), request.peer):
            return self._fill(request, "index.html", public, logout="hidden")
        if request.claimed:
            return self._lead(public)  # to where the cookie counts: the app shall not get it
        return self._fill(request, "login.html" if self._gate.token else "closed.html", public)

    async def _login(self, request: AdminRequest, public: bool) -> AdminAnswer:
        """A form's POST: right, and the page comes with a cookie; wrong, and the form comes again, and later."""
        if of_another_site(request.headers):
            raise Refusal("cross-site", 403, "Not for pages of another site", "Log in on the dashboard itself.")
        form = parse_qs((await request.body())[:FORM].decode("utf-8", "replace"))
        token = form.get("token", [""])[0]
        try:
            right = await self._gate.shown(f"Bearer {token}", request.peer)
        except Refusal as refusal:
            wait = whole_seconds(refusal.retry_after or 0)
            told = f"{refusal.detail} (In {wait} s.)"
            return self._fill(request, "login.html", public, told, ("Retry-After", str(wait)), status=refusal.status)
        if not self._gate.token:
            return self._fill(request, "closed.html", public, status=401)
        if not right:
            return self._fill(request, "login.html", public, "That is not the token.", status=401)
        cookie = set_cookie(self._sessions.begin(), _cookie_path(public), secure=request.secure)
        return self._lead(public, ("Set-Cookie", cookie))

    async def _logout(self, request: AdminRequest, public: bool) -> AdminAnswer:
        if not same_origin(request.headers):
            raise Refusal("cross-site", 403, "Not for pages of another site", "Log out on the dashboard itself.")
        self._sessions.end(request.headers("cookie"))
        cookie = set_cookie("", _cookie_path(public), secure=request.secure)
        return self._lead(public, ("Set-Cookie", cookie))

    def _fill(
        self,
        request: AdminRequest,
        name: str,
        public: bool,
        told: str = "",
        *more: Header,
        status: int = 200,
        logout: str = "",
    ) -> AdminAnswer:
        base = PUBLIC if public else ""
        # With a token the admin listener's cookie goes to the dashboard's own paths alone: a cookie knows no
        # ports, and the app on the same host shall not get it.
        data = base if public or not self._gate.token else PATH
        text = self._assets.get(name).decode()
        text = text.replace("{base}", base).replace("{data}", data).replace("{told}", told).replace("{logout}", logout)
        kept = ("Vary", "Cookie, Authorization")
        return self._assets.page(request, name, text.encode(), kept, *more, status=status)

    def _lead(self, public: bool, *more: Header) -> AdminAnswer:
        """303: the page, by GET (RFC 9110 section 15.4.4)."""
        target = f"{PUBLIC if public else ''}{PATH}"
        return plain(303, "text/plain; charset=utf-8", f"{target}\n".encode(), ("Location", target), *more)


def _cookie_path(public: bool) -> str:
    return PUBLIC if public else PATH
