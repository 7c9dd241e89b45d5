"""What a policy may say but should think about."""

from __future__ import annotations

import pytest

from proxy.policy.loading import PolicySource, load_policy


def warnings_of(text: str) -> tuple[str, ...]:
    return load_policy(PolicySource("p.yaml", None, text), {}).warnings


LIMITED = "routes: [{name: a, rate_limit: 10/h}]\n"


def test_a_dsn_without_the_package_is_warned_of_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "sentry: {dsn: 'https://key@sentry.example/1'}"
    assert warnings_of(text) == ()
    monkeypatch.setattr("proxy.policy.warnings.find_spec", lambda name: None)
    (warning,) = warnings_of(text)
    assert warning.startswith("p.yaml:1: sentry.dsn: sentry-sdk is not installed")
    assert "pip install 'sentry-sdk>=2.20' in the gateway's environment" in warning


def test_callbacks_without_a_secret_are_warned_of() -> None:
    (warning,) = warnings_of("tasks:\n  callbacks: [hooks.example.com]")
    assert warning.startswith("p.yaml:2: tasks.callbacks: tasks.secret is empty, so no callback is taken")
    assert warnings_of(f"tasks: {{callbacks: [hooks.example.com], secret: whsec_{'a' * 32}}}") == ()


def test_a_policy_that_names_nothing_unbuilt_has_no_warnings() -> None:
    assert warnings_of("store: {url: 'memory://'}\nmetrics: {max_series: 10}\n" + LIMITED) == ()


@pytest.mark.parametrize(
    ("source", "word"),
    [("path: '/u/{user}'", "path"), ("header: X-User-Id", "header"), ("cookie: session", "cookie")],
)
def test_limits_by_a_name_that_its_client_writes_are_warned_of(source: str, word: str) -> None:
    (warning,) = warnings_of(f"identity:\n  user:\n    - {source}\n{LIMITED}")
    assert warning.startswith(f"p.yaml:3: identity.user[0]: any client can write this {word}")
    assert "the limits of route a" in warning


@pytest.mark.parametrize(
    "text",
    [
        LIMITED,
        "identity: {user: [{jwt: {key: x}}]}\n" + LIMITED,
        "identity: {user: [{header: X}]}\n",
        "identity: {user: [{header: X}], tiers: [{name: a, users: 'a*'}, {name: b}]}\n",
        "identity: {user: [{header: X}]}\noverload: {mode: fixed}\n" + LIMITED,
        "identity: {user: [{header: X}]}\nroutes: [{name: a, rate_limit: 10/h, concurrency: 3}]",
    ],
)
def test_limits_that_a_total_guards_or_nobody_can_forge_are_fine(text: str) -> None:
    assert warnings_of(text) == ()


def test_caps_by_a_forgeable_name_want_a_total() -> None:
    head = "identity: {user: [{header: X}]}\noverload: {mode: adaptive}\nupstreams: {openai: {cap: {per_user: $1/d"
    assert any("the caps of openai" in warning for warning in warnings_of(head + "}}}"))
    assert not any("the caps of" in warning for warning in warnings_of(head + ", total: $9/d}}}"))


@pytest.mark.parametrize(
    ("ledger", "environ", "warned"),
    [
        ("", {"RENDER": "true"}, True),
        ("", {}, False),
        ("ledger: {url: 'sqlite:////opt/render/project/src/var/x.db'}", {"RENDER": "true"}, True),
        ("ledger: {url: 'sqlite:////var/data/x.db'}", {"RENDER": "true"}, False),
        ("ledger: {url: 'sqlite:////proc/x.db'}", {"RENDER": "true"}, False),  # a mount point of its own
        ("ledger: {url: '${DATABASE_URL}'}", {"RENDER": "true", "DATABASE_URL": "postgresql://h/d"}, False),
    ],
)
def test_caps_that_a_deploy_would_forget_are_warned_of(ledger: str, environ: dict[str, str], warned: bool) -> None:
    for cap in ("per_user: $1/d, total: $9/d", "total: $9/d", "unattributed: $1/d"):
        text = f"upstreams: {{openai: {{cap: {{{cap}}}}}}}\n{ledger}"
        found = [
            one for one in load_policy(PolicySource("p.yaml", None, text), environ).warnings if "ledger.url: " in one
        ]
        assert bool(found) == warned
        assert all("the caps of openai" in one and "/var/data" in one for one in found)
    assert load_policy(PolicySource("p.yaml", None, ledger), environ).warnings == ()


@pytest.mark.parametrize(
    ("stores", "key"),
    [
        ("", "ledger.url"),
        ("tasks: {url: 'sqlite:////opt/x.db'}", "tasks.url"),
        ("ledger: {url: 'postgresql://h/d'}\ntasks: {url: 'sqlite:///x.db'}", "tasks.url"),
        ("tasks: {url: 'sqlite:////var/data/x.db'}", None),
        ("ledger: {url: 'postgresql://h/d'}", None),
    ],
)
def test_tasks_that_a_deploy_would_lose_are_warned_of(stores: str, key: str | None) -> None:
    text = f"routes: [{{name: report, match: {{path: /r}}, background: {{mode: prefer}}}}]\n{stores}"
    found = load_policy(PolicySource("p.yaml", None, text), {"RENDER": "true"}).warnings
    assert [warning.split(": ")[1] for warning in found if "waits on report" in warning] == ([key] if key else [])
    off = text.replace("prefer", '"off"')
    assert not any(
        "waits on" in one for one in load_policy(PolicySource("p.yaml", None, off), {"RENDER": "true"}).warnings
    )


def test_a_stop_that_takes_longer_than_platforms_wait_is_warned_of() -> None:
    (warning,) = warnings_of("listen:\n  drain: 25s\n")
    assert warning.startswith("p.yaml:2: listen.drain: listen.drain and app.stop_timeout together are 33s")
    assert warnings_of("listen: {drain: 22s}") == ()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("routes: [{name: a}, {name: b, match: {path: /b}}]", "routes[0]"),
        ("routes: [{name: a}, {name: default, timeout: 5s}]", "routes[0]"),
        ("identity: {tiers: [{name: a, users: 'a*'}]}", "identity.tiers[0].users"),
        ("listen: {trusted_proxies: [0.0.0.0/0]}", "listen.trusted_proxies"),
    ],
)
def test_what_has_no_effect_or_too_much_is_warned_of(text: str, key: str) -> None:
    (warning,) = warnings_of(text)
    assert warning.startswith(f"p.yaml:1: {key}: ")
