"""Readers of the keys whose text has another shape than their value.

An annotation names its reader by a word (`"routes"`) or by ByTier; CUSTOM_READERS maps the words to the functions.
Each takes the reader, the node, the key and the default, and returns the value or INVALID with the fault noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from proxy.policy import value_types
from proxy.policy.header_fields import find_reserved_field
from proxy.policy.parsing.nodes import Entry, Listing, Node, Scalar, Table
from proxy.policy.reader import INVALID, CustomReader, Invalid, PolicyReader, is_off, quote_text
from proxy.policy.schema.alerting import SHIPPED_RULES, AlertRule
from proxy.policy.schema.identity import CookieSource, HeaderSource, IpSource, JwtSource, PathSource, Source
from proxy.policy.schema.route import DEFAULT_ROUTE, FieldValue, Route
from proxy.policy.schema.server import REDACT, TrustedProxies
from proxy.policy.schema.stores import DatabasePart
from proxy.policy.schema.upstream import NAMED_AFTER_THEIR_KIND, Upstream
from proxy.policy.value_types import ValueType
from proxy.policy.values import ANY_TIER, Label, Network

PRESETS: tuple[Literal["auto", "none", "render", "private"], ...] = ("auto", "none", "render", "private")
SOURCE_WORDS = ("path", "header", "jwt", "cookie", "ip")


def read_by_tier(reader: PolicyReader, node: Node, key: str, kind: ValueType) -> Any:
    """`10/h`, a list of such, or either by tier; `off` for none."""
    # One value for every tier, without their names.
    if not isinstance(node, Table):
        values = _read_tier_values(reader, node, key, kind)
        if isinstance(values, Invalid):
            return INVALID
        return MappingProxyType({ANY_TIER: values} if values else {})
    found: dict[str, Any] = {}
    for entry in reader.known_entries(node, key, None):
        name = reader.read_name(entry, Label, key)
        values = _read_tier_values(reader, entry.value, f"{key}.{quote_text(entry.key)}", kind)
        if not isinstance(values, Invalid) and not isinstance(name, Invalid) and values:
            found[name] = values
    return MappingProxyType(found)


def _read_tier_values(reader: PolicyReader, node: Node, key: str, kind: ValueType) -> tuple[Any, ...] | Invalid:
    if isinstance(node, Scalar):
        text = reader.resolve_text(node, key)
        if isinstance(text, Invalid):
            return INVALID
        if node.is_null or text == "" or is_off(node, text):
            return ()
    items = node.items if isinstance(node, Listing) else (node,)
    values = []
    for index, item in enumerate(items):
        path = f"{key}[{index}]" if isinstance(node, Listing) else key
        value = reader.read_scalar(item, kind, (), path, or_off=True)
        if isinstance(value, Invalid):
            return INVALID
        values.append(value)
    return tuple(values)


def read_trusted_proxies(reader: PolicyReader, node: Node, key: str, _: Any) -> TrustedProxies | Invalid:
    if isinstance(node, Listing):
        networks = reader.read_list(node, Annotated[Network, value_types.NETWORK], key)
        if not node.items:
            # Trusting nobody is a decision, and has a word of its own.
            return reader.add_fault(key, "the list is empty", "write none, or the networks", node.line)
        return TrustedProxies("networks", networks=networks)
    trusted: TrustedProxies | Invalid = reader.read_scalar(node, _TRUSTED_PROXIES, (), key)
    return trusted


def _parse_trusted_proxies(text: str) -> TrustedProxies:
    if text in PRESETS:
        return TrustedProxies(PRESETS[PRESETS.index(text)])
    # A number of hops: that many entries from the right of X-Forwarded-For are our own proxies'.
    if text.isascii() and text.isdigit():
        return TrustedProxies("hops", hops=value_types.whole_number(1, 32).parse(text))
    if "/" in text or ":" in text:
        return TrustedProxies("networks", networks=(value_types.NETWORK.parse(text),))
    raise ValueError("it is neither a preset, a number of hops nor a network")


_TRUSTED_PROXIES = ValueType(
    _parse_trusted_proxies, str, "auto, none, render, private, a number of hops such as 1, or [10.0.0.0/8]"
)


def read_identity_sources(reader: PolicyReader, node: Node, key: str, fallback: Any) -> Any:
    """A list of mappings of one key each, or the word `ip`, which is always last, written or not."""
    if isinstance(node, Scalar) and node.is_null:
        return fallback
    if not isinstance(node, Listing):
        return reader.add_fault(key, "a list belongs here", "write - path: /api/user/{user}/* below it", node.line)
    found: list[Source] = []
    for index, item in enumerate(node.items):
        path = f"{key}[{index}]"
        reader.lines[path] = item.line
        source = _read_identity_source(reader, item, path)
        # Every request has an address, so a source after ip would never be asked.
        if isinstance(source, IpSource) and index < len(node.items) - 1:
            reader.add_fault(path, "ip always names a user, so what follows is never asked", "put ip last", item.line)
        # ip is added at the end, so that there is always somebody to count a request for.
        if not isinstance(source, Invalid | IpSource):
            found.append(source)
    return (*found, IpSource())


def _read_identity_source(reader: PolicyReader, node: Node, key: str) -> Source | Invalid:
    if isinstance(node, Scalar) and node.text == "ip":
        return IpSource()
    entries = tuple(reader.known_entries(node, key, SOURCE_WORDS)) if isinstance(node, Table) else ()
    if len(entries) != 1:
        # An unknown word was reported already; a second fault at its line would only repeat it.
        if not isinstance(node, Table) or reader.is_sound(key):
            choices = "path: …, header: …, jwt: {…}, cookie: … or ip"
            reader.add_fault(key, "a source is one key and its value", f"write one of {choices}", node.line)
        return INVALID
    word, value, path = entries[0].key, entries[0].value, f"{key}.{entries[0].key}"
    if word == "jwt":
        jwt: JwtSource | Invalid = reader.read_section(JwtSource, value, path)
        return jwt
    if word == "ip":
        if not (isinstance(value, Scalar) and value.is_null):
            return reader.add_fault(path, "ip takes nothing", "write - ip", value.line)
        return IpSource()
    kind, make = _SOURCE_TYPES[word]
    name = reader.read_scalar(value, kind, (), path)
    return name if isinstance(name, Invalid) else make(name)


_SOURCE_TYPES: Mapping[str, tuple[ValueType, Callable[[str], Source]]] = MappingProxyType(
    {
        "path": (value_types.TEMPLATE, PathSource),
        "header": (value_types.HEADER, HeaderSource),
        "cookie": (value_types.COOKIE, CookieSource),
    }
)


def read_routes(reader: PolicyReader, node: Node, key: str, fallback: Any) -> Any:
    """The last route is always `default`: the policy's own, or one without limits."""
    found = reader.read_list(node, Route, key, fallback)
    # Metrics and limits always have a last route to count a request under.
    if isinstance(found, Invalid) or (found and found[-1].name == DEFAULT_ROUTE.name):
        return found
    return (*found, DEFAULT_ROUTE)


