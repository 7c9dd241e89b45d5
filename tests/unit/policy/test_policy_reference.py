"""config/reference.yaml and the code are one language: neither has a key or a default that the other lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from proxy.policy.alert_condition import Condition
from proxy.policy.cron import CronExpression
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.parsing.nodes import Listing, Node, Scalar, Table
from proxy.policy.parsing.yaml import parse_document
from proxy.policy.reader import key_hints
from proxy.policy.schema import (
    Fallback,
    FieldValue,
    Identity,
    InjectedFault,
    JwtSource,
    Policy,
    Price,
    Route,
    RouteCache,
    Schedule,
    ScheduledRequest,
    Source,
    TrustedProxies,
)
from proxy.policy.values import Address, Rate, Spend

CONFIG = Path(__file__).resolve().parents[3] / "config"
REFERENCE = (CONFIG / "reference.yaml").read_text(encoding="utf-8")
ENVIRON = {"JWT_KEY": "k" * 40}

# Shown in comments alone, since nothing of theirs is there by default.
IN_COMMENTS = (Fallback, Price, InjectedFault, RouteCache, Schedule, ScheduledRequest)
WRITTEN_OTHERWISE = (
    CronExpression,
    Address,
    FieldValue,
    Rate,
    Spend,
    TrustedProxies,
    *get_args(Source),
    *get_args(Condition),
)


def say(text: str) -> Policy:
    return load_policy(PolicySource("reference.yaml", None, text), ENVIRON)


def test_the_reference_is_a_policy_whose_every_default_is_the_codes() -> None:
    policy = say(REFERENCE)
    assert [route.name for route in policy.routes] == ["routine", "default"]
    # The sources, the tiers and the first route are examples.
    assert replace(policy, identity=Identity(), routes=policy.routes[1:]) == Policy()


def test_defaults_inside_the_examples_are_the_codes_too() -> None:
    policy = say(REFERENCE)
    routine, default = policy.routes[0], Route("default")
    for name in ("queue", "requires_budget", "when_abandoned", "enforce", "total", "cache", "compress", "headers"):
        assert getattr(routine, name) == getattr(default, name), name
    (jwt,) = (source for source in policy.identity.user if isinstance(source, JwtSource))
    assert jwt == JwtSource(ENVIRON["JWT_KEY"])


def test_every_key_of_the_code_stands_in_the_reference() -> None:
    root = parse_document(REFERENCE)
    assert root is not None
    written = set(keys_of(root))
    missing = [key for key in keys_known(Policy, "") if key not in written]
    assert missing == []
    for section in (*IN_COMMENTS, JwtSource):
        for name in key_hints(section):
            assert re.search(rf"[{{ -]{name}: ", REFERENCE), f"{section.__name__}.{name}"


def keys_of(node: Node, key: str = "") -> Iterator[str]:
    """The dotted keys that are written, with `[]` for any item and `*` for any name."""
    if isinstance(node, Listing):
        for item in node.items:
            yield from keys_of(item, f"{key}[]")
    elif isinstance(node, Table):
        for entry in node.entries:
            name = "*" if key in ("upstreams", "alerts.rules") else entry.key
            path = f"{key}.{name}" if key else name
            yield path
            yield from keys_of(entry.value, path)


def keys_known(section: type, key: str) -> Iterator[str]:
    for name, hint in key_hints(section).items():
        path = f"{key}.{name}" if key else name
        yield path
        for suffix, inner in sections_in(hint):
            yield from keys_known(inner, path + suffix)


def sections_in(hint: Any) -> Iterator[tuple[str, type]]:
    """The sections that a key's annotation leads to, through options, lists and mappings."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        # A value of its own is one scalar; a source is told by its own key.
        if hint not in (*IN_COMMENTS, *WRITTEN_OTHERWISE):
            yield "", hint
    elif origin is tuple:
        yield from ((f"[]{suffix}", section) for suffix, section in sections_in(arguments[0]))
    elif origin is Mapping:
        yield from ((f".*{suffix}", section) for suffix, section in sections_in(arguments[1]))
    elif origin is not Literal:
        for argument in arguments:
            yield from sections_in(argument)


def examples() -> Iterator[tuple[int, str, str]]:
    """Line, key and value of what a comment shows in place of the nothing beside it."""
    for number, line in enumerate(REFERENCE.splitlines(), 1):
        match = re.match(r"^\s*(\w+): (null|\[\]|\{\}|\{.*null.*\})\s+# example(?:, [^:]*)?: (.+)$", line)
        if match:
            value = re.sub(r"( — |, or one value).*$", "", match[3]).replace("…", "example.com")
            yield number, match[1], f"{{{value}}}" if re.match(r"\w+: ", value) else value


def test_there_are_examples() -> None:
    assert len(list(examples())) > 15


@pytest.mark.parametrize(("line", "key", "value"), list(examples()), ids=lambda value: str(value)[:40])
def test_every_example_in_a_comment_is_a_policy_too(line: int, key: str, value: str) -> None:
    lines = REFERENCE.splitlines()
    indent = lines[line - 1][: lines[line - 1].index(key)]
    lines[line - 1] = f"{indent}{key}: {value}"
    environ = {**ENVIRON, "OPENAI_API_KEY": "k", "DATABASE_URL": "postgres://h/d"}
    assert load_policy(PolicySource("example", None, "\n".join(lines)), environ) != say(REFERENCE)


def test_the_fallbacks_in_comments_are_fallbacks() -> None:
    shown = re.findall(r"^    # - (\{(?:model|upstream|stale|text): .*?\})(?: {2}.*)?$", REFERENCE, re.M)
    assert len(shown) == 4
    azure = "azure: {kind: openai, base_url: 'https://a.example'}"
    policy = say(f"upstreams: {{openai: {{fallback: [{', '.join(shown)}]}}, {azure}}}")
    assert len(policy.upstreams["openai"].fallback) == 4


def test_the_shipped_policy_loads_without_a_fault_or_a_warning() -> None:
    text = (CONFIG / "policy.yaml").read_text(encoding="utf-8")
    policy = load_policy(PolicySource("policy.yaml", None, text), {})
    assert policy.warnings == ()
    assert [route.name for route in policy.routes][-1] == "default"
    assert policy.listen.drain + policy.app.stop_timeout < 30


def test_scalars_of_the_reference_keep_their_text() -> None:
    root = parse_document(REFERENCE)
    assert isinstance(root, Table)
    assert root.entries[0].value == Scalar(root.entries[0].line, "1")
