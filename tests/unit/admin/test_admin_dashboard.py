"""The dashboard's files, its form and its cookie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from urllib.parse import urlencode

import pytest

from proxy.admin.auth import TokenAuthenticator
from proxy.admin.command_endpoint import CommandEndpoint
from proxy.admin.endpoints import AdminEndpoints
from proxy.admin.login_sessions import MAX_SESSIONS, SESSION_SECONDS, LoginSessions
from proxy.admin.messages import AdminRequest, AdminResponse
from proxy.observe.health import HealthCheckRegistry
from proxy.observe.metrics import Metrics
from proxy.policy import schema

TOKEN = "t0ken of some length"
PAGE = resources.files("proxy.admin") / "page"


class Acts:
    async def reload_policy(self) -> str:
        return "The policy was read again."

    block_user = unblock_user = forgive_user = force_breaker = restart_app = reload_policy


class AdminFixture:
    def __init__(self, token: str = TOKEN) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        self.gate = TokenAuthenticator(token, clock=lambda: self.now, sleep=self.sleep)
        self.endpoints = AdminEndpoints(
            health=HealthCheckRegistry(lambda: self.now, version="1"),
            metrics=Metrics(schema.Metrics(), version="1"),
            authenticator=self.gate,
            check_readiness=lambda: (True, ""),
            build_status=lambda: {"x": 1},
            build_history=lambda: {"day": {"at": list(range(288))}},
            version="1",
            commands=CommandEndpoint(Acts(), lambda *_, **__: None),
            clock=lambda: self.now,
        )

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        public: bool = True,
        form: Mapping[str, str] | None = None,
        secure: bool = False,
        claimed: bool = False,
        **headers: str,
    ) -> AdminResponse:
        async def body() -> bytes:
            return urlencode(form or {}).encode()

        fields = {"host": "app.example" if public else "127.0.0.1:9901"}
        fields |= {name.replace("_", "-"): text for name, text in headers.items()}
        path, _, query = path.partition("?")
        request = AdminRequest(
            method, path, fields.get, "203.0.113.9", query, body=body, secure=secure, claimed=claimed
        )
        return await self.endpoints.handle(request, public=public)

    async def login(self, **options: bool) -> str:
        answer = await self.ask("/dashboard/login", method="POST", form={"token": TOKEN}, **options)
        assert answer.status == 303
        return header(answer, "Set-Cookie").partition(";")[0]


def header(answer: AdminResponse, name: str) -> str:
    return dict(answer.headers).get(name, "")


@pytest.mark.parametrize(
    ("public", "token", "shown"),
    [(True, TOKEN, "Log in"), (True, "", "no admin token is set"), (False, TOKEN, "Log in"), (False, "", "Trend")],
)
async def test_the_page_comes_the_form_or_how_to_have_one(public: bool, token: str, shown: str) -> None:
    answer = await AdminFixture(token).ask("/dashboard", public=public)
    assert answer.status == 200
    assert shown in answer.body.decode()
    assert "{" not in re.sub(r"<script.*", "", answer.body.decode())


@pytest.mark.parametrize(
    ("public", "secure", "kept"),
    [
        (True, False, "Path=/_outrigger; Max-Age=43200; HttpOnly; SameSite=Strict"),
        (True, True, "Path=/_outrigger; Max-Age=43200; HttpOnly; SameSite=Strict; Secure"),
        (False, False, "Path=/dashboard; Max-Age=43200; HttpOnly; SameSite=Strict"),
    ],
)
async def test_the_right_token_sets_a_cookie_that_is_not_the_token(public: bool, secure: bool, kept: str) -> None:
    fixture = AdminFixture()
    answer = await fixture.ask("/dashboard/login", method="POST", form={"token": TOKEN}, public=public, secure=secure)
    cookie, _, rest = header(answer, "Set-Cookie").partition("; ")
    assert (answer.status, rest) == (303, kept)
    assert header(answer, "Location") == ("/_outrigger/dashboard" if public else "/dashboard")
    assert TOKEN not in cookie
    page = await fixture.ask("/dashboard", public=public, cookie=f"a=b; {cookie}; outrigger=other")
    assert "Trend" in page.body.decode()
    data = re.search(r'data-at="(.*?)"', page.body.decode())
    assert data is not None
    assert data[1] == ("/_outrigger" if public else "/dashboard")


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/status", "GET", {}, 200),
        ("/dashboard/status", "GET", {}, 200),
        ("/status?history=1", "GET", {}, 200),
        ("/ctl/reload", "POST", {}, 401),
        ("/ctl/reload", "POST", {"origin": "https://app.example"}, 200),
        ("/dashboard/ctl/reload", "POST", {"origin": "https://app.example"}, 200),
        ("/ctl/reload", "POST", {"sec_fetch_site": "same-origin"}, 200),
        ("/ctl/reload", "POST", {"origin": "https://app.example", "sec_fetch_site": "same-origin"}, 200),
        ("/ctl/reload", "POST", {"origin": "https://evil.example"}, 401),
        ("/ctl/reload", "POST", {"origin": "https://evil.example", "sec_fetch_site": "same-origin"}, 401),
        ("/ctl/reload", "POST", {"origin": "https://app.example", "sec_fetch_site": "same-site"}, 401),
        ("/ctl/reload", "POST", {"origin": "null"}, 401),
        ("/ctl/reload", "POST", {"sec_fetch_site": "none"}, 401),
    ],
)
async def test_the_cookie_reads_and_acts_only_from_its_own_origin(path, method, headers, status) -> None:
    fixture = AdminFixture()
    cookie = await fixture.login()
    assert (await fixture.ask(path, method=method, cookie=cookie, **headers)).status == status
    assert (await fixture.ask(path, method=method, **headers)).status == 401


async def test_a_claimed_dashboard_leads_to_where_its_cookie_counts() -> None:
    fixture = AdminFixture()
    for headers in ({}, {"cookie": "outrigger=x"}):
        answer = await fixture.ask("/dashboard", claimed=True, **headers)
        assert (answer.status, header(answer, "Location")) == (303, "/_outrigger/dashboard")
    shown = await fixture.ask("/dashboard", claimed=True, authorization=f"Bearer {TOKEN}")
    assert (shown.status, "Trend" in shown.body.decode()) == (200, True)


async def test_a_page_of_another_site_cannot_use_up_an_operators_guesses() -> None:
    fixture = AdminFixture()
    for site in ("cross-site", "same-site", "cross-site", "cross-site"):
        form = {"token": "wrong"}
        assert (await fixture.ask("/dashboard/login", method="POST", form=form, sec_fetch_site=site)).status == 403
    assert await fixture.login()
    assert fixture.waits == []


async def test_the_token_itself_is_no_cookie() -> None:
    fixture = AdminFixture()
    for value in (TOKEN, "", "None", '"', 10_000 * "a"):
        assert (await fixture.ask("/status", cookie=f"outrigger={value}")).status == 401


@pytest.mark.parametrize(
    ("token", "path", "method", "status"),
    [
        ("", "/dashboard", "GET", 200),
        (TOKEN, "/dashboard", "GET", 200),
        (TOKEN, "/dashboard/login", "POST", 401),
        ("", "/dashboard/login", "POST", 401),
        (TOKEN, "/dashboard/app.js", "GET", 200),
    ],
)
async def test_every_page_is_framed_by_nobody_and_kept_by_no_cache_unasked(token, path, method, status) -> None:
    answer = await AdminFixture(token).ask(path, method=method)
    assert answer.status == status
    assert "frame-ancestors 'none'" in header(answer, "Content-Security-Policy")
    assert [header(answer, name) for name in ("X-Frame-Options", "X-Content-Type-Options", "Cache-Control")] == [
        "DENY",
        "nosniff",
        "no-cache",
    ]
    assert header(answer, "Vary") == ("" if path.endswith(".js") else "Cookie, Authorization")


async def test_wrong_tokens_are_told_so_slowed_and_set_no_cookie() -> None:
    fixture = AdminFixture()
    for _ in range(6):
        answer = await fixture.ask("/dashboard/login", method="POST", form={"token": "<b>wrong"})
        assert (answer.status, header(answer, "Set-Cookie")) == (401, "")
        assert "That is not the token." in answer.body.decode()
        assert "<b>wrong" not in answer.body.decode()
    assert fixture.waits == [0.5, 1.0, 2.0]
    peer = next(iter(fixture.gate._peers.values()))
    peer.waiting = 4
    answer = await fixture.ask("/dashboard/login", method="POST", form={"token": TOKEN})
    assert (answer.status, header(answer, "Retry-After")) == (429, "4")


async def test_a_session_ends_with_its_hours_its_token_and_a_logout() -> None:
    fixture = AdminFixture()
    cookie = await fixture.login()
    fixture.now = SESSION_SECONDS - 1
    assert (await fixture.ask("/status", cookie=cookie)).status == 200
    fixture.now = SESSION_SECONDS
    assert (await fixture.ask("/status", cookie=cookie)).status == 401
    cookie = await fixture.login()
    fixture.gate.token = "another"
    assert (await fixture.ask("/status", cookie=cookie)).status == 401
    fixture.gate.token = TOKEN
    cookie = await fixture.login()
    assert (await fixture.ask("/dashboard/logout", method="POST", cookie=cookie)).status == 403
    gone = await fixture.ask("/dashboard/logout", method="POST", cookie=cookie, origin="https://app.example")
    assert "Max-Age=0" in header(gone, "Set-Cookie")
    assert (await fixture.ask("/status", cookie=cookie)).status == 401


def test_only_so_many_sessions_are_open() -> None:
    sessions = LoginSessions(lambda: TOKEN, clock=lambda: 0.0)
    cookies = [f"outrigger={sessions.create()}" for _ in range(MAX_SESSIONS + 1)]
    assert len(sessions) == MAX_SESSIONS
    assert [
        sessions.is_logged_in(cookies[0]),
        sessions.is_logged_in(cookies[1]),
        sessions.is_logged_in(cookies[-1]),
    ] == [False, True, True]


async def test_what_the_browser_has_is_not_sent_again() -> None:
    fixture = AdminFixture("")
    for path in ("/dashboard", "/dashboard/app.js"):
        first = await fixture.ask(path, public=False)
        etag = header(first, "ETag")
        for known, status in ((etag, 304), (f'W/{etag}, "x"', 304), ('"x"', 200)):
            again = await fixture.ask(path, public=False, if_none_match=known)
            assert (again.status, header(again, "ETag")) == (status, etag)
            assert not again.body or status == 200


async def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    answer = await AdminFixture("").ask("/dashboard", public=False)
    policy = header(answer, "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("index.html", "login.html", "closed.html"):
        text = (PAGE / name).read_text()
        assert not re.findall(
            r"\sstyle=|\son\w+=|<style|<script(?! src=)|(?:src|href|action)=\"(?!\{base\}|#|\{data\})", text
        )
    ours = "".join(file.read_text() for file in PAGE.iterdir() if file.name.endswith(".js") and file.name != "uPlot.js")
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|https?://", ours)


def test_all_of_it_is_small() -> None:
    assert sum(len(item.read_bytes()) for item in PAGE.iterdir()) <= 150 * 1024


@pytest.mark.parametrize(
    "path", ["/dashboard/nothing.js", "/dashboard/../endpoints.py", "/dashboard/%2e%2e/x", "/dashboardx"]
)
async def test_no_other_file_is_to_be_had(path: str) -> None:
    fixture = AdminFixture("")
    request = AdminRequest("GET", path, {"host": "127.0.0.1"}.get, "")
    assert (await fixture.endpoints.handle(request, public=False)).status == 404
