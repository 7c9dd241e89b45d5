"""A value that nobody wrote makes no fault: every key, alone, at the ends of what it may be.

And JSON says what YAML says: `off` and `on` are false and true there, or stand in quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from policy_as_json import tree_of

from proxy.errors import PolicyError
from proxy.policy import value_types, values
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.parsing.yaml import parse_document
from proxy.policy.reader import key_hints
from proxy.policy.schema import AlertRule, Fallback, InjectedFault, Policy, Price, TrustedProxies
from proxy.policy.value_types import ValueType
from proxy.policy.values import Address

CONFIG = Path(__file__).resolve().parents[3] / "config"
ENVIRON = {"JWT_KEY": "k" * 40}

# What a kind may be at its ends. A whole number's come from its own bounds.
ENDS: Mapping[ValueType, tuple[str, ...]] = {
    value_types.DURATION: ("0s", "1ms", "900d"),
    value_types.PERIOD: ("1ms", "900d"),
    value_types.SIZE: ("1B", "1GiB"),
    value_types.MEMORY: ("1B", "1GiB"),
    value_types.HEADER_SIZE: ("1KiB", "1MiB"),
    value_types.CALLBACK_HOST: ("hooks.example.com", "203.0.113.7", "[2001:db8::1]"),
    value_types.WEBHOOK_SECRET: ("", "whsec_" + "A" * 32),
    value_types.SHARE: ("0%", "100%"),
    value_types.FACTOR: ("1", "1000"),
    value_types.PORT: ("0", "65535", "9901", "9902", "6432", "10000"),
    values.RATE: ("1/d", "1000000/s"),
    values.SPEND: ("$0/h", "$1000000/month"),
    value_types.MONEY: ("$0", "$1000000"),
    # each other's defaults
    values.ADDRESS: ("127.0.0.1:0", "127.0.0.1:9901", "127.0.0.1:9902", "127.0.0.1:6432"),
}
VALUES = (Address, TrustedProxies, Fallback, Price, InjectedFault, AlertRule)  # one scalar, or under a name
# What needs a companion by its nature, or holds something that is written under a name.
NOT_ALONE = (
    "routes[].queue.",
    "faults[]",
    "schedules.",
    "alerts.rules.",
    "upstreams.openai.fallback",
    "upstreams.openai.prices",
)


def leaves(section: type, key: str) -> Iterator[tuple[str, Any]]:
    for name, hint in key_hints(section).items():
        path = f"{key}.{name}" if key else name
        yield from within(hint, {"routes": "routes[]", "upstreams": "upstreams.openai"}.get(path, path))


def within(hint: Any, path: str) -> Iterator[tuple[str, Any]]:
    if path == "identity.user":
        return
    yield path, hint
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    for one in (bare, *get_args(bare)):
        if isinstance(one, type) and is_dataclass(one) and one not in VALUES:
            yield from leaves(one, path)
            return


def ends(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Annotated:
        for mark in get_args(hint)[1:]:
            if isinstance(mark, ValueType):
                yield from ENDS.get(mark, ())
                if bounds := re.fullmatch(r"a whole number from (\d+)(?: to (\d+)| up)", mark.hint):
                    yield from (bounds[1], bounds[2] or "100000")
        yield from ends(get_args(hint)[0])
    elif hint is bool:
        yield from ("true", "false")
    elif get_origin(hint) is Literal:
        yield from (str(word) for word in get_args(hint))
    elif get_origin(hint) not in (tuple, Mapping) and not isinstance(hint, type):
        for member in get_args(hint):
            yield from ends(member)


def written(path: str, value: object, **more: object) -> str:
    """A policy, as JSON, that says nothing but this."""
    tree: object = value
    for part in reversed(re.findall(r"[^.\[\]]+|\[\]", path)):
        if part == "[]":
            assert isinstance(tree, dict)
            tree = [{"name": "a", **tree}]
        else:
            tree = {part: tree}
    assert isinstance(tree, dict)
    return json.dumps({**tree, **more})


def say(text: str, environ: Mapping[str, str] = ENVIRON) -> Policy:
    return load_policy(PolicySource("p.json", None, text), environ)


ALONE = [
    (path, end)
    for path, hint in leaves(Policy, "")
    if not path.startswith(NOT_ALONE)
    for end in dict.fromkeys(ends(hint))
]


def test_the_walk_comes_everywhere() -> None:
    paths = {path for path, _ in ALONE}
    assert {
        "app.port",
        "listen.admin",
        "upstreams.openai.timeout.total",
        "routes[].timeout",
        "postgres.pool.min",
    } <= paths
    assert len(paths) > 100


@pytest.mark.parametrize(("path", "end"), ALONE, ids=[f"{path}: {end}" for path, end in ALONE])
def test_a_key_alone_is_no_fault_whatever_the_defaults_are(path: str, end: str) -> None:
    say(written(path, end))
    if path.startswith(("listen.", "postgres.", "app.")):
        more = {} if path.startswith("postgres.") else {"postgres": {"url": "postgresql://h/d"}}
        say(written(path, end, **more))


@pytest.mark.parametrize(
    ("text", "found", "wanted"),
    [
        ("upstreams: {openai: {timeout: {total: 2s}}}", lambda p: p.upstreams["openai"].timeout.connect, 2.0),
        ("upstreams: {openai: {timeout: {connect: 20m}}}", lambda p: p.upstreams["openai"].timeout.total, 1200.0),
        ("upstreams: {openai: {retry: {backoff: {max: 1ms}}}}", lambda p: p.upstreams["openai"].retry.backoff.first, 0.001),
        ("app: {restart: {backoff: 1m}}", lambda p: p.app.restart.max_backoff, 60.0),
        ("overload: {adaptive: {max: 2}}", lambda p: p.overload.adaptive.min, 2),
        ("postgres: {pool: {min: 9}}", lambda p: p.postgres.pool.max, 9),
        ("postgres: {pin: {max: 9}}", lambda p: p.postgres.pool.max, 9),
        ("listen: {public: '0.0.0.0:9901'}", lambda p: p.listen.admin.port, 9903),
        ("listen: {admin: '127.0.0.1:9902'}", lambda p: p.listen.egress.port, 9903),
        ("app: {url: 'http://localhost:9902'}", lambda p: p.listen.egress.port, 9903),
        (
            "upstreams: {azure: {kind: openai, base_url: 'https://a.example', env: [OPENAI_BASE_URL]}}",
            lambda p: (p.upstreams["openai"].env, p.upstreams["openai"].base_url),
            (("OPENAI_API_BASE",), "https://api.openai.com/v1"),
        ),
    ],
)  # fmt: skip
def test_the_default_gives_way(text: str, found: Any, wanted: object) -> None:
    assert found(say(text)) == wanted


def test_a_port_that_moved_is_told() -> None:
    assert any(
        "listen.admin" in warning and "9903" in warning for warning in say("listen: {public: 'h:9901'}").warnings
    )


@pytest.mark.parametrize("name", ["SENTRY_DSN", "SLACK_WEBHOOK_URL", "RENDER_SERVICE_NAME"])
def test_a_variable_of_the_apps_own_is_left_out_with_a_warning_and_its_value_is_not_told(name: str) -> None:
    policy = say("", {name: "hunter2\x07"})
    assert policy == Policy()
    [warning] = [warning for warning in policy.warnings if name in warning]
    assert "hunter2" not in warning
    with pytest.raises(PolicyError):
        say(f"alerts: {{slack: '${{{name}}}'}}", {name: "hunter2\x07"})


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("off", [False, "off"])
@pytest.mark.parametrize("name", ["reference", "policy", "sprint"])
def test_every_policy_that_we_ship_says_the_same_as_json(name: str, off: object) -> None:
    text = (CONFIG / f"{name}.yaml").read_text(encoding="utf-8")
    environ = {**ENVIRON, "OPENAI_API_KEY": "k", "DATABASE_URL": "postgresql://h/d"}
    assert say(json.dumps(tree_of(parse_document(text), off)), environ) == say(text, environ)


TIERS = {"tiers": [{"name": "free"}]}
ANY_TEXT = (
    "admin.token",
    "routes[].name",
    "upstreams.openai.api_key",
    "sentry.environment",
    "store.prefix",
    "store.region",
)  # where a word is a text like any other


def takes(path: str, word: str) -> bool:
    """Whether YAML takes the word for this key."""
    try:
        say(written(path, "WORD", identity=TIERS).replace('"WORD"', word) + " # no JSON")
    except PolicyError:
        return False
    return True


PLACES = [path for path, _ in leaves(Policy, "") if path != "routes[]"]
PLACES += ["alerts.rules.slow", "routes[].rate_limit.free", "upstreams.openai.cap.per_user.free"]
SWITCHES = [(path, word) for path in PLACES for word in ("on", "off") if path not in ANY_TEXT and takes(path, word)]


def test_there_are_places_for_off_and_on() -> None:
    assert {"listen.public", "overload.mode", "upstreams.openai.breaker", "upstreams.openai", "alerts.rules.slow"} <= {
        path for path, word in SWITCHES if word == "off"
    }
    assert {"app.attribution", "postgres.tls"} <= {path for path, word in SWITCHES if word == "on"}


@pytest.mark.parametrize(("path", "word"), SWITCHES)
def test_what_takes_off_or_on_takes_them_from_json(path: str, word: str) -> None:
    wanted = say(written(path, "WORD", identity=TIERS).replace('"WORD"', word) + " # no JSON")
    assert say(written(path, word == "on", identity=TIERS)) == wanted
    assert say(written(path, word, identity=TIERS)) == wanted
