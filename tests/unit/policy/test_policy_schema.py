"""The schema for editors says what `check` says, as far as a schema can: judged by jsonschema, which nobody here wrote."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from policy_as_json import tree_of
from test_policy_faults import CASES
from test_policy_faults import ENVIRON as FAULTS_ENVIRON
from test_policy_reference import keys_known

from proxy.cli.schema import format_schema
from proxy.errors import PolicyError
from proxy.policy.custom_readers import CUSTOM_READERS
from proxy.policy.json_schema import _SchemaBuilder
from proxy.policy.key_comments import find_comments, read_reference
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.parsing.nodes import Table, Unreadable
from proxy.policy.parsing.yaml import parse_document
from proxy.policy.reader import key_hints
from proxy.policy.schema import Policy

ROOT = Path(__file__).resolve().parents[3]
CHECKED_IN = ROOT / "config" / "outrigger.schema.json"
SCHEMA = json.loads(format_schema())
VALIDATOR = Draft202012Validator(SCHEMA)
ENVIRON = {**FAULTS_ENVIRON, "JWT_KEY": "k" * 40, "OPENAI_API_KEY": "sk", "DATABASE_URL": "postgresql://h/d", "A": "1"}


def passes(text: str) -> bool:
    """Whether an editor finds nothing wrong with a policy."""
    return VALIDATOR.is_valid(tree_of(parse_document(text)))


def is_taken(text: str) -> bool:
    """Whether `check` takes a policy."""
    try:
        load_policy(PolicySource("p.yaml", None, text), ENVIRON)
    except PolicyError:
        return False
    return True


def test_the_schema_that_is_checked_in_is_the_languages_of_today() -> None:
    assert CHECKED_IN.read_text(encoding="utf-8") == format_schema(), "the policy language has changed: run make schema"


def test_it_is_a_schema_of_its_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(SCHEMA)


def test_every_key_is_in_it_and_those_that_the_reference_comments_on_are_described() -> None:
    comments = find_comments(read_reference())
    described = 0
    for key in keys_known(Policy, ""):
        found = property_of(key)
        assert found is not None, key
        if key in comments:
            assert found.get("description") == comments[key], key
            described += 1
    assert described > 100
    assert property_of("listen.keepalive") == {"$ref": "#/$defs/duration-above-zero", "default": "125s"}
    assert "Render: 30 s" in str(property_of("app.stop_timeout"))


def property_of(key: str) -> dict | None:
    """The schema of a dotted key, with `[]` for any item and `*` for any name."""
    at = SCHEMA
    for part in re.findall(r"\[\]|[^.\[\]]+", key):
        at = resolve(at)
        if part == "[]":
            at = at["items"]
        elif part == "*":
            at = at["additionalProperties"]
        else:
            at = at.get("properties", {}).get(part)
        if at is None:
            return None
    return at


def resolve(schema: dict) -> dict:
    while True:
        if "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        elif "properties" not in schema and (choices := schema.get("anyOf") or schema.get("allOf")):
            schema = next(one for one in choices if {"$ref", "allOf", "properties", "items"} & set(one))
        else:
            return schema


def test_every_reader_of_its_own_has_a_schema_of_its_own() -> None:
    own = set(_SchemaBuilder({}).custom) | {"by_tier"}
    assert own == set(CUSTOM_READERS), "say in proxy/policy/json_schema.py what the key may be"


# ── what `check` takes ───────────────────────────────────────────────────────────────────────


def policies_of_pages() -> Iterator[str]:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")]:
        yield from re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for file in ROOT.glob("config/*.yaml"):
        yield file.read_text(encoding="utf-8")


def policies_of_tests() -> Iterator[str]:
    """Every text in a test that is a policy: it begins with a section's name, in YAML or JSON."""
    begins = re.compile(rf"\s*(#.*\n\s*)*[{{]?\s*[\"']?({'|'.join(key_hints(Policy))})[\"']?\s*:")
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and begins.match(node.value):
                yield node.value


def test_every_policy_in_the_pages_and_the_tests_that_check_takes_passes() -> None:
    texts = [text for text in {*policies_of_pages(), *policies_of_tests()} if is_taken(text)]
    assert len(texts) > 200
    assert [text for text in texts if not passes(text)] == []


