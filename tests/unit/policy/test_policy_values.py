"""What a policy says in other shapes than plain values, and how it is taken."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from ipaddress import ip_network
from types import MappingProxyType

import pytest

from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import IpSource, Policy, TrustedProxies
from proxy.policy.values import ANY_TIER, Address, Rate


def say(text: str, **environ: str) -> Policy:
    return load_policy(PolicySource("p.yaml", None, text), environ)


def test_an_empty_policy_is_the_defaults() -> None:
    assert say("") == say("# nothing\n") == say("version: 1") == Policy()


def test_a_heading_with_nothing_under_it_says_nothing() -> None:
    policy = say("app:\nlisten:\nidentity:\nroutes:\nupstreams:\nalerts:\n")
    assert policy == Policy()
    assert policy.warnings == ()


@pytest.mark.parametrize(
    ("written", "limits"),
    [
        ("10/h", {ANY_TIER: (Rate(10, 3600),)}),
        ("[40/h, 5/min]", {ANY_TIER: (Rate(40, 3600), Rate(5, 60))}),
        ("{a: 10/h, b: [40/h, 5/min]}", {"a": (Rate(10, 3600),), "b": (Rate(40, 3600), Rate(5, 60))}),
        ("{a: 10/h, b: off}", {"a": (Rate(10, 3600),)}),
        ("null", {}),
        ("off", {}),
        ("'${NOTHING:-}'", {}),
    ],
)
def test_a_limit_is_one_value_a_list_or_either_by_tier(written: str, limits: dict[str, tuple[Rate, ...]]) -> None:
    tiers = "identity: {tiers: [{name: a, users: x}, {name: b}]}\n"
    policy = say(f"{tiers}routes: [{{name: r, rate_limit: {written}}}]")
    assert policy.routes[0].rate_limit == limits


@pytest.mark.parametrize(
    ("written", "trusted"),
    [
        ("auto", TrustedProxies("auto")),
        ("none", TrustedProxies("none")),
        ("render", TrustedProxies("render")),
        ("2", TrustedProxies("hops", hops=2)),
        ("10.0.0.0/8", TrustedProxies("networks", networks=(ip_network("10.0.0.0/8"),))),
        (
            "[10.0.0.1, 'fd00::/8']",
            TrustedProxies("networks", networks=(ip_network("10.0.0.1/32"), ip_network("fd00::/8"))),
        ),
    ],
)
def test_trusted_proxies_are_a_preset_hops_or_networks(written: str, trusted: TrustedProxies) -> None:
    assert say(f"listen: {{trusted_proxies: {written}}}").listen.trusted_proxies == trusted


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("'[::1]:0'", Address("::1", 0)),
        ("localhost:8080", Address("localhost", 8080)),
        ("off", None),
    ],
)
def test_an_address_is_host_and_port_and_only_the_public_one_may_be_off(written: str, address: Address | None) -> None:
    assert say(f"listen: {{public: {written}}}").listen.public == address


def test_ip_is_always_the_last_source_written_or_not() -> None:
    for users in ("[{header: X}]", "[{header: X}, ip]", "[{header: X}, {ip: }]"):
        sources = say(f"identity: {{user: {users}}}").identity.user
        assert len(sources) == 2
        assert sources[-1] == IpSource()


def test_the_last_route_is_always_default() -> None:
    assert [route.name for route in say("routes: [{name: a}]").routes] == ["a", "default"]
    policy = say("routes: [{name: a}, {name: default, timeout: 5s}]")
    assert [(route.name, route.timeout) for route in policy.routes] == [("a", None), ("default", 5.0)]


def test_openai_is_there_unless_it_is_off() -> None:
    other = "mine: {base_url: 'https://example.com'}"
    assert list(say(f"upstreams: {{{other}}}").upstreams) == ["openai", "mine"]
    assert list(say(f"upstreams: {{openai: off, {other}}}").upstreams) == ["mine"]


def test_an_upstream_named_after_its_kind_has_that_kinds_defaults() -> None:
    policy = say("upstreams: {anthropic: {}, second: {kind: openai}, mine: {base_url: 'http://x'}}")
    anthropic, second, mine = (policy.upstreams[name] for name in ("anthropic", "second", "mine"))
    assert (anthropic.kind, anthropic.env) == ("anthropic", ("ANTHROPIC_BASE_URL",))
    assert (second.base_url, second.env) == ("https://api.openai.com/v1", ())
    assert (mine.kind, mine.base_url) == ("http", "http://x")


def test_what_an_upstream_leaves_out_stays_at_its_default() -> None:
    openai = say("upstreams: {openai: {retry: {attempts: 2}, breaker: off}}").upstreams["openai"]
    assert (openai.retry.attempts, openai.retry.backoff.first, openai.breaker) == (2, 0.5, None)


def test_an_alert_rule_of_a_shipped_name_replaces_it_and_off_removes_it() -> None:
    rules = say(
        'alerts: {rules: {slow: off, memory: {when: "memory > 90% for 1m"}, mine: {when: "errors>1%  over 1m"}}}'
    ).alerts.rules
    assert "slow" not in rules
    assert (str(rules["memory"].when), rules["memory"].severity) == ("memory > 90% for 1m", "warning")
    assert (str(rules["mine"].when), rules["mine"].severity) == ("errors > 1% over 1m", "warning")
    assert "app_down" in rules


def test_redacted_names_add_to_those_that_are_always_redacted() -> None:
    assert say("log: {redact: [X-Mine, Token]}").log.redact == (*Policy().log.redact, "x-mine")


def test_the_databases_variables_are_a_list_or_its_parts() -> None:
    assert say("postgres: {env: [A, B]}").postgres.env == {"A": "url", "B": "url"}
    assert say("postgres: {env: {H: host, P: port}}").postgres.env == {"H": "host", "P": "port"}


def test_a_policy_cannot_be_changed_not_even_deep_inside() -> None:
    policy = say("routes: [{name: a, rate_limit: 1/h}]\nupstreams: {openai: {prices: {m: {input: 1, output: 2}}}}")
    with pytest.raises(FrozenInstanceError):
        policy.app.hold = 3  # type: ignore[misc]
    assert isinstance(policy.routes, tuple)
    for mapping in (policy.routes[0].rate_limit, policy.upstreams, policy.upstreams["openai"].prices):
        assert isinstance(mapping, MappingProxyType)