def read_header_fields(reader: PolicyReader, node: Node, key: str, _: Any) -> Any:
    """A mapping from a field's name to its value; null takes the field out. Names differ by more than their case."""
    if isinstance(node, Scalar) and node.is_null:
        return MappingProxyType({})
    if not isinstance(node, Table):
        return reader.add_fault(key, "this is not a mapping", "write NAME: VALUE below it, or NAME: null", node.line)
    found: dict[str, FieldValue | None] = {}
    lower: dict[str, str] = {}  # names as written, by their lower case
    for entry in reader.known_entries(node, key, None):
        name = reader.read_name(entry, Annotated[str, value_types.HEADER], key)
        if isinstance(name, Invalid):
            continue
        path = f"{key}.{name}"
        earlier = lower.setdefault(name.lower(), name)
        if earlier != name:
            reader.add_fault(path, f"it is the same field as {earlier}", "keep one", entry.line)
            continue
        if (reason := find_reserved_field(name)) is not None:
            reader.add_fault(path, reason, "leave it out", entry.line)
            continue
        # A field of ${NAME} that is not set would go out empty, which says something else than its absence.
        value = _read_field_value(reader, entry.value, path)
        if not isinstance(value, Invalid):
            found[name] = value
    return MappingProxyType(found)


def _read_field_value(reader: PolicyReader, node: Node, key: str) -> FieldValue | Invalid | None:
    if isinstance(node, Scalar) and node.is_null:
        return None
    text = reader.read_scalar(node, value_types.FIELD_VALUE, (), key)
    if isinstance(text, Invalid):
        return text
    return FieldValue(text, secret=isinstance(node, Scalar) and "${" in node.text.replace("$${", ""))


