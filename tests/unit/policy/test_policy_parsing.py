"""YAML 1.2 and JSON, friendly and hostile, with the lines kept."""

from __future__ import annotations

import json

import pytest
import yaml

from proxy.errors import PolicyError
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.parsing import yaml as yaml_parser
from proxy.policy.parsing.nodes import Listing, Scalar, Table
from proxy.policy.schema import Policy


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With libyaml's scanner and without."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_parser, "_LOADER", getattr(yaml, request.param))


def say(text: str, **environ: str) -> Policy:
    return load_policy(PolicySource("p.yaml", None, text), environ)


def fault_of(text: str) -> tuple[int, str]:
    with pytest.raises(PolicyError) as caught:
        say(text)
    (fault,) = caught.value.faults
    assert fault.key == "policy"
    assert fault.fix
    return fault.line, fault.problem


def test_on_off_yes_and_no_are_words_as_values_and_as_keys() -> None:
    policy = say("app: {attribution: on}\nroutes: [{name: no, retries: {on: [connect]}}]\nlog: {access: off}")
    assert policy.app.attribution == "on"
    assert policy.routes[0].name == "no"
    assert policy.routes[0].retries.on == ("connect",)
    assert policy.log.access == "off"


def test_what_looks_like_a_number_or_a_date_stays_text_where_text_belongs() -> None:
    users = [
        tier.users for tier in say("identity: {tiers: [{name: 1e3, users: 0x10}, {name: 2026-01-01}]}").identity.tiers
    ]
    names = [
        tier.name for tier in say("identity: {tiers: [{name: 1e3, users: 0x10}, {name: 2026-01-01}]}").identity.tiers
    ]
    assert (names, users) == (["1e3", "2026-01-01"], ["0x10", None])


def test_lines_are_those_of_the_keys() -> None:
    root = yaml_parser.parse_document("a: 1\nb:\n  - x\n  -\n    c: 2\n")
    assert isinstance(root, Table)
    assert [(entry.key, entry.line) for entry in root.entries] == [("a", 1), ("b", 2)]
    listing = root.entries[1].value
    assert isinstance(listing, Listing)
    assert [item.line for item in listing.items] == [3, 5]


def test_json_with_tabs_escaped_slashes_and_surrogate_pairs_is_a_policy() -> None:
    text = '{\n\t"app": {\t"ready": {"path": "\\/health"}},\n\t"upstreams": {"openai": {"fallback": [{"text": "\\uD83D\\uDE00 \\u00fc"}]}}\n}'
    policy = say(text)
    assert policy.app.ready.path == "/health"
    assert policy.upstreams["openai"].fallback[0].text == "😀 ü"


def test_json_keeps_its_lines_and_finds_keys_written_twice() -> None:
    with pytest.raises(PolicyError) as caught:
        say('{\n"log": {},\n"log": {"level":\n "x"}}')
    assert [(fault.line, fault.key) for fault in caught.value.faults] == [(3, "log")]
    with pytest.raises(PolicyError) as caught:
        say('{"log":\n {"level":\n\n "x"}}')
    assert [(fault.line, fault.key) for fault in caught.value.faults] == [(4, "log.level")]


def test_json_of_every_shape_reads_as_the_same_tree_as_its_yaml() -> None:
    value = {"a": [1, -2.5e3, True, None, "x\ny", {"": []}], "b": {"c": {}}}
    for indent in (None, 2, "\t"):
        root = yaml_parser.parse_document(json.dumps(value, indent=indent))
        assert plain(root) == {"a": ["1", "-2500.0", "true", "null", "x\ny", {"": []}], "b": {"c": {}}}


def plain(node: object) -> object:
    if isinstance(node, Table):
        return {entry.key: plain(entry.value) for entry in node.entries}
    if isinstance(node, Listing):
        return [plain(item) for item in node.items]
    assert isinstance(node, Scalar)
    return node.text


def test_an_alias_stands_for_what_its_anchor_names() -> None:
    policy = say("routes:\n  - {name: a, match: &m {path: /x}}\n  - {name: b, match: *m}\n")
    assert policy.routes[1].match.path == "/x"


@pytest.mark.parametrize(
    "text",
    ["\ufeffversion: 1", "---\nversion: 1\n...\n", "%YAML 1.2\n---\nversion: 1", "null", "\r\n# x\r\nversion: 1\r\n"],
)
def test_marks_of_a_document_are_no_part_of_it(text: str) -> None:
    assert say(text) == Policy()


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("app:\n\tport: 1", 2, "not YAML"),
        ("a: 'x", 1, "not YAML"),
        ("a: {b", 1, "not YAML"),
        ("x: ${A}\ny: {z: ${B}}", 2, "not YAML"),
        ("a: 1\n b: 2", 2, "not YAML"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("version: 1\nb: \0", 2, "U+0000"),
        ("a: \x1b[31m", 1, "U+001B"),
        ("a: \ud800", 1, "U+D800"),
        ('{"a":\n "\\ud800"}', 2, "surrogate"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, 1, "nested too deeply"),
        ("- " * 1000, 1, "nested too deeply"),
        ("k" * (1 << 20) + ": 1", 1, "longer than 1 MiB"),
        ("a: !!python/object/apply:os.system [x]", 1, "tag"),
        ("a: !!str 1", 1, "tag"),
        ("a: ! x", 1, "tag"),
        ("a: &a [*a]", 1, "inside what it names"),
        ("a: *b", 1, "no anchor"),
        ("a: &a {}\nb:\n  <<: *a", 3, "merges"),
        ("? [a]\n: b", 1, "a key is a list"),
        ("[]", 1, "not a mapping"),
        ("just words", 1, "not a mapping"),
    ],
)
def test_a_text_that_is_no_policy_is_one_fault_with_its_line(text: str, line: int, problem: str) -> None:
    found = fault_of(text)
    assert found[0] == line
    assert problem in found[1]


def test_aliases_cannot_multiply_without_bound() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    assert "too many values" in fault_of(laughs)[1]


def test_a_fault_stays_on_one_line_whatever_the_key() -> None:
    with pytest.raises(PolicyError) as caught:
        say(json.dumps({"a\nb\x85" + "k" * 10_000: 1, "": 2}))
    for fault in caught.value.faults:
        assert str(fault).isprintable()
        assert len(fault.key) < 100
