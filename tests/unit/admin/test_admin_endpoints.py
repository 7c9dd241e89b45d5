"""Who sees what on which listener."""

from __future__ import annotations

import json

import pytest

from proxy.admin.auth import TokenAuthenticator
from proxy.admin.endpoints import AdminEndpoints
from proxy.admin.messages import AdminRequest, AdminResponse
from proxy.observe.health import ComponentHealth, HealthCheckRegistry
from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.policy.urls import is_loopback

PATHS = ["/dashboard", "/dashboard/app.js", "/healthz", "/readyz", "/metrics", "/status"]


class AdminFixture:
    def __init__(self, token: str = "", *, loopback: bool = True) -> None:
        self.now = 0.0
        self.app = ComponentHealth("ok", "ready")
        self.ready = (True, "ready")
        health = HealthCheckRegistry(lambda: self.now, version="1.2.3", now=lambda: 1_790_000_000.0)
        health.register("app", lambda: self.app)
        self.endpoints = AdminEndpoints(
            health=health,
            metrics=Metrics(schema.Metrics(), version="1.2.3"),
            authenticator=TokenAuthenticator(token, clock=lambda: self.now),
            check_readiness=lambda: self.ready,
            build_status=lambda: {"app": {"state": "ready"}, "routes": {"default": {"in_flight": 1}}},
            version="1.2.3",
            loopback=loopback,
        )

    async def get(self, path: str, *, public: bool = False, method: str = "GET", **headers: str) -> AdminResponse:
        fields = {"host": "127.0.0.1:9901"} | {name.replace("_", "-"): text for name, text in headers.items()}
        request = AdminRequest(method=method, path=path, headers=fields.get, peer="203.0.113.9", request_id="r-1")
        return await self.endpoints.handle(request, public=public)


def header(answer: AdminResponse, name: str) -> str | None:
    return dict(answer.headers).get(name)


RIGHT = "Bearer t0ken"


@pytest.mark.parametrize(
    ("path", "public", "token", "shown", "status"),
    [
        ("/healthz", False, "", None, 200),
        ("/metrics", False, "", None, 200),
        ("/metrics", False, "t0ken", None, 200),
        ("/status", False, "", None, 200),
        ("/status", False, "t0ken", None, 401),
        ("/status", False, "t0ken", RIGHT, 200),
        ("/status", True, "t0ken", "Bearer t0kem", 401),
        ("/healthz", True, "", None, 200),
        ("/readyz", True, "", None, 200),
        ("/metrics", True, "", None, 401),
        ("/metrics", True, "", "Bearer ", 401),
        ("/metrics", True, "t0ken", None, 401),
        ("/metrics", True, "t0ken", "Bearer t0kem", 401),
        ("/metrics", True, "t0ken", RIGHT, 200),
        ("/status", True, "t0ken", None, 401),
        ("/status", True, "t0ken", RIGHT, 200),
    ],
)
async def test_what_opens_to_whom(path: str, public: bool, token: str, shown: str | None, status: int) -> None:
    headers = {} if shown is None else {"authorization": shown}
    answer = await AdminFixture(token).get(path, public=public, **headers)
    assert answer.status == status


@pytest.mark.parametrize("path", ["/metrics", "/status"])
async def test_an_admin_listener_that_others_reach_is_as_closed_as_the_public_one(path: str) -> None:
    fixture = AdminFixture("t0ken", loopback=False)
    assert (await fixture.get(path, host="10.0.0.5:9901")).status == 401
    assert (await fixture.get(path, host="10.0.0.5:9901", authorization=RIGHT)).status == 200
    assert json.loads((await fixture.get("/healthz", host="10.0.0.5:9901")).body) == {"status": "ok"}


@pytest.mark.parametrize("token", ["", "t0ken"])
async def test_the_401_says_how_a_token_is_set(token: str) -> None:
    answer = await AdminFixture(token).get("/metrics", public=True)
    assert header(answer, "WWW-Authenticate") == 'Bearer realm="outrigger"'
    assert header(answer, "Content-Type") == "application/problem+json"
    problem = json.loads(answer.body)
    assert (problem["type"], problem["request_id"]) == ("urn:outrigger:unauthorized", "r-1")
    assert "OUTRIGGER_ADMIN_TOKEN" in problem["detail"]


async def test_guessing_too_fast_is_a_429_that_says_when_to_come_again() -> None:
    fixture = AdminFixture("t0ken")
    gate = fixture.endpoints._authenticator
    for _ in range(3):
        await fixture.get("/metrics", public=True, authorization="Bearer x")
    peer = next(iter(gate._peers.values()))
    peer.waiting = 4
    answer = await fixture.get("/healthz", public=True, authorization="Bearer x")
    assert (answer.status, header(answer, "Retry-After")) == (429, "4")


async def test_healthz_tells_strangers_one_word_and_the_tokens_bearer_all() -> None:
    fixture = AdminFixture("t0ken")
    assert json.loads((await fixture.get("/healthz", public=True)).body) == {"status": "ok"}
    wrong = await fixture.get("/healthz", public=True, authorization="Bearer x")
    assert json.loads(wrong.body) == {"status": "ok"}
    full = json.loads((await fixture.get("/healthz", public=True, authorization=RIGHT)).body)
    assert full["app"]["state"] == "ok"
    assert full == json.loads((await fixture.get("/healthz")).body)


