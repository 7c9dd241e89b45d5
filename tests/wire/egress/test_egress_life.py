"""An app behind a whole gateway, calling out: what it gets to know, whose its calls are, and what ends them."""

import asyncio
import json
import shlex
import sys

import pytest
from egress_gateway import Vendor, completion, errs, hangs, says
from gateway_process import APPS, eventually, gateway

APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"
POLICY = """
app: {ready: {path: /environ}}
identity: {user: [{path: "/api/user/{user}/*"}]}
routes: [{name: ask, match: {path: "/api/user/*"}, when_abandoned: cancel, timeout: 20s}]
"""


def upstream(vendor: Vendor, more: str = "") -> str:
    return f'{POLICY}upstreams: {{openai: {{base_url: "http://127.0.0.1:{vendor.port}/v1"{more}}}}}\n'


@pytest.fixture
async def vendor():
    vendor = Vendor(says())
    await vendor.start()
    yield vendor
    await vendor.stop()


async def test_a_call_belongs_to_the_request_it_came_from(tmp_path, vendor):
    environ = {"OPENAI_API_KEY": "sk-app"}
    async with gateway(tmp_path, APP, policy=upstream(vendor), environ=environ) as g:
        await g.ready()
        answer = await g.request("/api/user/ada/x", headers=["X-Request-Id: mine"])
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == completion()
        [call] = await eventually(lambda: g.events("call"))
        assert (call["request_id"], call["user"], call["outcome"], call["input_tokens"]) == ("mine", "ada", "ok", 7)
        [request] = await eventually(lambda: [one for one in g.events("request") if one["request_id"] == "mine"])
        assert request["calls"] == 1
        assert vendor.requests[0][2]["Authorization"] == "Bearer sk-app"
        assert "X-Outrigger-Request" not in vendor.requests[0][2]
        assert await g.stop() == 0


async def test_the_app_never_sees_the_real_key(tmp_path, vendor):
    environ = {"OPENAI_API_KEY": "sk-real", "OPENAI_BASE_URL": "https://old.example/v1"}
    policy = upstream(vendor, ', api_key: "${OPENAI_API_KEY}"')
    async with gateway(tmp_path, APP, policy=policy, environ=environ) as g:
        await g.ready()
        env = json.loads((await g.request("/environ")).partition(b"\r\n\r\n")[2])
        assert env["OPENAI_BASE_URL"] == env["OPENAI_API_BASE"] == f"http://127.0.0.1:{g.egress}/openai/v1"
        assert env["OUTRIGGER_EGRESS"] == f"http://127.0.0.1:{g.egress}"
        assert env["OPENAI_API_KEY"].startswith("sk-outrigger-")
        assert "HTTPS_PROXY" not in env
        assert (await g.request("/api/user/ada/x")).startswith(b"HTTP/1.1 200")
        assert vendor.requests[0][2]["Authorization"] == "Bearer sk-real"
        assert "sk-real" not in g.output()


async def test_a_base_url_that_the_app_had_is_where_its_calls_still_go(tmp_path, vendor):
    environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"http://127.0.0.1:{vendor.port}/api/v1"}
    async with gateway(tmp_path, APP, policy=POLICY, environ=environ) as g:
        await g.ready()
        assert (await g.request("/api/user/ada/x")).startswith(b"HTTP/1.1 200")
    assert vendor.requests[0][1] == "/api/v1/chat/completions"


async def test_an_app_reaches_loopback_and_its_database_past_the_proxy(tmp_path, vendor):
    environ = {"OPENAI_API_KEY": "k", "DATABASE_URL": "postgresql://me@db.internal:5432/x", "NO_PROXY": "own.internal"}
    policy = upstream(vendor) + "egress: {other_hosts: observe, no_proxy: [metadata.internal]}\n"
    async with gateway(tmp_path, APP, policy=policy, environ=environ) as g:
        await g.ready()
        env = json.loads((await g.request("/environ")).partition(b"\r\n\r\n")[2])
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            assert env[name] == f"http://127.0.0.1:{g.egress}"
        around = {"localhost", "127.0.0.1", "::1", "metadata.internal", "db.internal", "own.internal"}
        assert set(env["NO_PROXY"].split(",")) == set(env["no_proxy"].split(",")) == around
        assert (await g.request("/api/user/ada/x")).startswith(b"HTTP/1.1 200")  # its calls come in by path
        assert [call["upstream"] for call in await eventually(lambda: g.events("call"))] == ["openai"]


async def test_a_client_who_leaves_takes_the_call_with_it(tmp_path, vendor):
    vendor.answers = [hangs()]
    async with gateway(tmp_path, APP, policy=upstream(vendor), environ={"OPENAI_API_KEY": "k"}) as g:
        await g.ready()
        call = asyncio.ensure_future(g.request("/api/user/ada/x"))
        await eventually(lambda: vendor.open)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await eventually(lambda: vendor.gone == 1, timeout=1.0)
        [reported] = await eventually(lambda: g.events("call"))
        assert reported["outcome"] == "gone"


async def test_a_failing_vendor_degrades_and_never_takes_down(tmp_path, vendor):
    vendor.answers = [errs(500)]
    policy = upstream(vendor, ", retry: {attempts: 1}, breaker: {min_calls: 2}")
    async with gateway(tmp_path, APP, policy=policy, environ={"OPENAI_API_KEY": "k"}) as g:
        await g.ready()
        for status in (b"500", b"500", b"503"):
            assert (await g.request("/api/user/ada/x")).split()[1] == status
        answer = await g.request("/healthz", port=g.admin)
        health = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (answer.split()[1], health["status"], health["upstreams"]["state"]) == (b"200", "degraded", "degraded")
        assert b'outrigger_breaker_state{upstream="openai"} 2.0' in await g.request("/metrics", port=g.admin)
        [opened] = await eventually(lambda: g.events("breaker"))
        assert opened["level"] == "error"
        assert g.process.returncode is None


async def test_a_reload_takes_new_rules_and_keeps_calls_under_way(tmp_path, vendor):
    async def slow(request):
        await asyncio.sleep(3)
        return await says()(request)

    vendor.answers = [slow, says()]
    async with gateway(tmp_path, APP, policy=upstream(vendor), environ={"OPENAI_API_KEY": "k"}) as g:
        await g.ready()
        call = asyncio.ensure_future(g.request("/api/user/ada/x"))
        await eventually(lambda: vendor.open)
        file = next(tmp_path.glob("policy-*.yaml"))
        file.write_text(file.read_text() + "faults: [{upstream: openai, status: 418}]\n")
        await eventually(lambda: g.events("policy.reload"))
        assert (await call).startswith(b"HTTP/1.1 200")
        assert (await g.request("/api/user/ada/x")).split()[1] == b"418"
        assert (await eventually(lambda: g.events("faults")))[0]["level"] == "warning"


async def test_a_taken_egress_address_is_named_by_its_key(tmp_path, vendor):
    text = f"listen: {{public: off, admin: 127.0.0.1:0, egress: 127.0.0.1:{vendor.port}}}\n"
    file = tmp_path / "taken.yaml"
    file.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "proxy",
        "run",
        "--policy",
        str(file),
        "--",
        "sleep 60",
        stderr=asyncio.subprocess.STDOUT,
        stdout=asyncio.subprocess.PIPE,
        cwd=APPS.parents[1],
    )
    reported, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert b"listen.egress" in reported
