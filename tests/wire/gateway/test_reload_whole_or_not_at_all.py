"""A policy is taken whole or not at all: at a check, at a start, and while the gateway runs."""

from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest
from gateway_process import APPS, ROOT, eventually, gateway
from in_process_gateway import in_process_gateway

from proxy.cli.check import run_check
from proxy.cli.run import run_gateway
from proxy.errors import OutriggerError, PolicyError

APP = (sys.executable, str(APPS / "plain.py"))
BEFORE = "ledger: {url: 'sqlite:///%s/ledger.db'}\nlog: {level: info}\napp: {hold: 3s}\n"
AFTER = """ledger: {url: 'sqlite:///%s/ledger.db', keep: 1d}
log: {level: debug, redact: [x-mine]}
app: {hold: 9s}
admin: {token: another-token-of-the-operator}
metrics: {max_series: 77}
routes: [{name: mine, match: {path: /mine}, rate_limit: 1/h, background: {mode: prefer}}]
store: {timeout: 90ms}
upstreams: {openai: {cap: {total: $1/d}, retry: {budget: 30%%}}, other: {base_url: 'http://127.0.0.1:9'}}
alerts: {every: 5s}
"""
PEM = "-----BEGIN PUBLIC KEY-----\\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\\n-----END PUBLIC KEY-----"

# What a start would have stumbled over: the policy, and the key that is named with its line.
UNFIT = [
    ("jwt", "identity:\n  user:\n    - jwt:\n        algorithms: [RS256]\n        key: secret-secret-secret", 8, "identity.user[0].jwt.key"),
    ("pem", f'identity:\n  user:\n    - jwt:\n        algorithms: [HS256]\n        key: "{PEM}"', 8, "identity.user[0].jwt.key"),
    ("dsn", "sentry:\n  dsn: https://example.com/1", 5, "sentry.dsn"),
    ("tls", "postgres:\n  url: postgresql://h/d?sslmode=maybe", 5, "postgres.url"),
    ("port", "postgres:\n  url: postgresql://h:99999/d", 5, "postgres.url"),
    ("ledger", "ledger:\n  url: postgresql://h/d?target_session_attrs=best", 5, "ledger.url"),
    ("name", "upstreams:\n  mine:\n    base_url: http://xn--/v1", 6, "upstreams.mine.base_url"),
    ("zone", "upstreams:\n  openai:\n    cap: {timezone: America}", 6, "upstreams.openai.cap.timezone"),
    ("rule", 'alerts:\n  rules:\n    mine: {when: "errors > 5% on nowhere over 5m"}', 6, "alerts.rules.mine.when"),
    ("price", "upstreams:\n  openai:\n    prices: {m: {input: 1}}", 6, "upstreams.openai.prices.m"),
    ("path", "identity:\n  user:\n    - path: /{user}/{user}", 6, "identity.user[0].path"),
]  # fmt: skip


async def proxy(*words: str, cwd) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *words),
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, said.decode()


@pytest.mark.parametrize(("policy", "line", "key"), [row[1:] for row in UNFIT], ids=[row[0] for row in UNFIT])
def test_what_a_start_would_stumble_over_is_refused_by_check_and_by_run_with_file_and_line(
    tmp_path, monkeypatch, capsys, policy, line, key
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(f"app:\n  hold: 1s\n# the fault is below\n{policy}\n")
    out, err = io.StringIO(), io.StringIO()
    assert run_check(["p.yaml"], {}, out, err) == 2
    assert run_gateway(["--policy", "p.yaml", "--", "false"], {}) == 2
    for said in (err.getvalue(), capsys.readouterr().err):
        assert f"p.yaml:{line}: {key}: " in said
        assert "secret-secret" not in said


async def test_the_command_ends_with_2_where_a_key_does_not_fit_and_starts_nothing(tmp_path):
    (tmp_path / "p.yaml").write_text(UNFIT[0][1])
    status, said = await proxy("run", "--policy", "p.yaml", "--", "touch", "started", cwd=tmp_path)
    assert status == 2
    assert said.startswith("p.yaml:5: identity.user[0].jwt.key: it does not fit RS256; ")
    assert not (tmp_path / "started").exists()


async def test_a_key_that_does_not_fit_is_told_everywhere_changes_nothing_and_the_next_save_is_seen(tmp_path):
    rules = "alerts: {every: 1s, rules: {refused: {when: policy is refused, severity: warning}}}\n"
    async with gateway(tmp_path, *APP, policy=rules) as g:
        await g.ready()
        file = tmp_path / f"policy-{g.port}.yaml"
        fine = file.read_text()
        unfit = "identity: {user: [{jwt: {algorithms: [RS256], key: not-a-pem}}]}\nroutes: [{name: new, match: {path: /*}, rate_limit: 1/h}]\n"
        file.write_text(fine + unfit)
        await eventually(lambda: g.events("policy.refused"))
        (reported,) = g.events("policy.refused")
        assert reported["key"] == "identity.user[0].jwt.key"
        assert reported["message"].startswith(f"{file}:{reported['line']}: ")
        await eventually(lambda: [one for one in g.events("alert") if one["alert"] == "refused"])
        status = json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])
        assert "jwt.key" in status["policy"]["refused"]
        assert "new" not in status["routes"]
        assert b'policy_reloads_total{result="refused"} 1.0' in await g.request("/metrics", port=g.admin)
        for _ in range(3):  # nothing of it is in force
            assert (await g.request("/x")).startswith(b"HTTP/1.1 200")
        file.write_text(fine + "routes: [{name: newer, match: {path: /*}}]\n")
        await eventually(lambda: [one for one in g.events("policy.reload") if "in force" in one["message"]])
        status = json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])
        assert status["policy"]["refused"] is None
        assert "newer" in status["routes"]


