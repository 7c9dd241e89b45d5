"""The policy language as a JSON Schema (draft 2020-12), for editors: what `outrigger schema` prints.

It is made of the annotations that the reader goes by (`reader.py`), so that neither knows a key that the other lacks;
descriptions are the reference's comments, defaults the code's. It takes every policy that `check` takes. Of the others
it refuses what one value, or one section by itself, shows to be wrong; what takes two sections, the environment or a
look at the machine is left to `check`.

Values are typed as an editor's YAML 1.2 parser types them: `4` is a number, `off` a text. JSON, and tools that know
YAML 1.1, write off and on as false and true, which are taken too. `${NAME}` may stand in every single value.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import count
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from proxy.policy import value_types
from proxy.policy.custom_readers import PRESETS
from proxy.policy.key_comments import PREAMBLE
from proxy.policy.reader import key_hints
from proxy.policy.renderer import PlainWord, value_tree
from proxy.policy.schema.alerting import SHIPPED_RULES, AlertRule, InjectedFault
from proxy.policy.schema.identity import JwtSource
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.route import Route
from proxy.policy.schema.stores import DatabasePart
from proxy.policy.schema.upstream import NAMED_AFTER_THEIR_KIND, Fallback, Upstream
from proxy.policy.value_types import ValueType
from proxy.policy.values import ByTier, Label

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE_TO_VARIABLE = r"\$\{"
OFF: Schema = {"enum": [None, "off", False]}  # a key that may be switched off
OFF_BY_NAME: Schema = {"enum": ["off", False]}

# A whole alternation of words, which an editor can complete.
_WORDS = re.compile(r"[\w/-]+(\|[\w/-]+)*")
# What a YAML parser makes of texts without quotes that are no strings to it.
_PROBES: Mapping[str, str] = MappingProxyType(
    {"7": "integer", "500": "integer", "0.5": "number", "1.5": "number", "true": "boolean"}
)


def make_schema(comments: Mapping[str, str]) -> Schema:
    """The schema of a policy. `comments` is what is said of each key (`key_comments.find_comments`)."""
    builder = _SchemaBuilder(comments)
    builder.define_section(Policy, "")
    definitions = builder.definitions
    return {
        "$schema": DIALECT,
        "$id": "urn:outrigger:policy:1",
        "title": "Outrigger policy",
        "description": comments.get(PREAMBLE, ""),
        **definitions.pop("Policy"),
        "$defs": dict(sorted(definitions.items())),
    }


# What `validation.py` says of one section by itself.
_SECTION_RULES: Mapping[type, Sequence[Schema]] = MappingProxyType(
    {
        Route: (
            {
                "if": {"required": ["queue"], "properties": {"queue": {"type": "object"}}},
                "then": {"required": ["concurrency"], "properties": {"concurrency": {"not": OFF}}},
            },
        ),
        Fallback: (
            {
                "oneOf": [
                    {"anyOf": [{"required": ["model"]}, {"required": ["upstream"]}]},
                    {"required": ["stale"], "properties": {"stale": {"not": {"const": False}}}},
                    {"required": ["text"]},
                ]
            },
        ),
        InjectedFault: (
            {"oneOf": [{"required": ["upstream"]}, {"required": ["route"]}]},
            {"anyOf": [{"required": ["status"]}, {"required": ["delay"]}, {"required": ["cut"]}]},
        ),
        JwtSource: ({"properties": {"algorithms": {"minItems": 1}}},),
    }
)


class _SchemaBuilder:
    """Goes through the sections as the reader does. `definitions` has each section once, by the name of its class, and
    each type of value, by what it is."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self.comments = comments
        self.definitions: dict[str, Schema] = {}
        self.custom: Mapping[str, Callable[[Any, str], Schema]] = {
            "trusted_proxies": self._trusted_proxies,
            "sources": self._identity_sources,
            "routes": lambda hint, key: self.list_of(Annotated[Route, ""], key),
            "upstreams": self._upstreams,
            "alert_rules": self._alert_rules,
            "redact": lambda hint, key: self.list_of(Annotated[str, value_types.SECRET_NAME], key),
            "database_env": self._database_env,
            "header_fields": self._header_fields,
        }

    # ── sections ─────────────────────────────────────────────────────────────────────────────

    def define_section(self, section: type, key: str, *, optional: Sequence[str] = ()) -> Schema:
        """A reference to the section's definition, which is made if it is not there. Keys without a default are
        required unless they are `optional`."""
        required = [
            item.name
            for item in fields(section)
            if item.default is MISSING and item.default_factory is MISSING and item.name not in optional
        ]
        name = section.__name__ if not optional else f"{section.__name__}Change"
        if name not in self.definitions:
            definition: Schema = {"type": ["object", "null"], "additionalProperties": False}
            self.definitions[name] = definition
            if required:
                definition["required"] = required
            hints = key_hints(section)
            known = {item.name: item for item in fields(section)}
            definition["properties"] = {
                one: self.describe_key(known[one], hint, f"{key}.{one}" if key else one) for one, hint in hints.items()
            }
            if rules := _SECTION_RULES.get(section):
                definition["allOf"] = list(rules)
        return {"$ref": f"#/$defs/{name}"}

    def describe_key(self, item: Any, hint: Any, key: str) -> Schema:
        """The schema of one key, with what the reference says of it and its default."""
        schema = dict(self.value_of(hint, key))
        if comment := self.comments.get(key):
            schema["description"] = comment
        if "absent" in item.metadata:
            schema["default"] = item.metadata["absent"]
        elif item.default is not MISSING or item.default_factory is not MISSING:
            default = item.default if item.default is not MISSING else item.default_factory()
            tree = value_tree(default, hint)
            # A section's defaults stand at its own keys; routes and rules are no values to propose.
            is_list = isinstance(tree, list) and all(isinstance(one, str) for one in tree)
            if is_list or (isinstance(tree, str) and tree):
                schema["default"] = _json_of(tree)
        return schema

    # ── values ───────────────────────────────────────────────────────────────────────────────

    def value_of(self, hint: Any, key: str) -> Schema:
        """The schema of a value by its annotation, in the order of PolicyReader.read_value."""
        marks: tuple[Any, ...] = ()
        if get_origin(hint) is Annotated:
            hint, *rest = get_args(hint)
            marks = tuple(rest)
        for mark in marks:
            if isinstance(mark, ValueType):
                return self.scalar_of(mark)
            if isinstance(mark, ByTier):
                return self._by_tier(mark.kind)
            if mark in self.custom:
                return self.custom[mark](hint, key)
        origin, args = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._union(args, key, off_only="off" in marks)
        if origin is Literal:
            return words_of(args)
        if hint is bool:
            pattern = "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$"
            return {"type": ["boolean", "string"], "pattern": f"{pattern}|{REFERENCE_TO_VARIABLE}"}
        if origin is tuple:
            return self.list_of(args[0], key)
        if origin is not None:
            return self.mapping_of(args[0], args[1], key)
        return self.define_section(hint, key) if isinstance(hint, type) and is_dataclass(hint) else {}

    def _union(self, members: tuple[Any, ...], key: str, *, off_only: bool) -> Schema:
        inner = [member for member in members if member is not type(None)]
        words = tuple(word for member in inner if get_origin(member) is Literal for word in get_args(member))
        other = next(member for member in inner if get_origin(member) is not Literal)
        choices = words_of(words)["anyOf"] if words else []
        value = self.value_of(other, key)
        choices += value.get("anyOf", [value])
        if len(inner) < len(members):
            choices.append(OFF_BY_NAME if off_only else OFF)
            # A variable that may be empty stands for null.
            if not off_only:
                choices.append({"type": "string", "pattern": f"^$|{REFERENCE_TO_VARIABLE}"})
        return {"anyOf": choices}

    def scalar_of(self, kind: ValueType) -> Schema:
        """A reference to the type's definition, which is named by the head of its hint: `duration-above-zero`."""
        schema = describe_scalar(kind)
        if "anyOf" in schema:
            return schema  # words are short
        head = re.split(r" such as |, best as |, | \(", re.sub(r"^(an?|the) ", "", kind.hint))[0]
        base = "-".join(re.findall("[a-z0-9]+", head.lower()))
        # Another type of the same description, as one line of text and several, has a number.
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
        name = next(one for one in names if self.definitions.setdefault(one, schema) == schema)
        return {"$ref": f"#/$defs/{name}"}

    def list_of(self, hint: Any, key: str) -> Schema:
        return {"type": ["array", "null"], "items": self.value_of(hint, f"{key}[]")}

    def mapping_of(self, key_hint: Any, hint: Any, key: str) -> Schema:
        return {"type": ["object", "null"], **_names(key_hint), "additionalProperties": self.value_of(hint, f"{key}.*")}

    def _header_fields(self, hint: Any, key: str) -> Schema:
        value = {"anyOf": [self.scalar_of(value_types.FIELD_VALUE), {"type": "null"}]}
        names = _names(Annotated[str, value_types.HEADER])
        return {"type": ["object", "null"], **names, "additionalProperties": value}

    def _by_tier(self, kind: ValueType) -> Schema:
        value = self.scalar_of(kind)
        several = {"anyOf": [value, {"type": "array", "items": value}, OFF, {"const": ""}]}
        return {"anyOf": [*several["anyOf"], {"type": "object", **_names(Label), "additionalProperties": several}]}

    # ── keys with a reader of their own (`custom_readers.py`) ────────────────────────────────

    def _trusted_proxies(self, _: Any, __: str) -> Schema:
        network = self.scalar_of(value_types.NETWORK)
        networks = {"type": "array", "items": network, "minItems": 1}
        hops = self.scalar_of(value_types.whole_number(1, 32))
        return {"anyOf": [words_of(PRESETS), hops, {"type": "string", "allOf": [network]}, networks]}

    def _identity_sources(self, _: Any, key: str) -> Schema:
        sources = {
            "path": self.scalar_of(value_types.TEMPLATE),
            "header": self.scalar_of(value_types.HEADER),
            "jwt": self.define_section(JwtSource, f"{key}[].jwt"),
            "cookie": self.scalar_of(value_types.COOKIE),
            "ip": {"type": "null"},
        }
        described = {
            word: {**schema, **({"description": said} if (said := self.comments.get(f"{key}[].{word}")) else {})}
            for word, schema in sources.items()
        }
        source = {"type": "object", "properties": described, "additionalProperties": False}
        return {
            "type": ["array", "null"],
            "items": {"anyOf": [{"const": "ip"}, {**source, "minProperties": 1, "maxProperties": 1}]},
        }

    def _upstreams(self, _: Any, key: str) -> Schema:
        one = self.define_section(Upstream, f"{key}.*")
        # An address is the dialect's own, of the policy, or found in a variable of the app's.
        has_address = {"anyOf": [{"required": ["base_url"]}, {"required": ["env"]}]}
        speaks_dialect = {
            "required": ["kind"],
            "properties": {"kind": {"enum": sorted(NAMED_AFTER_THEIR_KIND)}},
        }
        other = {"allOf": [one, {"anyOf": [*has_address["anyOf"], speaks_dialect]}]}
        return {
            "type": ["object", "null"],
            **_names(Label),
            "properties": {name: {"anyOf": [one, OFF_BY_NAME]} for name in NAMED_AFTER_THEIR_KIND},
            "additionalProperties": {"anyOf": [other, OFF_BY_NAME]},
        }

    def _alert_rules(self, _: Any, key: str) -> Schema:
        # What an entry of a shipped name leaves out stays as shipped.
        change = self.define_section(AlertRule, f"{key}.*", optional=("when",))
        rule = self.define_section(AlertRule, f"{key}.*")
        return {
            "type": ["object", "null"],
            **_names(Label),
            "properties": {
                name: {
                    "anyOf": [change, OFF_BY_NAME],
                    "default": {"when": str(shipped.when), "severity": shipped.severity},
                }
                for name, shipped in SHIPPED_RULES.items()
            },
            "additionalProperties": {"anyOf": [rule, OFF_BY_NAME]},
        }

    def _database_env(self, _: Any, key: str) -> Schema:
        variable = Annotated[str, value_types.VARIABLE]
        return {"anyOf": [self.list_of(variable, key), self.mapping_of(variable, DatabasePart, key)]}