@pytest.mark.parametrize("off", [False, "off"])
def test_the_reference_passes_as_json_too(off: object) -> None:
    assert VALIDATOR.is_valid(tree_of(parse_document(read_reference()), off))


@pytest.mark.parametrize(
    "text",
    [
        "app: {port: '8002', hold: \"${HOLD:-15s}\", attribution: on}",
        "app: {liveness: off, ready: {path: ''}}",
        '{"listen": {"public": false}, "upstreams": {"openai": false}, "overload": {"mode": "off"}}',
        "alerts: {rules: {slow: off, memory: {severity: critical}, mine: {when: 'errors>5%  over 5m'}}}",
        "identity: {tiers: [{name: 7}, {name: 0.5}, {name: true}]}",
        "routes: [{name: a, rate_limit: off}, {name: b, rate_limit: {free: [1/h, ' 5 / 10s ']}, queue: null}]",
        "upstreams: {anthropic: , mine: {env: [MY_URL]}}",
        "",
        "# nothing but a comment",
        "upstreams: {openai: {prices: {m: {input: 1, output: 0.5, above: {200000: {input: 2}}}}}}",
    ],
)
def test_what_may_be_written_in_several_ways_passes_in_each(text: str) -> None:
    assert passes(text)


# ── what it refuses ──────────────────────────────────────────────────────────────────────────

# Faults that no schema can see, by what is said of them, and why.
UNSEEN = {
    "an editor's parser has lost one of the two by then": r"written twice",
    "one value is compared with another": r"same port|our own address|says already|longer than|is above max|"
    r"connections alone|public key could sign|named \w+ too|a schedule \w+ already|always names a user|after default|fits every|for the upstream",
    "a name is looked up elsewhere": r"no tier|no route|no upstream|is of kind",
    "the environment or the machine decides": r"time zone|\$\{",
    "only code can say it of this text": r"no network|not between 1KiB and 1MiB|port is 0|its \w+ cannot be read|such day ever",
}


def broken_policies() -> Iterator[str]:
    """Faults of every kind: those of test_policy_faults.py, and each key with a value that it cannot have."""
    yield from (text for text, *_ in CASES)
    for key in keys_known(Policy, ""):
        for wrong in ("[{}]", "{nonsense: 1}", "'\a'"):
            yield written(key, wrong)
        yield written(f"{key}x", "1")


def written(key: str, value: str) -> str:
    for part in reversed(re.findall(r"\[\]|[^.\[\]]+", key)):
        value = f"[{value}]" if part == "[]" else f"{{{'mine' if part == '*' else part}: {value}}}"
    return value


def test_of_the_broken_policies_only_those_pass_that_no_schema_sees_through() -> None:
    refused, unseen = 0, []
    for text in broken_policies():
        try:
            tree = parse_document(text)
        except Unreadable:
            continue  # no editor gets as far as the schema
        if not isinstance(tree, Table) or is_taken(text):
            continue
        if not VALIDATOR.is_valid(tree_of(tree)):
            refused += 1
            continue
        with pytest.raises(PolicyError) as caught:
            load_policy(PolicySource("p.yaml", None, text), ENVIRON)
        said = str(caught.value)
        if not re.search("|".join(UNSEEN.values()), f"{said} {text}"):
            unseen.append((text, said))
    assert unseen == [], "let proxy/policy/json_schema.py see these, or say in UNSEEN why no schema can"
    assert refused > 200


# ── as an editor ─────────────────────────────────────────────────────────────────────────────


def test_a_tool_of_others_takes_our_policies_and_names_the_place_of_a_mistake(tmp_path: Path) -> None:
    """check-jsonschema reads YAML 1.2 as editors do."""
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", CHECKED_IN]
    ours = subprocess.run([*command, *ROOT.glob("config/*.yaml")], capture_output=True, text=True)
    assert ours.returncode == 0, ours.stdout
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("app:\n  stop_timout: 3s\n")
    reported = subprocess.run([*command, wrong], capture_output=True, text=True)
    assert reported.returncode == 1
    assert "'stop_timout' was unexpected" in reported.stdout
