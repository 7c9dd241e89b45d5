"""Rendering: a Policy as YAML, every default written out and every secret as `***`.

Values become a tree of text, lists and mappings by their annotations, as the reader goes; the tree becomes lines.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from proxy.policy.reader import key_hints
from proxy.policy.schema.alerting import SHIPPED_RULES, AlertRule
from proxy.policy.schema.identity import CookieSource, HeaderSource, IpSource, JwtSource, PathSource, Source
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.price import Charges
from proxy.policy.schema.route import FieldValue, Route
from proxy.policy.schema.server import TrustedProxies
from proxy.policy.schema.stores import DatabasePart
from proxy.policy.schema.upstream import Upstream
from proxy.policy.value_types import ValueType
from proxy.policy.values import ANY_TIER, ByTier

# Text that needs no quotes, neither in a block nor in a flow, and cannot be read as anything else.
_PLAIN_SCALAR = re.compile(r"[A-Za-z0-9/.$_][A-Za-z0-9/._*@%+$:-]*(?<!:)")
_UNPRINTABLE = re.compile("[\x7f-\xa0\xad\u2028\u2029\ufeff]|[\U000e0000-\U0010ffff]")
_NOT_TEXT = {"", "null", "Null", "NULL", "off", "true", "false"}

# Text, or nested lists and mappings of it.
Tree = Any


def render_policy(policy: Policy) -> str:
    """YAML that loads to an equal policy, unless it has a secret."""
    return "\n".join(_block_lines(_section_tree(policy), 0)) + "\n"


# ── values to trees ──────────────────────────────────────────────────────────────────────────


def _section_tree(section: Any) -> dict[str, Tree]:
    cls: type = type(section)
    known = key_hints(cls)
    values = {item.name: getattr(section, item.name) for item in fields(section) if item.name in known}
    if isinstance(section, Charges):  # two dozen prices, of which most are unset
        values = {name: value for name, value in values.items() if value is not None and value != {}}
    return {name: value_tree(value, known[name]) for name, value in values.items()}


def value_tree(value: Any, hint: Any) -> Tree:
    """What a policy writes for a value of a key: text (PlainWord for null, true and such), lists and mappings of it."""
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    # Whether a key is switched off by `off` or by `null` is in its annotation.
    if value is None:
        return PlainWord("off" if "off" in marks else "null")
    # The same order as the reader's: what an annotation adds decides first.
    for mark in marks:
        if isinstance(mark, ValueType):
            return _scalar_text(value, mark)
        if isinstance(mark, ByTier):
            return _by_tier_tree(value, mark.kind)
        if mark in _CUSTOM_TREES:
            return _CUSTOM_TREES[mark](value)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union_tree(value, args)
    if isinstance(value, bool):
        return PlainWord("true" if value else "false")
    if origin is tuple:
        return [value_tree(item, args[0]) for item in value]
    if isinstance(value, Mapping):
        return {name: value_tree(item, args[1]) for name, item in value.items()}
    return _section_tree(value) if is_dataclass(value) else PlainWord(str(value))


def _union_tree(value: Any, members: tuple[Any, ...]) -> Tree:
    for member in members:
        if get_origin(member) is Literal and value in get_args(member):
            return PlainWord(str(value))
    other = next(member for member in members if get_origin(member) is not Literal and member is not type(None))
    return value_tree(value, other)


def _scalar_text(value: Any, kind: ValueType) -> str:
    if kind.secret:
        # The mask has one length: the length of a secret says something about it.
        return kind.mask if value else ""
    return kind.format(value).replace("${", "$${")  # loading it again must not substitute a variable


def _by_tier_tree(values: Mapping[str, tuple[Any, ...]], kind: ValueType) -> Tree:
    def several(items: tuple[Any, ...]) -> Tree:
        shown = [kind.format(item) for item in items]
        return shown[0] if len(shown) == 1 else shown

    if ANY_TIER in values:
        return several(values[ANY_TIER])
    return {tier: several(items) for tier, items in values.items()} or PlainWord("null")


def _trusted_proxies_tree(trusted: TrustedProxies) -> Tree:
    if trusted.kind == "hops":
        return str(trusted.hops)
    return [str(network) for network in trusted.networks] if trusted.kind == "networks" else trusted.kind


def _source_tree(source: Source) -> Tree:
    match source:
        case PathSource():
            return {"path": source.template}
        case HeaderSource():
            return {"header": source.name}
        case CookieSource():
            return {"cookie": source.name}
        case JwtSource():
            return {"jwt": _section_tree(source)}
        case IpSource():
            return "ip"


def _route_tree(route: Route) -> Tree:
    # Written out, a queue without concurrency would be a fault: nothing ever waits in it.
    tree = _section_tree(route)
    return tree if route.concurrency is not None else tree | {"queue": PlainWord("null")}


def _header_fields_tree(values: Mapping[str, FieldValue | None]) -> Tree:
    def shown(value: FieldValue | None) -> Tree:
        if value is None:
            return PlainWord("null")
        return "***" if value.secret else value.text.replace("${", "$${")

    return {name: shown(value) for name, value in values.items()}


def _upstreams_tree(upstreams: Mapping[str, Upstream]) -> Tree:
    tree = {name: _section_tree(upstream) for name, upstream in upstreams.items()}
    # It is there by default, so its absence has to be written.
    return tree if "openai" in tree else {"openai": PlainWord("off"), **tree}


def _alert_rules_tree(rules: Mapping[str, AlertRule]) -> Tree:
    # Shipped rules that were switched off have to be written as off, or loading would bring them back.
    tree = {name: _section_tree(rule) for name, rule in rules.items()}
    return tree | {name: PlainWord("off") for name in SHIPPED_RULES if name not in tree}


def _database_env_tree(env: Mapping[str, DatabasePart]) -> Tree:
    if all(part == "url" for part in env.values()):
        return list(env)
    return dict(env)


_CUSTOM_TREES: Mapping[str, Callable[[Any], Tree]] = MappingProxyType(
    {
        "trusted_proxies": _trusted_proxies_tree,
        "sources": lambda sources: [_source_tree(source) for source in sources],
        "routes": lambda routes: [_route_tree(route) for route in routes],
        "header_fields": _header_fields_tree,
        "upstreams": _upstreams_tree,
        "alert_rules": _alert_rules_tree,
        "redact": list,
        "database_env": _database_env_tree,
    }
)


# ── trees to text ────────────────────────────────────────────────────────────────────────────


class PlainWord(str):
    """A word of the language, which is written without quotes."""

    __slots__ = ()


def _quote_scalar(text: str) -> str:
    if isinstance(text, PlainWord):
        return str(text)
    # JSON's strings are YAML's double-quoted scalars but for a few characters, which are escaped.
    if text in _NOT_TEXT or _PLAIN_SCALAR.fullmatch(text) is None:
        return _UNPRINTABLE.sub(_escape_character, json.dumps(text, ensure_ascii=False))
    return text


def _escape_character(match: re.Match[str]) -> str:
    # JSON writes characters above U+FFFF as surrogate pairs, which YAML does not have.
    code = ord(match[0])
    return f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}"


def flow_text(tree: Tree) -> str:
    """A tree on one line."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{_quote_scalar(key)}: {flow_text(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(flow_text(item) for item in tree) + "]"
    return _quote_scalar(tree)