# ── single values ────────────────────────────────────────────────────────────────────────────


def describe_scalar(kind: ValueType) -> Schema:
    """One value: its pattern for texts, its bounds for whole numbers."""
    if not kind.pattern:
        return {"type": ["string", "number", "boolean", *(["null"] if kind.empty else [])]}
    if kind.bounds is None and _WORDS.fullmatch(kind.pattern):
        return words_of(kind.pattern.split("|"))
    accepts = re.compile(kind.pattern).fullmatch
    typed = list(dict.fromkeys(["string", *(name for text, name in _PROBES.items() if accepts(text))]))
    schema: Schema = {"type": [*typed, "null"] if kind.empty else typed}
    if kind.bounds is not None:
        schema["minimum"], schema["maximum"] = kind.bounds
    schema["pattern"] = f"^({kind.pattern}){'?' if kind.empty else ''}$|{REFERENCE_TO_VARIABLE}"
    # What yaml-language-server shows in place of the expression; others pass over what they do not know.
    schema["errorMessage"] = schema["patternErrorMessage"] = f"write {kind.hint}"
    return schema


def words_of(words: Sequence[str]) -> Schema:
    """One of these words; on and off also as JSON says them, and a number as a number."""
    choices: list[Any] = []
    for word in words:
        choices += [int(word)] if word.isdecimal() else []
        choices += [word] + ([word == "on"] if word in ("on", "off") else [])
    return {"anyOf": [{"enum": choices}, {"type": "string", "pattern": REFERENCE_TO_VARIABLE}]}


def _names(hint: Any) -> Schema:
    """What the names of a mapping may be, if their annotation says it. `${NAME}` stands for nothing in a name."""
    kinds = [mark for mark in get_args(hint)[1:] if isinstance(mark, ValueType) and mark.pattern]
    return {"propertyNames": {"pattern": f"^({kinds[0].pattern})$"}} if kinds else {}


def _json_of(tree: Any) -> Any:
    """A default as an editor writes it into a policy."""
    if isinstance(tree, list):
        return [_json_of(one) for one in tree]
    if isinstance(tree, PlainWord):
        return {"null": None, "true": True, "false": False}.get(tree, str(tree))
    return int(tree) if re.fullmatch("0|[1-9][0-9]*", tree) else str(tree)
