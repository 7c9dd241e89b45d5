"""What the running app cannot follow waits for its next start, is named until then, and breaks no call."""

from __future__ import annotations

import json
import shlex
import sys

import aiohttp
import pytest
from egress_gateway import Vendor, completion, says
from gateway_process import APPS, eventually, gateway
from in_process_gateway import in_process_gateway

CALLING = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"
PLAIN = (sys.executable, str(APPS / "plain.py"))
APP, GATEWAY = "app restart", "gateway restart"


@pytest.fixture
async def vendor():
    vendor = Vendor(says(completion()))
    await vendor.start()
    yield vendor
    await vendor.stop()


async def status(g) -> dict:
    return json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])


async def order(g, what: str) -> str:
    async with aiohttp.ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{g.admin}/ctl/{what}") as answer:
            return f"{answer.status} {await answer.text()}"


def shown(vendor: Vendor) -> str:
    """The key of the last call that the vendor saw."""
    return vendor.requests[-1][2]["Authorization"]


async def test_a_key_that_is_added_breaks_no_call_and_is_in_force_with_the_app_that_was_given_the_made_up_one(
    tmp_path, vendor
):
    mine = f"base_url: 'http://127.0.0.1:{vendor.port}/v1'"
    before = f"app: {{ready: {{path: /environ}}}}\nupstreams: {{openai: {{{mine}}}}}\n"
    async with gateway(tmp_path, CALLING, policy=before, environ={"OPENAI_API_KEY": "sk-the-apps"}) as g:
        await g.ready()
        file = tmp_path / f"policy-{g.port}.yaml"
        text = file.read_text()

        async def asked() -> str:
            answer = await g.request("/ask")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            return shown(vendor)

        assert await asked() == "Bearer sk-the-apps"
        file.write_text(text.replace(mine, f"{mine}, api_key: sk-real, retry: {{attempts: 2}}"))
        said = await order(g, "reload")
        assert "in force, but for upstreams.openai.api_key (until the next app restart)" in said
        assert await asked() == "Bearer sk-the-apps"  # as it was, until the app knows better
        assert (await status(g))["policy"]["pending"] == [{"key": "upstreams.openai.api_key", "until": APP}]
        reported = (await eventually(lambda: g.events("policy.kept")))[0]
        assert reported["key"] == "upstreams.openai.api_key"
        assert "ctl restart-app" in reported["message"]

        assert "The app was replaced" in await order(g, "restart-app")
        assert await asked() == "Bearer sk-real"
        assert (await status(g))["policy"]["pending"] == []
        await eventually(lambda: "With the app's start upstreams.openai.api_key of the policy" in g.output())

        file.write_text(text.replace(mine, f"{mine}, api_key: sk-rotated"))
        assert "is in force." in await order(g, "reload")  # the made-up one stays, so the real one may be another
        assert await asked() == "Bearer sk-rotated"

        file.write_text(text)
        assert "upstreams.openai.api_key (until" in await order(g, "reload")
        assert await asked() == "Bearer sk-rotated"  # the app still shows the made-up key, which nobody else knows
        await order(g, "restart-app")
        assert await asked() == "Bearer sk-the-apps"


async def test_an_upstream_that_is_taken_out_or_moved_serves_the_app_that_was_led_there_until_it_is_replaced(
    tmp_path, vendor
):
    base = f"http://127.0.0.1:{vendor.port}"
    before = f"app: {{ready: {{path: /environ}}}}\nupstreams: {{openai: {{base_url: '{base}/v1'}}}}\n"
    async with gateway(tmp_path, CALLING, policy=before, environ={"OPENAI_API_KEY": "k"}) as g:
        await g.ready()
        file = tmp_path / f"policy-{g.port}.yaml"
        text = file.read_text()
        file.write_text(text.replace(f"openai: {{base_url: '{base}/v1'}}", "openai: off"))
        assert "upstreams.openai (until the next app restart)" in await order(g, "reload")
        assert (await g.request("/ask")).startswith(b"HTTP/1.1 200")
        renamed = f"openai: off, model: {{kind: openai, base_url: '{base}/v1', env: [OPENAI_BASE_URL]}}"
        file.write_text(text.replace(f"openai: {{base_url: '{base}/v1'}}", renamed))
        said = await order(g, "reload")
        assert "upstreams.openai, upstreams.model.env (until the next app restart)" in said
        assert (await g.request("/ask")).startswith(b"HTTP/1.1 200")
        await eventually(lambda: len(g.events("call")) == 2)
        assert {one["upstream"] for one in g.events("call")} == {"openai"}
        await order(g, "restart-app")
        assert (await g.request("/ask")).startswith(b"HTTP/1.1 200")
        await eventually(lambda: g.events("call")[-1]["upstream"] == "model")
        assert "openai" not in (await status(g))["upstreams"]


async def test_a_crash_brings_what_waits_too(tmp_path):
    async with gateway(tmp_path, *PLAIN, policy="app: {restart: {backoff: 10ms}, liveness: off}\n") as g:
        await g.ready()
        file = tmp_path / f"policy-{g.port}.yaml"
        file.write_text(file.read_text() + "log: {app_output: wrap}\negress: {other_hosts: observe}\n")
        said = await order(g, "reload")
        assert "log.app_output, egress.other_hosts (until the next app restart)" in said
        assert not g.events("app")
        assert (await g.request("/env?HTTPS_PROXY")).endswith(b"(unset)")
        await g.request("/die")
        await eventually(lambda: (g.events("app.ready") or [0])[1:])
        assert (await g.request("/env?HTTPS_PROXY")).endswith(b"http://127.0.0.1:%d" % g.egress)
        await eventually(lambda: g.events("app"))
        assert (await eventually(lambda: g.events("app")))[0]["message"] == "plain app is up"


