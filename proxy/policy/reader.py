"""Reading: nodes to typed sections, driven by the sections' own annotations.

The reader goes through the schema, not through the text: for each field of a section it looks up the entry of that
name and reads it as the field's annotation says. A value that cannot be read is noted as a fault and reading goes on,
so that an operator sees every mistake at once.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from proxy.errors import PolicyFault
from proxy.policy.parsing.env_vars import substitute_variables
from proxy.policy.parsing.nodes import Entry, Listing, Node, Scalar, Table
from proxy.policy.value_types import ValueType
from proxy.policy.values import ByTier, enclosing_keys

CustomReader = Callable[["PolicyReader", Node, str, Any], Any]


class Invalid:
    """The type of INVALID, which stands in place of a value that a fault was noted for."""


MAX_SUGGESTED_NAMES = 40  # that a fault lists

INVALID: Final = Invalid()


@cache
def key_hints(section: type) -> Mapping[str, Any]:
    """The annotations of a section's keys, in order."""
    resolved = get_type_hints(section, include_extras=True)
    return MappingProxyType(
        {item.name: resolved[item.name] for item in fields(section) if item.metadata.get("key", True)}
    )


def quote_text(text: str) -> str:
    """A text as a fault shows it: on one line, at most 60 characters."""
    shown = text if len(text) <= 60 else f"{text[:57]}…"
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)


def is_off(node: Scalar, text: str) -> bool:
    """Whether a scalar's text says `off`. JSON, and YAML 1.1 in other tools, write it as false or in quotes."""
    return text == "off" or (node.plain and text == "false")


def _accepts_off(hint: Any) -> bool:
    """Whether "off" in quotes could be a value of this type."""
    for mark in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        if isinstance(mark, ValueType):
            try:
                mark.parse("off")
            except ValueError:
                return False
            return True
    return False


