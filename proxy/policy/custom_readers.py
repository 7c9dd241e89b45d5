"""The parts of the language whose text has another shape than their section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from proxy.policy import value_types
from proxy.policy.parsing.nodes import Entry, Listing, Node, Scalar, Table
from proxy.policy.reader import BROKEN, Broken, Reader, Shape, is_off, quote
from proxy.policy.schema.alerting import SHIPPED_RULES, AlertRule
from proxy.policy.schema.identity import CookieSource, HeaderSource, IpSource, JwtSource, PathSource, Source
from proxy.policy.schema.route import DEFAULT_ROUTE, Route
from proxy.policy.schema.server import REDACT, TrustedProxies
from proxy.policy.schema.stores import DatabasePart
from proxy.policy.schema.upstream import NAMED_AFTER_THEIR_KIND, Upstream
from proxy.policy.value_types import Kind
from proxy.policy.values import ANY_TIER, Label, Network

PRESETS: tuple[Literal["auto", "none", "render", "private"], ...] = ("auto", "none", "render", "private")
SOURCES = ("path", "header", "jwt", "cookie", "ip")


def by_tier(reader: Reader, node: Node, key: str, kind: Kind) -> Any:
    """`10/h`, a list of them, or either by tier; `off` for none."""
    if not isinstance(node, Table):
        values = _several(reader, node, key, kind)
        if isinstance(values, Broken):
            return BROKEN
        return MappingProxyType({ANY_TIER: values} if values else {})
    found: dict[str, Any] = {}
    for entry in reader.entries(node, key, None):
        name = reader.name(entry, Label, key)
        values = _several(reader, entry.value, f"{key}.{quote(entry.key)}", kind)
        if not isinstance(values, Broken) and not isinstance(name, Broken) and values:
            found[name] = values
    return MappingProxyType(found)


def _several(reader: Reader, node: Node, key: str, kind: Kind) -> tuple[Any, ...] | Broken:
    if isinstance(node, Scalar):
        text = reader.text(node, key)
        if isinstance(text, Broken):
            return BROKEN
        if node.null or text == "" or is_off(node, text):
            return ()
    items = node.items if isinstance(node, Listing) else (node,)
    values = []
    for index, item in enumerate(items):
        path = f"{key}[{index}]" if isinstance(node, Listing) else key
        value = reader.scalar(item, kind, (), path, or_off=True)
        if isinstance(value, Broken):
            return BROKEN
        values.append(value)
    return tuple(values)


def trusted_proxies(reader: Reader, node: Node, key: str, _: Any) -> TrustedProxies | Broken:
    if isinstance(node, Listing):
        networks = reader.listing(node, Annotated[Network, value_types.NETWORK], key)
        if not node.items:
            return reader.fault(key, "the list is empty", "write none, or the networks", node.line)
        return TrustedProxies("networks", networks=networks)
    trusted: TrustedProxies | Broken = reader.scalar(node, _TRUSTED, (), key)
    return trusted


def _trusted(text: str) -> TrustedProxies:
    if text in PRESETS:
        return TrustedProxies(PRESETS[PRESETS.index(text)])
    if text.isascii() and text.isdigit():
        return TrustedProxies("hops", hops=value_types.whole(1, 32).parse(text))
    if "/" in text or ":" in text:
        return TrustedProxies("networks", networks=(value_types.NETWORK.parse(text),))
    raise ValueError("it is neither a preset, a number of hops nor a network")


_TRUSTED = Kind(_trusted, str, "auto, none, render, private, a number of hops such as 1, or [10.0.0.0/8]")


def sources(reader: Reader, node: Node, key: str, fallback: Any) -> Any:
    """Each a mapping of one key, or the word `ip`, which is last whether it is written or not."""
    if isinstance(node, Scalar) and node.null:
        return fallback
    if not isinstance(node, Listing):
        return reader.fault(key, "a list belongs here", "write - path: /api/user/{user}/* below it", node.line)
    found: list[Source] = []
    for index, item in enumerate(node.items):
        path = f"{key}[{index}]"
        reader.named[path] = item.line
        source = _source(reader, item, path)
        if isinstance(source, IpSource) and index < len(node.items) - 1:
            reader.fault(path, "ip always names a user, so what follows is never asked", "put ip last", item.line)
        if not isinstance(source, Broken | IpSource):
            found.append(source)
    return (*found, IpSource())


def _source(reader: Reader, node: Node, key: str) -> Source | Broken:
    if isinstance(node, Scalar) and node.text == "ip":
        return IpSource()
    entries = tuple(reader.entries(node, key, SOURCES)) if isinstance(node, Table) else ()
    if len(entries) != 1:
        if not isinstance(node, Table) or reader.sound(key):
            choices = "path: …, header: …, jwt: {…}, cookie: … or ip"
            reader.fault(key, "a source is one key and its value", f"write one of {choices}", node.line)
        return BROKEN
    word, value, path = entries[0].key, entries[0].value, f"{key}.{entries[0].key}"
    if word == "jwt":
        jwt: JwtSource | Broken = reader.section(JwtSource, value, path)
        return jwt
    if word == "ip":
        if not (isinstance(value, Scalar) and value.null):
            return reader.fault(path, "ip takes nothing", "write - ip", value.line)
        return IpSource()
    kind, make = _ONE_VALUE[word]
    name = reader.scalar(value, kind, (), path)
    return name if isinstance(name, Broken) else make(name)


_ONE_VALUE: Mapping[str, tuple[Kind, Callable[[str], Source]]] = MappingProxyType(
    {
        "path": (value_types.TEMPLATE, PathSource),
        "header": (value_types.HEADER, HeaderSource),
        "cookie": (value_types.COOKIE, CookieSource),
    }
)


def routes(reader: Reader, node: Node, key: str, fallback: Any) -> Any:
    """The last route is always `default`: the policy's own, or one that lets everything through."""
    found = reader.listing(node, Route, key, fallback)
    if isinstance(found, Broken) or (found and found[-1].name == DEFAULT_ROUTE.name):
        return found
    return (*found, DEFAULT_ROUTE)