def _fits_on_line(tree: Tree) -> bool:
    """Whether a tree fits on a line: no mapping in it, and not long."""
    if isinstance(tree, str) or not tree:
        return True
    values = tree.values() if isinstance(tree, dict) else tree
    return not any(isinstance(value, dict) for value in values) and len(flow_text(tree)) <= 90


def _block_lines(tree: Tree, depth: int) -> list[str]:
    indent = "  " * depth
    # Short values go on one line, as a person would write them.
    lines: list[str] = []
    for key, value in tree.items():
        if _fits_on_line(value):
            lines.append(f"{indent}{_quote_scalar(key)}: {flow_text(value)}")
        elif isinstance(value, dict):
            lines += [f"{indent}{_quote_scalar(key)}:", *_block_lines(value, depth + 1)]
        else:
            lines += [f"{indent}{_quote_scalar(key)}:", *_list_lines(value, depth + 1)]
        if depth == 0:
            lines.append("")
    return lines[:-1] if depth == 0 else lines


def _list_lines(items: list[Tree], depth: int) -> list[str]:
    indent = "  " * depth
    lines: list[str] = []
    for item in items:
        if _fits_on_line(item):
            lines.append(f"{indent}- {flow_text(item)}")
        elif isinstance(item, dict):
            first, *rest = _block_lines(item, depth + 1)
            lines += [f"{indent}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}- {flow_text(item)}")
    return lines
