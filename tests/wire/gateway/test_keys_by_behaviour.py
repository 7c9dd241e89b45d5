"""Keys of the policy whose effect no other test shows, each by what it does."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import sys

import aiohttp
import pytest
from egress_gateway import CHAT, Vendor, completion, egress_gateway, errs, hangs, says
from fake_sentry import fake_sentry
from gateway_process import APPS, eventually, gateway
from ingress_gateway import OK, answering, ingress_gateway

from proxy.observe.sentry import connect_sentry
from proxy.policy.loading import PolicySource, load_policy

PLAIN = (sys.executable, str(APPS / "plain.py"))
USAGE = {**completion(), "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}}


# ── app ──────────────────────────────────────────────────────────────────────────────────────


async def test_start_timeout_ends_an_app_that_is_not_ready_by_then(tmp_path):
    policy = "app: {start_timeout: 300ms, stop_timeout: 300ms}\n"
    async with gateway(tmp_path, *PLAIN, policy=policy, environ={"START_DELAY": "600"}) as g:
        assert await g.ended(30) != 0
        assert "app.start_timeout" in g.events("app.start-timeout")[0]["message"]


async def test_max_backoff_is_the_longest_pause_between_starts(tmp_path):
    policy = "app: {restart: {backoff: 10ms, max_backoff: 40ms, give_up_after: 5}, liveness: off}\n"
    line = f"test -e once && exit 3; touch once; exec {shlex.join(PLAIN)}"
    async with gateway(tmp_path, line, policy=policy) as g:
        await g.ready()
        await g.request("/die")
        assert await g.ended(30) == 3
        pauses = [one["message"].split(" in ")[1].split(" s")[0] for one in g.events("app.restart")]
        assert pauses == ["0.01", "0.02", "0.04", "0.04", "0.04"]


async def test_warn_is_the_share_of_memory_that_is_told(tmp_path):
    async with gateway(tmp_path, *PLAIN, policy="app: {memory: {limit: 1GiB, warn: 1%}}\n") as g:
        await g.ready()
        (count_alerts,) = await eventually(lambda: g.events("memory.warning"))
        assert count_alerts["message"].endswith("(app.memory.warn: 1%).")


# ── listen, log ──────────────────────────────────────────────────────────────────────────────


async def test_max_header_bounds_a_requests_head():
    async with ingress_gateway(answering(OK), "listen: {max_header: 8KiB}") as ingress:
        assert (await ingress.get("/", f"X-Long: {'x' * 6000}")).startswith(b"HTTP/1.1 200")
        assert (await ingress.get("/", f"X-Long: {'x' * 9000}")).startswith(b"HTTP/1.1 431")


async def test_redact_adds_to_what_is_never_logged(tmp_path):
    async with ingress_gateway(answering(OK), "log: {redact: [shoe-size]}", tmp=tmp_path) as ingress:
        await ingress.get("/x?shoe-size=hunter2&hat-size=plain&token=hunter2")
        await eventually(lambda: "hat-size=plain" in ingress.log.read_text())
        assert "hunter2" not in ingress.log.read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", r"ignore:\s*Eventlet is deprecated")
async def test_environment_is_what_sentry_calls_it():
    async with fake_sentry() as fake:
        policy = load_policy(PolicySource("p", None, f"sentry: {{dsn: '{fake.dsn}', environment: staging}}"), {})
        client = connect_sentry(policy.sentry, version="1", clock=asyncio.get_running_loop().time)
        client.capture_event("app.exit", "The app ended.", {})
        await asyncio.to_thread(client.close)
        await eventually(lambda: fake.events)
        assert fake.events[0]["environment"] == "staging"


# ── calls out ────────────────────────────────────────────────────────────────────────────────


async def test_on_says_which_answers_are_tried_again(tmp_path):
    openai = "retry: {attempts: 2, on: [503], backoff: {first: 1ms, max: 1ms}}"
    vendor = Vendor(errs(500), errs(503), says())
    async with egress_gateway(tmp_path, vendor, openai=openai) as out:
        assert (await out.chat())[0] == 500
        assert (await out.chat())[0] == 200
    assert len(vendor.requests) == 3


async def test_retry_after_is_obeyed_up_to_its_max(tmp_path):
    openai = "retry: {attempts: 2, retry_after: {max: 1s}, backoff: {first: 1ms, max: 1ms}}\npace: {wait: 0s}"
    vendor = Vendor(errs(503, retry_after="2"), errs(503, retry_after="0"), says())
    async with egress_gateway(tmp_path, vendor, openai=openai) as out:
        assert (await out.chat())[0] == 503  # longer: no retry
        assert (await out.chat())[0] == 200
    assert len(vendor.requests) == 3


async def test_probes_is_how_many_calls_try_an_upstream_whose_breaker_was_open(tmp_path):
    openai = "retry: {attempts: 1}\nbreaker: {window: 10s, min_calls: 3, failure_ratio: 50%, open: 200ms, probes: 2}"
    vendor = Vendor(errs(500), errs(500), errs(500), hangs())
    async with egress_gateway(tmp_path, vendor, openai=openai) as out:
        assert [(await out.chat())[0] for _ in range(4)] == [500, 500, 500, 503]
        await eventually(lambda: out.openai.breakers.retry_after == 0)
        calls = [asyncio.create_task(out.chat()) for _ in range(6)]
        await eventually(lambda: sum(task.done() for task in calls) == 4)
        assert {task.result()[0] for task in calls if task.done()} == {503}
        await eventually(lambda: len(vendor.requests) == 5)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize(("reserve", "status"), [("typical", 200), ("worst", 429)])
async def test_reserve_says_how_much_a_call_without_a_bound_may_come_to(tmp_path, reserve, status):
    openai = f"cap: {{per_call: $0.01, reserve: {reserve}}}\nprices: {{gpt-4o-mini: {{input: 1, output: 2}}}}"
    async with egress_gateway(tmp_path, Vendor(says()), openai=openai) as out:
        body = {key: value for key, value in CHAT.items() if not key.startswith("max")}
        assert (await out.chat(body))[0] == status


async def test_warn_says_at_which_shares_of_a_cap_it_is_told(tmp_path):
    openai = "cap: {total: $1/d, warn: [15%, 35%]}\nprices: {gpt-4o-mini: {input: 100, output: 100}}"
    async with egress_gateway(tmp_path, Vendor(says(USAGE)), openai=openai) as out:
        for _ in range(3):
            assert (await out.chat())[0] == 200
        lines = [json.loads(line) for line in (await _said(out, '"event": "cap"', 2)).splitlines()]
        assert [line["share"] for line in lines if line["event"] == "cap"] == [0.15, 0.35]


async def _said(out, text: str, times: int) -> str:
    await eventually(lambda: out.log.read_text().replace('":"', '": "').count(text) >= times)
    return out.log.read_text()


async def test_per_request_is_paid_for_each_call_and_least_seconds_for_each_sound(tmp_path):
    prices = "{gpt-4o-mini: {input: 0, output: 0, per_request: 0.02}, whisper-1: {per_minute: 0.6, least_seconds: 10}}"
    vendor = Vendor(says(USAGE), says({"text": "hm", "usage": {"type": "duration", "seconds": 1}}))
    async with egress_gateway(tmp_path, vendor, openai=f"prices: {prices}") as out:
        await out.chat()
        form = aiohttp.FormData({"model": "whisper-1"})
        form.add_field("file", b"x" * 1000, filename="a.mp3")
        async with out.session.post(f"{out.url}/openai/v1/audio/transcriptions", data=form) as answer:
            assert answer.status == 200
        calls = await out.logged(2)
        assert [call["cost_usd"] for call in calls] == [0.02, 0.1]


# ── other hosts ──────────────────────────────────────────────────────────────────────────────


async def asked(out, target: str, method: str = "GET") -> bytes:
    """The first line of what the way out answers a client that takes it for its proxy; then the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
    try:
        host = target.removeprefix("http://").partition("/")[0]
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(10):
            return (await reader.readuntil(b"\r\n")).split()[1]
    finally:
        writer.close()


