"""A secret in every place that a request, a policy or a vendor's answer has: none of them comes out anywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from aiohttp import web
from free_ports import free_port
from gateway_process import APPS, GatewayProcess, eventually, gateway

from proxy.errors import PolicyError
from proxy.policy.loading import PolicySource, load_policy

APP = (sys.executable, str(APPS / "plain.py"))

PLACES = (
    "admin-token", "slack-url", "webhook-url", "sentry-dsn", "database-password", "openai-key", "jwt-key",
    "query-token", "query-key-encoded", "query-array", "query-semicolon", "userinfo", "authorization", "basic",
    "cookie", "x-api-key", "proxy-authorization", "request-body", "answer-body", "guess-of-the-admin-token",
    "session-as-user", "jwt-of-a-user", "call-authorization", "call-query", "call-api-key", "vendor-echo",
    "vendor-header", "prompt", "completion", "unreadable-request", "two-hosts", "upstream-userinfo",
    "websocket-protocol", "referer", "bot-in-a-path", "slack-in-a-path", "link-in-a-path", "bot-called",
    "slack-called", "nobody-called",
)  # fmt: skip


def mark(place: str) -> str:
    assert place in PLACES
    return f"hunter2{place.replace('-', '')}hunter2"


POLICY = """
admin: {token: "${OUTRIGGER_ADMIN_TOKEN}"}
identity: {user: [{jwt: {header: X-Jwt, claim: sub, key: "${JWT_KEY}", algorithms: [HS256]}}, {cookie: session}]}
alerts: {slack: "${SLACK_WEBHOOK_URL}", webhook: "${WEBHOOK}"}
postgres: {url: "${DATABASE_URL}", listen: "127.0.0.1:%(pool)d", pool: {wait: 500ms}}
ledger: {url: "sqlite:///ledger.db"}
log: {level: debug}
upstreams:
  openai: {base_url: "http://127.0.0.1:%(vendor)d/v1", api_key: "${OPENAI_API_KEY}", retry: {attempts: 1}}
  away: {kind: openai, base_url: "${AWAY}", retry: {attempts: 2, backoff: {first: 10ms}}}