def read_upstreams(reader: PolicyReader, node: Node, key: str, fallback: Any) -> Any:
    """`openai` is there unless it is `off`; an upstream named after its kind has that kind's defaults."""
    if isinstance(node, Scalar) and node.is_null:
        return fallback
    if not isinstance(node, Table):
        return reader.add_fault(key, "this is not a mapping", "write openai: {…} below it", node.line)
    found: dict[str, Upstream] = dict(fallback)
    for entry in reader.known_entries(node, key, None):
        name = reader.read_name(entry, Label, key)
        if isinstance(name, Invalid):
            continue
        # Switching off what is not there is no fault.
        if _is_switched_off(reader, entry):
            found.pop(name, None)
            continue
        # `anthropic: {}` is enough: its kind, base URL and variables come with the name.
        default = NAMED_AFTER_THEIR_KIND.get(name, Upstream())
        upstream = reader.read_section(Upstream, entry.value, f"{key}.{name}", default)
        if not isinstance(upstream, Invalid):
            found[name] = upstream
    return MappingProxyType(found)


def read_alert_rules(reader: PolicyReader, node: Node, key: str, fallback: Any) -> Any:
    """The shipped rules and the policy's; what an entry of a shipped name leaves out stays as shipped."""
    if isinstance(node, Scalar) and node.is_null:
        return fallback
    if not isinstance(node, Table):
        return reader.add_fault(key, "this is not a mapping", "write NAME: {when: …, severity: …} below it", node.line)
    found: dict[str, AlertRule] = dict(fallback)
    for entry in reader.known_entries(node, key, None):
        name = reader.read_name(entry, Label, key)
        if isinstance(name, Invalid):
            continue
        if _is_switched_off(reader, entry):
            found.pop(name, None)
            continue
        rule = reader.read_section(AlertRule, entry.value, f"{key}.{name}", SHIPPED_RULES.get(name))
        if not isinstance(rule, Invalid):
            found[name] = rule
    return MappingProxyType(found)


def _is_switched_off(reader: PolicyReader, entry: Entry) -> bool:
    return isinstance(entry.value, Scalar) and is_off(entry.value, entry.value.text)


def read_redact(reader: PolicyReader, node: Node, key: str, fallback: Any) -> Any:
    """Adds to the names that are always redacted."""
    # Names are only ever added: no policy can bring a secret back into the log.
    added = reader.read_list(node, Annotated[str, value_types.SECRET_NAME], key, fallback)
    return added if isinstance(added, Invalid) else tuple(dict.fromkeys((*REDACT, *added)))


def read_database_env(reader: PolicyReader, node: Node, key: str, fallback: Any) -> Any:
    """A list of variables that get the whole address, or a mapping from variable to part."""
    variable = Annotated[str, value_types.VARIABLE]
    if isinstance(node, Table):
        return reader.read_mapping(node, variable, DatabasePart, key)
    if isinstance(node, Scalar) and node.is_null:
        return fallback
    # A list is the short form: each variable gets the whole address.
    names = reader.read_list(node, variable, key)
    return names if isinstance(names, Invalid) else MappingProxyType(dict.fromkeys(names, "url"))


CUSTOM_READERS: Mapping[str, CustomReader] = MappingProxyType(
    {
        "by_tier": read_by_tier,
        "trusted_proxies": read_trusted_proxies,
        "sources": read_identity_sources,
        "routes": read_routes,
        "header_fields": read_header_fields,
        "upstreams": read_upstreams,
        "alert_rules": read_alert_rules,
        "redact": read_redact,
        "database_env": read_database_env,
    }
)
