"""A policy as text: complete, loadable, and without its secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.renderer import render_policy
from proxy.policy.schema import Policy

CONFIG = Path(__file__).resolve().parents[3] / "config"


def say(text: str, **environ: str) -> Policy:
    return load_policy(PolicySource("p.yaml", None, text), environ)


def test_the_defaults_render_to_a_policy_that_says_the_same() -> None:
    assert say(render_policy(Policy())) == Policy()


EVERYTHING = """
app: {port: 8002, memory: {limit: 512MiB, recycle: 92.5%}, attribution: on, ready: {path: "/h,{x}"}}
listen: {public: off, admin: "[::1]:0", claim: [/healthz], trusted_proxies: [10.0.0.0/8, "fd00::/8"], max_body: 10MiB}
identity:
  user: [{path: "/u/{user}/*"}, {header: X-User}, {cookie: "a*b"}]
  tiers: [{name: "1", users: "ü [a-z]*: #x"}, {name: "on", users: "off"}, {name: "null"}]
routes:
  - {name: a, match: {path: /*, methods: [GET]}, rate_limit: {"1": [1/5s, 2/h], "on": 3/d}, concurrency: 2, queue: {wait: 250ms}}
  - {name: "off", total: 5m, rate_limit: 60/min, when_abandoned: cancel, enforce: false}
overload: {mode: adaptive, adaptive: {tolerance: 1.5}, priority: {"1": 3, "on": 1}}
upstreams:
  openai: off
  anthropic: {breaker: off, pace: {requests: 5/min}, cap: {per_call: $0.05, per_user: {"1": [$0.50/d, $5/month]}, total: $50/d}}
  mine: {base_url: "http://x/$${Y}", fallback: [{stale: true}, {text: "a: {b}\\n# ${Z} \\\\ é 😀"}], prices: {"m: 1": {input: 0.50, output: 1}}}
egress: {breaker: null, timeout: {idle: null}}
postgres: {env: {H: host, P: port}, timeout: {query: 30s}}
store: {url: "redis://x:6379"}
alerts: {rules: {slow: off, mine: {when: "p99 > 1500ms on off over 10m", severity: critical}}}
log: {redact: [mine]}
metrics: {app: /metrics}
faults: [{route: a, delay: 2s, share: 0.1%}, {upstream: mine, status: 503}]
"""


def test_a_policy_that_says_everything_renders_to_one_that_says_the_same() -> None:
    policy = say(EVERYTHING, Z="${W} $")
    assert say(render_policy(policy)) == policy
    assert render_policy(say(render_policy(policy))) == render_policy(policy)


@pytest.mark.parametrize("name", ["policy.yaml", "reference.yaml"])
def test_our_own_policies_render_to_policies_that_say_the_same(name: str) -> None:
    policy = say((CONFIG / name).read_text(encoding="utf-8"), JWT_KEY="***", PORT="8080")
    assert say(render_policy(policy)) == policy


def test_every_default_is_written_out() -> None:
    """Every key of the reference that is no example is a key of the rendering."""
    keys = set(re.findall(r"[\w.]+(?=:)", render_policy(Policy())))
    assert {"backoff", "stale_if_error", "idle_in_transaction", "cpu_throttled", "bodies", "dsn", "queue"} <= keys


def test_no_secret_is_shown() -> None:
    text = """
    identity: {user: [{jwt: {key: hunter2}}]}
    upstreams: {openai: {api_key: hunter2, base_url: "https://u:hunter2@x/v1"}}
    postgres: {url: "postgresql://u:hunter2@h/d?password=hunter2"}
    store: {url: "rediss://:hunter2@x"}
    ledger: {url: "postgresql://u:hunter2@h/d"}
    alerts: {webhook: "https://x/hunter2"}
    """
    policy = say(
        text,
        OUTRIGGER_ADMIN_TOKEN="hunter2",
        SLACK_WEBHOOK_URL="https://hooks.example.com/hunter2",
        SENTRY_DSN="https://hunter2@sentry.example.com/1",
    )
    shown = render_policy(policy)
    assert "hunter2" not in shown
    assert 'token: "***"' in shown
    assert "postgresql://u:***@h/d?password=***" in shown
    assert render_policy(Policy()).count("***") == 0
    assert render_policy(say(shown)) == shown, "what stands in a secret's place loads again, a URL's too"
