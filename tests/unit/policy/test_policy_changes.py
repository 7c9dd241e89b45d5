"""In which keys two policies differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.policy.changes import find_changes
from proxy.policy.loading import PolicySource, load_policy, read_rendered
from proxy.policy.renderer import render_policy
from proxy.policy.schema import Policy

CONFIG = Path(__file__).resolve().parents[3] / "config"
ENVIRON = {"JWT_KEY": "k" * 40, "OPENAI_API_KEY": "sk-1", "DATABASE_URL": "postgresql://u:p@h/d"}


def say(text: str) -> Policy:
    return load_policy(PolicySource("p.yaml", None, text), ENVIRON)


def differing(old: str, new: str) -> dict[str, tuple[str, str]]:
    return {change.key: (change.before, change.after) for change in find_changes(say(old), say(new))}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", {}),
        ("", "app: {hold: 15s}", {}),
        ("", "app: {hold: 5s}", {"app.hold": ("15s", "5s")}),
        (
            "app: {liveness: off}",
            "",
            {"app.liveness": ("off", "{path: null, interval: 10s, timeout: 5s, failures: 3}")},
        ),
        ("", "listen: {trusted_proxies: 2}", {"listen.trusted_proxies": ("auto", "2")}),
        (
            "routes: [{name: a, timeout: 1s}, {name: b}]",
            "routes: [{name: a, timeout: 2s}, {name: b}]",
            {"routes.a.timeout": ("1s", "2s")},
        ),
        ("", "upstreams: {openai: {retry: {attempts: 2}}}", {"upstreams.openai.retry.attempts": ("4", "2")}),
        (
            "",
            "alerts: {rules: {memory: {severity: critical}}}",
            {"alerts.rules.memory.severity": ("warning", "critical")},
        ),
        (
            "identity: {tiers: [{name: free}]}\nroutes: [{name: a, rate_limit: {free: 1/h}}]",
            "identity: {tiers: [{name: free}]}\nroutes: [{name: a, rate_limit: {free: [1/h, 1/s]}}]",
            {"routes.a.rate_limit": ("{free: 1/h}", "{free: [1/h, 1/s]}")},
        ),
    ],
)
def test_a_key_that_differs_has_its_value_before_and_after(
    old: str, new: str, found: dict[str, tuple[str, str]]
) -> None:
    assert differing(old, new) == found


def test_what_comes_goes_and_changes_places_is_told_by_its_name() -> None:
    found = differing(
        "routes: [{name: a}]", "routes: [{name: b}]\nupstreams: {weather: {base_url: 'https://w.example'}}"
    )
    assert found["routes.a"][1] == found["routes.b"][0] == found["upstreams.weather"][0] == ""
    assert "https://w.example" in found["upstreams.weather"][1]
    assert list(differing("routes: [{name: a}, {name: b}]", "routes: [{name: b}, {name: a}]")) == ["routes"]


def test_a_secret_that_changed_is_told_and_not_shown() -> None:
    found = differing("upstreams: {openai: {api_key: sk-1}}", "upstreams: {openai: {api_key: sk-2}}")
    assert found == {"upstreams.openai.api_key": ('"***"', '"***"')}


@pytest.mark.parametrize("name", ["reference", "policy", "sprint"])
def test_a_policy_that_was_rendered_reads_as_one_without_its_secrets(name: str) -> None:
    policy = say((CONFIG / f"{name}.yaml").read_text(encoding="utf-8"))
    again = read_rendered(render_policy(policy))
    secrets = {"identity.user", "postgres.url", "ledger.url", "admin.token"}
    assert {change.key for change in find_changes(policy, again)} <= secrets
    assert render_policy(again) == render_policy(policy)


def test_what_no_gateway_wrote_is_no_policy() -> None:
    for text in ("a: b", "[", "app: {hold: 5}"):
        with pytest.raises(ValueError):
            read_rendered(text)