async def test_healthz_is_503_only_once_the_app_was_away_for_a_minute() -> None:
    fixture = AdminFixture()
    fixture.app = ComponentHealth("down", "restarting")
    for seconds, status, word in [(0, 200, "degraded"), (59, 200, "degraded"), (60, 503, "down")]:
        fixture.now = seconds
        for public in (False, True):
            answer = await fixture.get("/healthz", public=public)
            assert (answer.status, json.loads(answer.body)["status"]) == (status, word)


async def test_readyz_follows_at_once_and_gives_the_reason() -> None:
    fixture = AdminFixture()
    assert (await fixture.get("/readyz", public=True)).status == 200
    fixture.ready = (False, "the gateway drains")
    answer = await fixture.get("/readyz", public=True)
    assert answer.status == 503
    assert json.loads(answer.body) == {"status": "not ready", "reason": "the gateway drains"}


async def test_status_has_health_and_what_the_parts_give() -> None:
    body = json.loads((await AdminFixture().get("/status")).body)
    assert list(body) == ["health", "app", "routes", "tasks"]
    assert body["routes"]["default"]["in_flight"] == 1


async def test_a_status_that_is_longer_than_a_line_of_the_log_may_be_is_whole() -> None:
    fixture = AdminFixture()
    routes = {f"route{number}": {"path": "x" * 500} for number in range(150)}
    fixture.endpoints._build_status = lambda: {"routes": routes}
    body = json.loads((await fixture.get("/status")).body)
    assert body["routes"] == routes


@pytest.mark.parametrize("path", PATHS)
async def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    fixture = AdminFixture()
    got, headed = await fixture.get(path), await fixture.get(path, method="HEAD")
    assert (headed.status, headed.body) == (200, b"")
    if path != "/metrics":  # its length changes with the process's own figures
        assert headed.headers == got.headers
    assert header(headed, "Content-Length") != "0"
    assert header(headed, "Cache-Control") == ("no-cache" if "dashboard" in path else "no-store")


@pytest.mark.parametrize(("public", "page"), [(False, "/dashboard"), (True, "/_outrigger/dashboard")])
@pytest.mark.parametrize("path", ["", "/"])
async def test_the_root_leads_to_the_dashboard_and_says_what_else_there_is(path: str, public: bool, page: str) -> None:
    answer = await AdminFixture().get(path, public=public)
    assert (answer.status, header(answer, "Location")) == (302, page)
    assert b"metrics" in answer.body
    assert (await AdminFixture().get(path, public=public, method="HEAD")).body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("path", ["/", "/healthz", "/dashboard", "/dashboard/app.js"])
async def test_only_get_and_head(path: str, method: str, public: bool) -> None:
    answer = await AdminFixture().get(path, method=method, public=public)
    assert (answer.status, header(answer, "Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/health", "/healthz/", "/HEALTHZ", "//healthz", "/metrics/x", "/%68ealthz", "*"])
async def test_other_paths_are_not_ours(path: str) -> None:
    for public, place in ((True, "/_outrigger/ lists"), (False, " / lists")):
        answer = await AdminFixture().get(path, public=public)
        assert (answer.status, header(answer, "Cache-Control")) == (404, "no-store")
        assert place in json.loads(answer.body)["detail"]


async def test_openmetrics_comes_when_asked_for() -> None:
    answer = await AdminFixture().get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")
    assert (header(answer, "Content-Type") or "").startswith("application/openmetrics-text")


# ── Strangers on loopback ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:1", "127.8.8.8", "localhost:9901", "LOCALHOST", "[::1]:9901", "a.localhost"],
)
async def test_a_loopback_host_is_answered(host: str) -> None:
    assert (await AdminFixture().get("/metrics", host=host)).status == 200


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9901",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "",
        "[::2]",
        "localhost.e",
    ],
)
async def test_a_rebound_name_is_turned_away_everywhere(path: str, host: str) -> None:
    answer = await AdminFixture().get(path, host=host)
    assert answer.status == 421
    assert json.loads(answer.body)["type"] == "urn:outrigger:misdirected"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:9901"}, 200),
        ({"origin": "HTTP://127.0.0.1:9901", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none", "sec_fetch_mode": "navigate"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://localhost:9901"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 200),
    ],
)
async def test_a_page_of_another_origin_is_turned_away(headers: dict[str, str], status: int) -> None:
    answer = await AdminFixture().get("/status", **headers)
    assert answer.status == status


async def test_the_public_listener_asks_for_no_loopback_host() -> None:
    answer = await AdminFixture().get("/readyz", public=True, host="app.example", origin="https://other.example")
    assert answer.status == 200


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "::2", "", "127.1", "::ffff:8.8.8.8"])
def test_loopback_is_told_without_looking_up_a_name(host: str) -> None:
    assert not is_loopback(host)
