"""In which keys two policies differ, each with its value as a policy writes it, before and after.

Sections are gone into key by key; upstreams, rules, routes and tiers are told apart by their names, everything else is
compared as a whole. A secret is compared, and shown as `***`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from proxy.policy.reader import key_hints
from proxy.policy.renderer import flow_text, value_tree
from proxy.policy.schema.policy import Policy

NAMED_SECTIONS = ("routes", "upstreams", "alert_rules", "off")  # annotations whose values are sections all the same


@dataclass(frozen=True, slots=True)
class Change:
    """A key that differs. `before` and `after` are text as in a policy; empty where there is no such route, upstream,
    rule or tier."""

    key: str
    before: str
    after: str


def find_changes(old: Policy, new: Policy) -> Iterator[Change]:
    """The keys in which the policies differ, in the order of the schema."""
    yield from _compare_sections(old, new, "")


def _compare_sections(old: Any, new: Any, key: str) -> Iterator[Change]:
    section: type = type(old)
    for name, hint in key_hints(section).items():
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield from _compare_values(before, after, hint, f"{key}.{name}" if key else name)


def _compare_values(before: Any, after: Any, hint: Any, key: str) -> Iterator[Change]:
    inner = _hint_of_sections(hint)
    if inner is not None and type(before) is type(after):
        if is_dataclass(before):
            yield from _compare_sections(before, after, key)
            return
        if isinstance(before, Mapping):
            yield from _compare_named(before, after, get_args(inner)[1], key)
            return
        had, has = ({one.name: one for one in several if hasattr(one, "name")} for several in (before, after))
        # A list of sections without names is one value, and so is one whose order alone has changed.
        if len(had) == len(before) and len(has) == len(after):
            changes = list(_compare_named(had, has, get_args(inner)[0], key))
            if changes:
                yield from changes
                return
    yield Change(key, flow_text(value_tree(before, hint)), flow_text(value_tree(after, hint)))


def _compare_named(before: Mapping[str, Any], after: Mapping[str, Any], hint: Any, key: str) -> Iterator[Change]:
    for name in dict.fromkeys((*before, *after)):
        path = f"{key}.{name}"
        if name not in before:
            yield Change(path, "", flow_text(value_tree(after[name], hint)))
        elif name not in after:
            yield Change(path, flow_text(value_tree(before[name], hint)), "")
        elif before[name] != after[name]:
            yield from _compare_values(before[name], after[name], hint, path)


def _hint_of_sections(hint: Any) -> Any:
    """The annotation without what is added to it, if its values may be sections; None if they are single values."""
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
        if not all(mark in NAMED_SECTIONS for mark in marks if isinstance(mark, str)):
            return None
        if not all(isinstance(mark, str) for mark in marks):
            return None
    if get_origin(hint) in (Union, types.UnionType):
        found = [inner for member in get_args(hint) if (inner := _hint_of_sections(member)) is not None]
        return found[0] if found else None
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    arguments = get_args(hint)
    # `tuple[Route, ...]`, `Mapping[Label, Upstream]`
    inside = arguments[0] if get_origin(hint) is tuple else arguments[1] if len(arguments) == 2 else None
    return hint if inside is not None and isinstance(inside, type) and is_dataclass(inside) else None