async def test_attribution_that_a_reload_asks_for_comes_with_the_next_app(tmp_path, monkeypatch):
    ledger = f"ledger: {{url: 'sqlite:///{tmp_path}/l.db'}}\n"
    async with in_process_gateway(tmp_path, monkeypatch, *PLAIN, policy=ledger) as running:
        running.reload(ledger + "identity: {user: [{header: X-User}]}\n")
        assert running.waiting == {"app.attribution": APP}
        notices = running.gateway.parts.egress.attribution
        assert notices._transport is None
        assert await running.gateway.parts.app.replace("reload")
        assert running.waiting == {}
        await eventually(lambda: notices._transport is not None)  # what the app's Python tells is heard


SAME = "ledger: {url: 'sqlite:///%s/l.db'}\n"
WAITS = [
    ("app: {port: 7}", {"app.port": GATEWAY}),
    ("app: {attribution: on}", {"app.attribution": APP}),
    ("log: {app_output: wrap}", {"log.app_output": APP}),
    ("egress: {other_hosts: deny}", {"egress.other_hosts": APP}),
    ("egress: {no_proxy: [a.example]}", {}),  # nobody has a proxy to go round
    ("egress: {other_hosts: observe, no_proxy: [a.example]}", {"egress.other_hosts": APP, "egress.no_proxy": APP}),
    ("upstreams: {openai: {env: [MY_BASE]}}", {"upstreams.openai.env": APP}),
    ("upstreams: {openai: {api_key: k}}", {"upstreams.openai.api_key": APP}),
    ("upstreams: {openai: {base_url: 'http://127.0.0.1:9/v1'}}", {}),  # the app goes on by the same address of ours
    ("upstreams: {openai: {kind: http, base_url: 'http://h/v1'}}", {"upstreams.openai.kind": APP, "upstreams.openai.base_url": APP}),
    ("upstreams: {anthropic: {}}", {"upstreams.anthropic.env": APP}),
    ("upstreams: {mail: {base_url: 'http://h', api_key: k}}", {"upstreams.mail.api_key": APP}),
    ("upstreams: {openai: off}", {"upstreams.openai": APP}),
    ("store: {url: 'redis://h/0', on_error: deny}", {"store.url": GATEWAY}),
    ("store: {prefix: other, region: oregon, money: 'postgresql://h/d'}", {"store.prefix": GATEWAY, "store.region": GATEWAY, "store.money": GATEWAY}),
    ("sentry: {dsn: 'https://k@h/1', environment: staging}", {"sentry.dsn": GATEWAY, "sentry.environment": GATEWAY}),
    ("postgres: {url: 'postgresql://h/d', listen: '127.0.0.1:1', tls: on}", {"postgres.url": GATEWAY, "postgres.listen": GATEWAY, "postgres.tls": GATEWAY}),
]  # fmt: skip


async def test_every_key_that_the_running_gateway_cannot_change_is_named_with_what_it_waits_for(tmp_path, monkeypatch):
    same = SAME % tmp_path
    async with in_process_gateway(tmp_path, monkeypatch, *PLAIN, policy=same) as running:
        for policy, waits in WAITS:
            running.reload(same + policy + "\n")
            assert running.refused is None, policy
            assert running.waiting == waits, policy
            pending = running.gateway.reloader.describe()
            assert all(key in pending for key in waits), policy
        running.reload("ledger: {url: 'sqlite:///else.db'}\n")
        assert running.waiting == {"ledger.url": GATEWAY}
        running.reload(same)
        assert running.waiting == {}
        assert running.gateway.parts.policy == running.gateway.rollout.app_policy


async def test_the_listeners_addresses_are_kept_and_named(tmp_path, monkeypatch):
    async with in_process_gateway(tmp_path, monkeypatch, *PLAIN, policy=SAME % tmp_path) as running:
        running._head = ""
        running.reload(
            "listen: {public: '127.0.0.1:1', admin: '127.0.0.1:2', egress: '127.0.0.1:3'}\n" + SAME % tmp_path
        )
        assert running.waiting == dict.fromkeys(("listen.public", "listen.admin", "listen.egress"), GATEWAY)


async def test_an_app_that_something_else_starts_is_given_another_environment_by_nobody(tmp_path, monkeypatch):
    async with in_process_gateway(tmp_path, monkeypatch, *PLAIN, policy=SAME % tmp_path) as running:
        front = running.gateway.parts.app.address
        policy = SAME % tmp_path + f"app: {{url: 'http://{front[0]}:{front[1]}'}}\n"
        other = tmp_path / "other"
        other.mkdir()
        async with in_process_gateway(other, monkeypatch, policy=policy) as fronting:
            fronting.reload(policy + "upstreams: {openai: {api_key: k}}\n")
            assert fronting.waiting == {"upstreams.openai.api_key": GATEWAY}