def upstreams(reader: Reader, node: Node, key: str, fallback: Any) -> Any:
    """`openai` is there unless it is `off`; an upstream named after its kind has that kind's defaults."""
    if isinstance(node, Scalar) and node.null:
        return fallback
    if not isinstance(node, Table):
        return reader.fault(key, "this is not a mapping", "write openai: {…} below it", node.line)
    found: dict[str, Upstream] = dict(fallback)
    for entry in reader.entries(node, key, None):
        name = reader.name(entry, Label, key)
        if isinstance(name, Broken):
            continue
        if _off(reader, entry):
            found.pop(name, None)
            continue
        default = NAMED_AFTER_THEIR_KIND.get(name, Upstream())
        upstream = reader.section(Upstream, entry.value, f"{key}.{name}", default)
        if not isinstance(upstream, Broken):
            found[name] = upstream
    return MappingProxyType(found)


def alert_rules(reader: Reader, node: Node, key: str, fallback: Any) -> Any:
    """The shipped rules and the policy's; what an entry of a shipped name leaves out stays as shipped."""
    if isinstance(node, Scalar) and node.null:
        return fallback
    if not isinstance(node, Table):
        return reader.fault(key, "this is not a mapping", "write NAME: {when: …, severity: …} below it", node.line)
    found: dict[str, AlertRule] = dict(fallback)
    for entry in reader.entries(node, key, None):
        name = reader.name(entry, Label, key)
        if isinstance(name, Broken):
            continue
        if _off(reader, entry):
            found.pop(name, None)
            continue
        rule = reader.section(AlertRule, entry.value, f"{key}.{name}", SHIPPED_RULES.get(name))
        if not isinstance(rule, Broken):
            found[name] = rule
    return MappingProxyType(found)


def _off(reader: Reader, entry: Entry) -> bool:
    return isinstance(entry.value, Scalar) and is_off(entry.value, entry.value.text)


def redact(reader: Reader, node: Node, key: str, fallback: Any) -> Any:
    """Adds to the names that are always redacted."""
    added = reader.listing(node, Annotated[str, value_types.SECRET_NAME], key, fallback)
    return added if isinstance(added, Broken) else tuple(dict.fromkeys((*REDACT, *added)))


def database_env(reader: Reader, node: Node, key: str, fallback: Any) -> Any:
    """A list of variables that get the whole address, or a mapping from variable to part."""
    variable = Annotated[str, value_types.VARIABLE]
    if isinstance(node, Table):
        return reader.mapping(node, variable, DatabasePart, key)
    if isinstance(node, Scalar) and node.null:
        return fallback
    names = reader.listing(node, variable, key)
    return names if isinstance(names, Broken) else MappingProxyType(dict.fromkeys(names, "url"))


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "by_tier": by_tier,
        "trusted_proxies": trusted_proxies,
        "sources": sources,
        "routes": routes,
        "upstreams": upstreams,
        "alert_rules": alert_rules,
        "redact": redact,
        "database_env": database_env,
    }
)