def picture(gateway) -> dict[str, object]:
    """What is in force, part by part; things are compared by identity where they are the policy's own."""
    parts = gateway.parts
    upstreams = parts.egress.upstreams
    return {
        "policy": id(parts.policy),
        "log": (id(parts.log.policy), id(parts.log.redactor)),
        "token": gateway.authenticator.token,
        "series": parts.metrics.http_requests_total.max_series,
        "app": id(parts.app._policy),
        "rules": id(parts.ingress.pipeline.rules),
        "listen": id(parts.ingress.listener.listen),
        "upstreams": {name: id(one) for name, one in upstreams.items()},
        "cap": upstreams["openai"].billing.limits.cap,
        "budget": upstreams["openai"].retry_budget.share,
        "ledger": id(parts.ledger._policy),
        "store": id(parts.store.policy),
        "money": id(parts.money_store.policy),
        "tasks": parts.tasks.service is not None,
        "alerts": id(gateway.alerts._policy),
        "postgres": id(parts.postgres.policy) if parts.postgres is not None else None,
    }


PARTS = [
    "log",
    "metrics",
    "admin",
    "app",
    "tasks",
    "ingress",
    "egress",
    "ledger",
    "store",
    "money_store",
    "alerts",
    "postgres",
]
FAULTS = [PolicyError([]), OutriggerError("it does not fit"), ValueError("secret-secret"), AttributeError("a bug")]


async def test_whichever_part_cannot_be_made_nothing_is_changed_and_it_is_told(tmp_path, monkeypatch):
    database = (
        "postgres: {url: 'postgresql://nobody@127.0.0.1:9/none', listen: '127.0.0.1:0', pool: {min: 0, max: %d}}\n"
    )
    async with in_process_gateway(tmp_path, monkeypatch, *APP, policy=BEFORE % tmp_path + database % 2) as running:
        gateway = running.gateway
        assert sorted(gateway.rollout.preparations) == sorted(PARTS), "a new part needs a row here"
        before = picture(gateway)
        for count, name in enumerate(PARTS):
            good = gateway.rollout.preparations[name]
            error = FAULTS[count % len(FAULTS)]

            def fail(_, error=error):
                raise error

            monkeypatch.setitem(gateway.rollout.preparations, name, fail)
            running.reload(AFTER % tmp_path + database % 3)
            assert picture(gateway) == before, name
            assert running.refused is not None, name
            assert "secret-secret" not in running.refused
            gateway.rollout.preparations[name] = good
        running.reload(AFTER % tmp_path + database % 3)
        assert running.refused is None
        after = picture(gateway)
        assert [key for key in before if before[key] == after[key]] == []
        assert "secret-secret" not in running.output()


async def test_a_fault_of_ours_while_it_is_put_in_force_puts_the_old_policy_back(tmp_path, monkeypatch):
    async with in_process_gateway(tmp_path, monkeypatch, *APP, policy=BEFORE % tmp_path) as running:
        gateway = running.gateway
        token, hold = gateway.authenticator.token, gateway.parts.app._policy.hold
        good = gateway.rollout.preparations["alerts"]

        def slip(policy):
            take = good(policy)

            def taken():
                if policy.app.hold == 9.0:
                    raise KeyError("a bug")
                take()

            return taken

        monkeypatch.setitem(gateway.rollout.preparations, "alerts", slip)
        running.reload(AFTER % tmp_path)
        assert running.refused is not None
        assert (gateway.authenticator.token, gateway.parts.app._policy.hold) == (token, hold)
        assert "mine" not in gateway.parts.ingress.pipeline.rules.routes.match("GET", "/mine").name
        assert "other" not in gateway.parts.egress.upstreams
        gateway.rollout.preparations["alerts"] = good
        running.reload(AFTER % tmp_path)
        assert running.refused is None
        assert gateway.parts.ingress.pipeline.rules.routes.match("GET", "/mine").name == "mine"