async def test_connect_bounds_how_long_another_host_may_take_to_accept(tmp_path):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]  # past its backlog nobody is answered
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        more = "egress: {other_hosts: observe, timeout: {connect: 300ms, total: null}}\n"
        async with egress_gateway(tmp_path, Vendor(says()), more=more) as out:
            assert await asked(out, f"127.0.0.1:{port}", "CONNECT") in (b"502", b"504")
        for sock in waiting:
            sock.close()


async def test_idle_ends_a_tunnel_in_which_nothing_moves(tmp_path):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    more = "egress: {other_hosts: observe, timeout: {idle: 300ms, total: null}}\n"
    async with egress_gateway(tmp_path, Vendor(says()), more=more) as out:
        reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    server.close()


async def test_total_ends_an_exchange_with_another_host(tmp_path):
    vendor = Vendor(hangs())
    more = "egress: {other_hosts: observe, timeout: {idle: null, total: 300ms}}\n"
    async with egress_gateway(tmp_path, vendor, more=more) as out:
        assert await asked(out, f"http://127.0.0.1:{vendor.port}/") == b"504"


async def test_another_host_has_a_breaker_by_its_own_figures(tmp_path):
    vendor = Vendor(says())
    breaker = "{window: 60s, min_calls: 2, failure_ratio: 100%, open: 200ms, probes: 1}"
    more = f"egress: {{other_hosts: observe, breaker: {breaker}}}\n"
    async with egress_gateway(tmp_path, vendor, more=more) as out:
        url = f"http://127.0.0.1:{vendor.port}/"
        assert await asked(out, url) == b"200"
        await vendor.stop()
        assert [await asked(out, url) for _ in range(3)] == [b"502"] * 3  # not all failed
    out_of = more.replace("failure_ratio: 100%", "failure_ratio: 50%")
    (tmp_path / "two").mkdir()
    async with egress_gateway(tmp_path / "two", Vendor(says()), more=out_of) as out:
        late = Vendor(hangs())
        await late.start()
        await late.stop()
        url = f"http://127.0.0.1:{late.port}/"
        assert [await asked(out, url) for _ in range(3)] == [b"502", b"502", b"503"]
        await late.start()
        gate = next(iter(out.egress.forward_proxy._breakers.values()))
        await eventually(lambda: gate.retry_after == 0)
        calls = [asyncio.create_task(asked(out, url)) for _ in range(4)]
        await eventually(lambda: sum(task.done() for task in calls) == 3)
        assert {task.result() for task in calls if task.done()} == {b"503"}
        await eventually(lambda: len(late.requests) == 1)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await late.stop()


