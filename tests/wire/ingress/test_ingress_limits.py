"""Limits, identity, overload and the gateway's own endpoints, over sockets."""

import asyncio
import json

import http_sf
import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def fields_of(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


LIMITED = """
identity:
  user: [{path: "/api/user/{user}/*"}]
  tiers: [{name: premium, users: "premium_*"}, {name: free}]
routes:
  - {name: made, match: {path: "/api/user/*/make"}, rate_limit: {free: 3/h, premium: [5/h, 2/min]}}
  - {name: shadow, match: {path: /shadow}, rate_limit: 1/h, enforce: false}
  - {name: all, match: {path: /*}}
"""


async def test_a_limit_admits_n_and_never_one_more_however_many_come_at_once():
    async with ingress_gateway(answering(OK), LIMITED) as gateway:
        answers = await asyncio.gather(*(gateway.get("/api/user/ada/make") for _ in range(40)))
        assert sorted(map(status_of, answers)) == [200] * 3 + [429] * 37
        assert len(gateway.app.heads) == 3
        assert status_of(await gateway.get("/api/user/bob/make")) == 200
        metrics = await gateway.text()
        assert 'outrigger_rate_limit_total{decision="refused",route="made",tier="free"} 37.0' in metrics


async def test_the_answer_says_how_much_is_left_in_structured_fields():
    async with ingress_gateway(answering(OK), LIMITED) as gateway:
        fields = fields_of(await gateway.get("/api/user/premium_1/make"))
        policy = http_sf.parse(fields["ratelimit-policy"].encode(), tltype="list")
        left = http_sf.parse(fields["ratelimit"].encode(), tltype="list")
        assert [(name, dict(more)) for name, more in policy] == [
            ("made", {"q": 5, "w": 3600}),
            ("made-2", {"q": 2, "w": 60}),
        ]
        assert [(name, more["r"]) for name, more in left] == [("made", 4), ("made-2", 1)]
        assert (fields["x-ratelimit-limit"], fields["x-ratelimit-remaining"]) == ("2", "1")
        assert "ratelimit" not in fields_of(await gateway.get("/"))


async def test_a_refusal_is_a_problem_that_a_page_can_read():
    async with ingress_gateway(answering(OK), LIMITED) as gateway:
        for _ in range(3):
            await gateway.get("/api/user/ada/make")
        answer = await gateway.get("/api/user/ada/make", "Origin: https://page.example", "X-Request-Id: it")
        fields, problem = fields_of(answer), json.loads(answer.partition(b"\r\n\r\n")[2])
        assert status_of(answer) == 429
        assert fields["content-type"] == "application/problem+json"
        assert problem["type"] == "urn:outrigger:rate-limited"
        assert problem["status"] == 429
        assert problem["request_id"] == fields["x-request-id"] == "it"
        assert problem["retry_after"] == int(fields["retry-after"]) > 3500
        assert fields["access-control-allow-origin"] == "https://page.example"
        for name in ("Retry-After", "RateLimit", "X-Request-Id"):
            assert name in fields["access-control-expose-headers"]


async def test_a_request_refused_after_its_limit_does_not_count_against_it():
    app = answering(OK)
    async with ingress_gateway(app, LIMITED + "app: {hold: 1ms}\n") as gateway:
        app.is_ready, app.state = False, "restarting"
        assert [status_of(await gateway.get("/api/user/ada/make")) for _ in range(10)] == [503] * 10
        app.is_ready = True
        assert [status_of(await gateway.get("/api/user/ada/make")) for _ in range(4)] == [200, 200, 200, 429]


async def test_preflights_count_against_no_limit():
    async with ingress_gateway(answering(OK), LIMITED) as gateway:
        for _ in range(10):
            answer = await gateway.get(
                "/api/user/ada/make", "Origin: https://p", "Access-Control-Request-Method: GET", method="OPTIONS"
            )
            assert status_of(answer) == 200
        assert status_of(await gateway.get("/api/user/ada/make")) == 200


@pytest.mark.parametrize(
    "path", ["/api//user/ada/make", "/%61pi/user/ada/make", "/api/./user/ada/make", "/api/user/ada/make?x=1"]
)
async def test_another_spelling_of_a_path_is_no_way_round_its_limit(path):
    async with ingress_gateway(answering(OK), LIMITED) as gateway:
        for _ in range(3):
            await gateway.get("/api/user/ada/make")
        assert status_of(await gateway.get(path)) == 429


async def test_shadow_mode_counts_and_marks_and_refuses_nothing():
    async with ingress_gateway(answering(OK), LIMITED) as gateway:
        answers = [await gateway.get("/shadow") for _ in range(3)]
        assert [status_of(answer) for answer in answers] == [200, 200, 200]
        assert "r=0" in fields_of(answers[2])["ratelimit"]
        metrics = await gateway.text()
        assert 'outrigger_rate_limit_total{decision="shadow",route="shadow",tier="free"} 2.0' in metrics


@pytest.mark.parametrize(
    ("trusted", "moves"), [("none", False), ("private", True), ("[203.0.113.0/24]", False), ("1", True)]
)
async def test_a_forwarded_address_moves_a_limit_only_where_its_sender_is_trusted(trusted, moves):
    policy = f"listen: {{trusted_proxies: {trusted}}}\nroutes: [{{name: all, match: {{path: /*}}, rate_limit: 1/h}}]\n"
    async with ingress_gateway(answering(OK), policy) as gateway:
        first = await gateway.get("/", "X-Forwarded-For: 198.51.100.1")
        second = await gateway.get("/", "X-Forwarded-For: 198.51.100.2")
        assert (status_of(first), status_of(second)) == (200, 200 if moves else 429)


async def test_what_stands_left_of_a_trusted_chain_is_the_clients_to_write_and_moves_nothing():
    policy = "listen: {trusted_proxies: private}\nroutes: [{name: all, match: {path: /*}, rate_limit: 1/h}]\n"
    async with ingress_gateway(answering(OK), policy) as gateway:
        answers = [await gateway.get("/", f"X-Forwarded-For: 9.9.9.{n}, 198.51.100.1") for n in range(3)]
        assert [status_of(answer) for answer in answers] == [200, 429, 429]


async def test_a_reload_changes_limits_without_forgetting_counts():
    from proxy.policy.loading import PolicySource, load_policy

    async with ingress_gateway(answering(OK), LIMITED) as gateway:
        for _ in range(3):
            await gateway.get("/api/user/ada/make")
        gateway.service.apply(load_policy(PolicySource("new", None, LIMITED.replace("free: 3/h", "free: 4/h")), {}))
        assert [status_of(await gateway.get("/api/user/ada/make")) for _ in range(2)] == [200, 429]


def slow_app():
    gate = asyncio.Event()

    async def script(reader, writer):
        while True:
            head = await app.head(reader)
            if b"/stream" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
                await gate.wait()
                writer.write(b"0\r\n\r\n")
            elif b"/health" in head:
                writer.write(OK)
            else:
                await gate.wait()
                writer.write(OK)
            await writer.drain()

    app = Scripted(script)
    return app, gate


async def test_fixed_overload_admits_so_many_queues_so_many_and_refuses_the_rest():
    app, gate = slow_app()
    policy = "overload: {mode: fixed, fixed: {limit: 2, queue: 3, wait: 10s}}\napp: {ready: {path: /health}}\n"
    async with ingress_gateway(app, policy) as gateway:
        asking = [asyncio.create_task(gateway.get(f"/{n}")) for n in range(8)]
        await until(lambda: sum(task.done() for task in asking) == 3)
        await until(lambda: len(app.heads) == 2)
        refused = [task.result() for task in asking if task.done()]
        assert {status_of(answer) for answer in refused} == {503}
        assert all(b'"urn:outrigger:overloaded"' in answer and b"Retry-After: " in answer for answer in refused)
        assert status_of(await gateway.get("/health")) == 200
        gate.set()
        answers = await asyncio.gather(*asking)
        assert sorted(map(status_of, answers)) == [200] * 5 + [503] * 3
        assert "outrigger_shed_total{" in await gateway.text()


async def test_a_stream_counts_until_its_head_and_a_waiting_client_that_leaves_gives_up_its_place():
    app, gate = slow_app()
    async with ingress_gateway(app, "overload: {mode: fixed, fixed: {limit: 1, queue: 1, wait: 10s}}\n") as gateway:
        streams = []
        for n in range(3):
            streams.append(asyncio.create_task(gateway.get("/stream")))
            await until(lambda n=n: gateway.service.admission.queued("default") == 0 and len(app.heads) == n + 1)
        await until(lambda: repr(gateway.service.pool) == "<Pool 3 in use, 0 idle>")
        await asyncio.sleep(0.05)
        holding = asyncio.create_task(gateway.get("/hold"))
        await until(lambda: len(app.heads) == 4)
        _, leaving = await gateway.connect()
        leaving.write(b"GET /leaving HTTP/1.1\r\nHost: t\r\n\r\n")
        await until(lambda: gateway.service.admission.queued("default") == 1)
        leaving.close()
        await until(lambda: gateway.service.admission.queued("default") == 0)
        waiting = asyncio.create_task(gateway.get("/waiting"))
        await until(lambda: gateway.service.admission.queued("default") == 1)
        gate.set()
        assert status_of(await waiting) == status_of(await holding) == 200
        assert {status_of(answer) for answer in await asyncio.gather(*streams)} == {200}
        assert not any(b"/leaving" in head for head in app.heads)


async def test_a_routes_concurrency_queues_its_own_and_holds_up_no_other():
    app, gate = slow_app()
    policy = """
routes:
  - {name: dear, match: {path: /dear}, concurrency: 1, queue: {size: 1, wait: 200ms}}
"""
    async with ingress_gateway(app, policy) as gateway:
        asking = [asyncio.create_task(gateway.get("/dear")) for _ in range(3)]
        await until(lambda: sum(task.done() for task in asking) == 1)
        assert status_of(await gateway.get("/health")) == 200
        await until(lambda: sum(task.done() for task in asking) == 2)
        gate.set()
        assert sorted(map(status_of, await asyncio.gather(*asking))) == [200, 503, 503]


@pytest.mark.parametrize(
    ("claim", "own", "apps"),
    [
        (
            "/healthz",
            ("/healthz", "/_outrigger/healthz", "/_outrigger", "/_outrigger/x"),
            ("/_outriggers", "/readyz", "/"),
        ),
        ("/dashboard", ("/dashboard",), ("/dashboard/", "/dashboard/app.js", "/dashboards", "/ctl/reload")),
        ("/ctl", ("/ctl", "/ctl/reload", "/ctl/block/ada"), ("/ctls", "/dashboard", "/healthz")),
    ],
)
async def test_the_gateways_own_paths_and_no_others_are_its_own(claim, own, apps):
    async with ingress_gateway(answering(OK), f"listen: {{claim: [{claim}]}}") as gateway:
        for path in own:
            assert (await gateway.get(path)).endswith(b"ours")
        for path in apps:
            assert (await gateway.get(path)).endswith(b"ok")


async def test_the_access_log_tells_of_every_request_and_of_no_secret(tmp_path):
    async with ingress_gateway(answering(OK), LIMITED, tmp=tmp_path) as gateway:
        await gateway.get("/api/user/ada/make?token=hush&x=1", "Authorization: Bearer hush", "Cookie: s=hush")
        await gateway.raw(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    line = next(line for line in lines if line["event"] == "request")
    assert (line["route"], line["user"], line["tier"], line["status"]) == ("made", "ada", "free", 200)
    assert (line["path"], line["client_ip"]) == ("/api/user/ada/make?token=***&x=1", "127.0.0.1")
    assert (line["method"], line["bytes_out"], line["refused"]) == ("GET", 2, None)
    assert line["duration_ms"] >= line["app_ms"] > 0
    assert lines[-1]["refused"] == "bad-request"
    assert "hush" not in (tmp_path / "log").read_text()


async def test_faults_of_a_route_hit_that_route_alone(tmp_path):
    policy = "routes: [{name: a, match: {path: /a}}]\nfaults: [{route: a, status: 503, delay: 50ms}]\n"
    async with ingress_gateway(answering(OK), policy) as f:
        assert b"injected-fault" in await f.get("/a")
        assert (await f.get("/b")).startswith(b"HTTP/1.1 200")