class PolicyReader:
    """Reads one policy and collects what is wrong with it.

    `faults` and `warnings` are what was found. `lines` has the line of every key that the policy writes: rules ask it
    whether a value was written or is a default. `incomplete_lists` are lists that lack a faulty item, so that an index
    into the value is not one into the text.
    """

    def __init__(
        self, file: str, environ: Mapping[str, str], custom_readers: Mapping[str, CustomReader], lines: int
    ) -> None:
        self.file = file
        self.environ = environ
        self.custom_readers = custom_readers
        self.last_line = lines
        self.faults: list[PolicyFault] = []
        self.lines: dict[str, int] = {}
        self._faulty_keys: set[str] = set()  # keys that a fault was noted for
        self._unsound_keys: set[str] = set()  # those, and the keys that enclose them
        self.warnings: list[str] = []
        self.incomplete_lists: set[str] = set()

    # ── for rules and custom readers ─────────────────────────────────────────────────────────────

    def line_of(self, key: str) -> int:
        """The line of a key, or of the nearest key that encloses it."""
        return next((self.lines[name] for name in enclosing_keys(key) if name in self.lines), 1)

    def is_sound(self, *keys: str) -> bool:
        """Whether no fault was noted for these keys, for one inside them, or for one that encloses them."""
        return not any(
            key in self._unsound_keys or not self._faulty_keys.isdisjoint(enclosing_keys(key)) for key in keys
        )

    def add_fault(self, key: str, problem: str, fix: str, line: int | None = None) -> Invalid:
        """Note a fault; returns INVALID, so that a reader can return what this returns."""
        # An editor jumps to this line, so it must exist; an empty file still has a first one.
        at = min(max(self.line_of(key) if line is None else line, 1), self.last_line)
        self.faults.append(PolicyFault(self.file, at, key or "policy", problem, fix))
        # Both directions count for is_sound: a section with a fault in it, and what is in a faulty section.
        self._faulty_keys.add(key)
        self._unsound_keys.update(enclosing_keys(key))
        return INVALID

    def suggest(self, word: str, known: Sequence[str]) -> str:
        """What to write in place of a word that is not known."""
        # Similarity is expensive to compute, so only the first hundred faults get a suggestion.
        few = list(known[:MAX_SUGGESTED_NAMES])
        from difflib import get_close_matches  # only for who made a mistake

        close = get_close_matches(word[:100], few, 1, 0.6) if len(self.faults) < 100 else []
        if close:
            return f"did you mean {close[0]}?"
        return f"write one of {', '.join(few)}{', …' if len(known) > MAX_SUGGESTED_NAMES else ''}"

    # ── sections ─────────────────────────────────────────────────────────────────────────────

    def read_section(self, cls: type, node: Node, key: str, default: Any = None) -> Any:
        """An instance of `cls`, or INVALID; keys that are not written have the values of `default`."""
        if isinstance(node, Scalar) and node.is_null:
            node = Table(node.line, ())
        known = key_hints(cls)
        if not isinstance(node, Table):
            example = next(iter(known))
            return self.add_fault(key, "this is not a mapping", f"write keys below it, such as {example}: …", node.line)
        # Unknown keys are reported here, before any value is read: a misspelt key explains a missing one.
        written = {entry.key: entry for entry in self.known_entries(node, key, tuple(known))}
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name not in known:
                continue
            path = f"{key}.{item.name}" if key else item.name
            fallback = getattr(default, item.name) if default is not None else _field_default(item)
            entry = written.get(item.name)
            if entry is not None:
                value = self.read_value(entry.value, known[item.name], path, fallback)
            else:
                value = self._read_absent(item.metadata, node.line, known[item.name], path, fallback)
            # Required and not written; the fault belongs to the section, since the key has no line.
            if value is MISSING:
                self.add_fault(key or "policy", f"{item.name} is missing", f"write {item.name}: …", node.line)
            values[item.name] = fallback if isinstance(value, Invalid) else value
        # A section that lacks a value cannot be made at all; one with a fault in it is made with its defaults, so that
        # the rules still find what else is wrong with it.
        if any(value is MISSING for value in values.values()):
            return INVALID
        return cls(**values)

    def _read_absent(self, metadata: Mapping[str, Any], line: int, hint: Any, key: str, fallback: Any) -> Any:
        text = metadata.get("absent")
        if text is not None and metadata.get("foreign", False):
            # The app may have this variable for a purpose of its own, so a value that does not fit is only warned of.
            trial = PolicyReader(self.file, self.environ, self.custom_readers, self.last_line)
            value = trial.read_value(Scalar(line, text), hint, key, fallback)
            if not trial.faults:
                return value
            self.warnings.append(f"{key}: {trial.faults[0].problem} ({text}), so it is left out")
            return fallback
        if text is not None:
            return self.read_value(Scalar(line, text), hint, key, fallback)
        # A section that is not written may still have fields whose defaults come out of the environment.
        if is_dataclass(hint) and isinstance(hint, type) and fallback is not MISSING:
            return self.read_section(hint, Table(line, ()), key, fallback)
        return fallback

    def known_entries(self, node: Table, key: str, known: tuple[str, ...] | None) -> Iterator[Entry]:
        """The entries of a table without those that are unknown or written twice, which are faults."""
        seen: dict[str, int] = {}
        for entry in node.entries:
            shown = quote_text(entry.key)
            path = f"{key}.{shown}" if key else shown or "policy"
            # YAML leaves open which one counts; most tools silently take the last.
            if entry.key in seen:
                self.add_fault(path, f"it is written twice, first in line {seen[entry.key]}", "keep one", entry.line)
                continue
            seen[entry.key] = entry.line
            # `known` is None if the policy chooses the names: upstreams, tiers, variables.
            if known is not None and entry.key not in known:
                self.add_fault(path, "there is no such key", self.suggest(entry.key, known), entry.line)
                continue
            if not (isinstance(entry.value, Scalar) and entry.value.is_null):
                self.lines[path] = entry.line  # a heading with nothing under it writes nothing
            yield entry

    # ── values ───────────────────────────────────────────────────────────────────────────────

    def read_value(self, node: Node, hint: Any, key: str, fallback: Any = MISSING) -> Any:
        """The value of a node by its annotation, or INVALID with the fault noted."""
        # What the annotation adds decides first: a ValueType, ByTier, or the word of a custom reader. The word "off"
        # only says that None is written so.
        marks: tuple[Any, ...] = ()
        if get_origin(hint) is Annotated:
            hint, *rest = get_args(hint)
            marks = tuple(rest)
        for mark in marks:
            if isinstance(mark, ValueType):
                return self.read_scalar(node, mark, (), key)
            if isinstance(mark, ByTier):
                return self.custom_readers["by_tier"](self, node, key, mark.kind)
            if mark != "off":
                return self.custom_readers[mark](self, node, key, fallback)
        origin, args = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._read_union(node, args, key, fallback, off_only="off" in marks)
        if origin is Literal:
            return self.read_scalar(node, None, args, key)
        if hint is bool:
            return self._read_boolean(node, key)
        if origin is tuple:
            return self.read_list(node, args[0], key, fallback)
        if origin is not None:  # a mapping by names
            return self.read_mapping(node, args[0], args[1], key)
        return self.read_section(hint, node, key, None if fallback is MISSING else fallback)

    def _read_union(self, node: Node, members: tuple[Any, ...], key: str, fallback: Any, *, off_only: bool) -> Any:
        # The language has no other unions than TYPE, words and None together, so one member reads what no word is.
        inner = [member for member in members if member is not type(None)]
        words = tuple(word for member in inner if get_origin(member) is Literal for word in get_args(member))
        other = next(member for member in inner if get_origin(member) is not Literal)
        optional = len(inner) < len(members)
        if optional and isinstance(node, Scalar):
            text = self.resolve_text(node, key)
            if isinstance(text, Invalid):
                return INVALID
            # "off" in quotes is a text wherever a text may stand: a fallback may say off.
            if is_off(node, text) and not (not node.plain and _accepts_off(other)):
                return None
            if not off_only and (node.is_null or text == ""):
                return None
        if get_origin(other) is Annotated and isinstance(kind := get_args(other)[1], ValueType):
            return self.read_scalar(node, kind, words, key, or_off=optional)
        return self.read_value(node, other, key, fallback)

    def resolve_text(self, node: Scalar, key: str) -> str | Invalid:
        try:
            return substitute_variables(node.text, self.environ)
        except ValueError as error:
            fix = "set it, or write ${NAME:-default}" if "environment" in str(error) else "write ${NAME} or $${"
            return self.add_fault(key, str(error), fix, node.line)

    def read_scalar(
        self, node: Node, kind: ValueType | None, words: tuple[str, ...], key: str, *, or_off: bool = False
    ) -> Any:
        choices = [*words, *([kind.hint] if kind else []), *(["off"] if or_off else [])]
        fix = f"write {', or '.join(choices)}" if kind else f"write {' | '.join(choices)}"
        if not isinstance(node, Scalar):
            return self.add_fault(key, "one value belongs here, not several", fix, node.line)
        text = self.resolve_text(node, key)
        if isinstance(text, Invalid):
            return INVALID
        # Words come before the type's own syntax, so `auto` is never tried as a number or a size.
        if text in words:
            return text
        if node.plain and (word := {"true": "on", "false": "off"}.get(text)) in words:  # JSON has no other words
            return word
        # Some values may be empty on purpose: a token of ${NAME:-} that is not set.
        if kind is not None and kind.empty and (node.is_null or not text):
            return ""
        if node.is_null or not text:
            return self.add_fault(key, "it is empty", fix, node.line)
        # If the value came out of the environment, the fault shows the variable's name and never the value.
        shown = quote_text(node.text)
        if kind is None:
            nearest = self.suggest(text, words)
            hint = f"{nearest} {fix}" if nearest.endswith("?") else fix
            return self.add_fault(key, f"{shown} is none of its words", hint, node.line)
        try:
            return kind.parse(text)
        except ValueError as error:
            subject = f"{shown}: " if kind.quoted and not kind.secret else ""
            return self.add_fault(key, f"{subject}{error}", fix, node.line)

    def _read_boolean(self, node: Node, key: str) -> bool | Invalid:
        if isinstance(node, Scalar):
            text = self.resolve_text(node, key)
            if isinstance(text, Invalid):
                return INVALID
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            # YAML 1.1 took these words for booleans; this language does not guess.
            word = {"on": "true", "yes": "true", "off": "false", "no": "false"}.get(text)
            if word is not None:
                return self.add_fault(key, f"{text} is a word in YAML 1.2", f"write {word}", node.line)
        return self.add_fault(key, "it is neither true nor false", "write true or false", node.line)

    def read_list(self, node: Node, hint: Any, key: str, fallback: Any = MISSING) -> Any:
        if isinstance(node, Scalar) and node.is_null and fallback is not MISSING:
            return fallback
        if not isinstance(node, Listing):
            # A single value where a list belongs is the usual mistake: show it as the list of one. A secret is not
            # shown.
            shown = f"[{quote_text(node.text)}]" if isinstance(node, Scalar) and "${" not in node.text else "[…]"
            return self.add_fault(key, "a list belongs here", f"write {shown}", node.line)
        values = []
        for index, item in enumerate(node.items):
            self.lines[f"{key}[{index}]"] = item.line
            value = self.read_value(item, hint, f"{key}[{index}]")
            # A faulty item is left out, and from here on the indexes of the value are not those of the text.
            if isinstance(value, Invalid):
                self.incomplete_lists.add(key)
            else:
                values.append(value)
        return tuple(values)

    def read_mapping(self, node: Node, key_hint: Any, hint: Any, key: str) -> Any:
        if isinstance(node, Scalar) and node.is_null:
            return MappingProxyType({})
        if not isinstance(node, Table):
            return self.add_fault(key, "this is not a mapping", "write NAME: … below it, or {}", node.line)
        values: dict[str, Any] = {}
        for entry in self.known_entries(node, key, None):
            name = self.read_name(entry, key_hint, key)
            value = self.read_value(entry.value, hint, f"{key}.{quote_text(entry.key)}")
            if not isinstance(value, Invalid) and not isinstance(name, Invalid):
                values[name] = value
        return MappingProxyType(values)

    def read_name(self, entry: Entry, hint: Any, key: str) -> str | Invalid:
        """The key of an entry whose name the policy chooses (an upstream's, a tier's)."""
        kinds = [mark for mark in get_args(hint)[1:] if isinstance(mark, ValueType)]
        try:
            return str(kinds[0].parse(entry.key)) if kinds else entry.key
        except ValueError as error:
            path = f"{key}.{quote_text(entry.key)}"
            return self.add_fault(
                path, f"{quote_text(entry.key)}: {error}", f"name it with {kinds[0].hint}", entry.line
            )


def _field_default(item: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else MISSING