async def test_another_hosts_failures_are_forgotten_after_the_window(tmp_path):
    more = "egress: {other_hosts: observe, breaker: {window: 1s, min_calls: 2, failure_ratio: 50%}}\n"
    async with egress_gateway(tmp_path, Vendor(says()), more=more) as out:
        gone = Vendor(says())
        await gone.start()
        await gone.stop()
        url = f"http://127.0.0.1:{gone.port}/"
        assert await asked(out, url) == b"502"
        gate = next(iter(out.egress.forward_proxy._breakers.values()))
        clock = gate._clock
        gate._clock = gate._window._clock = lambda: clock() + 5.0
        assert [await asked(out, url) for _ in range(3)] == [b"502", b"502", b"503"]


# ── alerts ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("severity", ["warning", "critical"])
async def test_cooldown_is_the_pause_until_an_alert_that_lasts_is_told_again(tmp_path, severity):
    other = {"warning": "critical", "critical": "warning"}[severity]
    policy = f"app: {{memory: {{limit: 64MiB}}}}\nalerts: {{every: 1s, cooldown: {{{severity}: 1s, {other}: 1h}}, rules: {{mine: {{when: 'memory > 1% for 1s', severity: {severity}}}, theirs: {{when: 'memory > 1% for 1s', severity: {other}}}}}}}\n"
    async with gateway(tmp_path, *PLAIN, policy=policy) as g:
        await g.ready()

        def count_alerts(name: str) -> int:
            return sum(one["alert"] == name for one in g.events("alert"))

        await eventually(lambda: count_alerts("mine") >= 3, timeout=20)
        assert count_alerts("theirs") == 1


async def test_a_store_that_is_unwell_is_told_of_by_its_shipped_rule(tmp_path, monkeypatch):
    """With `memory://` it never is: the rule waits for a store that instances share."""
    from in_process_gateway import in_process_gateway

    from proxy.observe.health import ComponentHealth
    from proxy.policy.alert_condition_parser import parse_condition

    async with in_process_gateway(
        tmp_path, monkeypatch, *PLAIN, policy=f"ledger: {{url: 'sqlite:///{tmp_path}/l.db'}}\n"
    ) as running:
        alerts, clock = running.gateway.alerts, running.gateway.parts.clock
        assert alerts._policy.rules["store_lost"].when == parse_condition("store is down for 10s")
        since = clock()
        monkeypatch.setattr(
            running.gateway.parts.health,
            "check_components",
            lambda: _with_store(running, ComponentHealth("degraded", "no answer", since)),
        )
        monkeypatch.setattr(alerts, "_clock", lambda: clock() + 11.0)
        assert "store_lost" in [one.name for one in alerts.evaluate_rules()] or "store_lost" in [
            one.name for one in alerts.evaluate_rules()
        ]


def _with_store(running, state):
    found = dict(type(running.gateway.parts.health).check_components(running.gateway.parts.health))
    return {**found, "store": state}