"""


async def vendor(request: web.Request) -> web.StreamResponse:
    body = await request.text()
    if "echo" in body:
        key = request.headers["Authorization"]
        error = {"message": f"Incorrect API key provided: {key} {mark('vendor-echo')}", "type": "invalid_request_error"}
        return web.json_response({"error": error}, status=401, headers={"X-Debug": mark("vendor-header")})
    choice = {"index": 0, "message": {"role": "assistant", "content": mark("completion")}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return web.json_response(
        {"id": "x", "object": "chat.completion", "model": "gpt-4o-mini", "choices": [choice], "usage": usage}
    )


async def ask_all(g: GatewayProcess) -> None:
    query = f"token={mark('query-token')}&api%5Fkey={mark('query-key-encoded')}&user[password]={mark('query-array')}"
    await g.request(f"/path?{query}&a=1;secret_token={mark('query-semicolon')}")
    for path in ("/bot123:{}/x", "/bot123%3A{}/x"):
        await g.request(path.format(mark("bot-in-a-path")))
    await g.request(f"/services/T0000/B0000/{mark('slack-in-a-path')}")
    await g.request(f"/reset-password/{mark('link-in-a-path')}?a=1")
    await g.request(f"http://me:{mark('userinfo')}@localhost/x")
    fields = [
        f"Authorization: Bearer {mark('authorization')}",
        f"Cookie: id={mark('cookie')}; session={mark('session-as-user')}",
        f"X-Api-Key: {mark('x-api-key')}",
        f"Proxy-Authorization: Basic {mark('proxy-authorization')}",
        f"X-Jwt: eyJhbGciOiJIUzI1NiJ9.{mark('jwt-of-a-user')}.x",
        f"Referer: http://localhost/?token={mark('referer')}",
        f"Sec-WebSocket-Protocol: {mark('websocket-protocol')}",
    ]
    assert (await g.request("/", headers=fields)).startswith(b"HTTP/1.1 200")
    await g.request(
        "/", headers=[f"Authorization: Basic {mark('basic')}"], method="POST", body=mark("request-body").encode()
    )
    await g.request("/_outrigger/status", headers=[f"Authorization: Bearer {mark('guess-of-the-admin-token')}"])
    await g.request("/", headers=[f"Host: {mark('two-hosts')}"])
    await g.request(f"/%zz bad line {mark('unreadable-request')}\x01")


async def call_all(g: GatewayProcess) -> None:
    def chat(text: str) -> bytes:
        return json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}).encode()

    made_up = (await g.request("/env?OPENAI_API_KEY")).partition(b"\r\n\r\n")[2].decode()
    path = "/openai/v1/chat/completions"
    kind = "Content-Type: application/json"
    for text in (f"say {mark('prompt')}", f"echo {mark('prompt')}"):
        answer = await g.request(
            path, port=g.egress, method="POST", headers=[kind, f"Authorization: Bearer {made_up}"], body=chat(text)
        )
        assert answer.startswith(b"HTTP/1.1 4" if "echo" in text else b"HTTP/1.1 200"), answer
    wrong = [kind, f"Authorization: Bearer {mark('call-authorization')}", f"Api-Key: {mark('call-api-key')}"]
    await g.request(f"{path}?key={mark('call-query')}", port=g.egress, method="POST", headers=wrong, body=chat("x"))
    away = f"/away/v1/chat/completions?key={mark('call-query')}"
    await g.request(f"/away/bot123:{mark('bot-called')}/getMe", port=g.egress)
    await g.request(f"/away/services/T0/B0/{mark('slack-called')}", port=g.egress, method="POST", body=b"{}")
    await g.request(f"/bot9:{mark('nobody-called')}/getMe", port=g.egress)
    answer = await g.request(away, port=g.egress, method="POST", headers=wrong, body=chat(mark("prompt")))
    assert answer.startswith(b"HTTP/1.1 502"), answer


async def test_no_secret_comes_out_in_a_log_a_metric_a_status_or_the_ledger(tmp_path):
    runner = web.ServerRunner(web.Server(vendor), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    nobody = free_port()
    environ = {
        "OUTRIGGER_ADMIN_TOKEN": mark("admin-token"),
        "JWT_KEY": mark("jwt-key") * 2,
        "SLACK_WEBHOOK_URL": f"http://127.0.0.1:{nobody}/services/{mark('slack-url')}",
        "WEBHOOK": f"http://127.0.0.1:{nobody}/hook?key={mark('webhook-url')}",
        "SENTRY_DSN": f"http://{mark('sentry-dsn')}@127.0.0.1:{nobody}/1",
        "DATABASE_URL": f"postgresql://me:{mark('database-password')}@127.0.0.1:{nobody}/db",
        "OPENAI_API_KEY": mark("openai-key"),
        "AWAY": f"http://me:{mark('upstream-userinfo')}@127.0.0.1:{nobody}/v1",
    }
    policy = POLICY % {"vendor": port, "pool": free_port()}
    try:
        async with gateway(tmp_path, *APP, policy=policy, environ=environ, cwd=tmp_path) as g:
            await g.ready()
            await ask_all(g)
            await call_all(g)
            shown = [f"Authorization: Bearer {mark('admin-token')}"]
            pages = {
                path: (await g.request(path, port=g.admin, headers=shown)).decode()
                for path in ("/metrics", "/status", "/status?policy=1", "/healthz", "/readyz", "/dashboard")
            }
            assert pages["/status"].startswith("HTTP/1.1 200")
            await eventually(lambda: len(g.events("call")) >= 7)
            assert await g.stop() == 0
            everywhere = {"the log": g.output(), **pages}
            for file in Path(tmp_path).glob("ledger.db*"):
                everywhere[file.name] = file.read_bytes().decode("latin-1")
            assert "ledger.db" in everywhere
            leaks = [(place, where) for place in PLACES for where, text in everywhere.items() if mark(place) in text]
            assert leaks == []
            assert "gpt-4o-mini" in everywhere["ledger.db"]  # it did look where the rows are
            assert "token=***" in everywhere["the log"]
    finally:
        await runner.cleanup()


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "line",
    [
        f"alerts: {{slack: 'hooks.slack.com/{SECRET}'}}",
        f"alerts: {{webhook: '{SECRET}'}}",
        f"sentry: {{dsn: '{SECRET}'}}",
        f"postgres: {{url: 'mysql://me:{SECRET}@h/db'}}",
        f"postgres: {{url: 'postgresql://me:{SECRET}@h /db'}}",
        f"ledger: {{url: 'mysql://me:{SECRET}@h/db'}}",
        f"store: {{url: 'memcached://me:{SECRET}@h'}}",
        f"upstreams: {{openai: {{base_url: 'ftp://me:{SECRET}@h/v1'}}}}",
        f"upstreams: {{openai: {{api_key: ['{SECRET}']}}}}",
        f"admin: {{token: ['{SECRET}']}}",
        f"identity: {{user: [{{jwt: {{key: ['{SECRET}'], claim: sub}}}}]}}",
        f"app: {{url: 'ftp://me:{SECRET}@h'}}",
    ],
)
@pytest.mark.parametrize("from_environment", [False, True])
def test_a_fault_of_the_policy_does_not_tell_a_secret(line: str, from_environment: bool) -> None:
    text = line.replace(SECRET, "${IT}") if from_environment else line
    with pytest.raises(PolicyError) as refused:
        load_policy(PolicySource("p.yaml", None, f"version: 1\n{text}\n"), {"IT": SECRET})
    assert SECRET not in str(refused.value)
