"""YAML text to nodes, from the parser's events: no tags, no implicit types, and aliases are counted.

PyYAML implements YAML 1.1, where `on` is true; here every scalar stays text, and the schema reads it as YAML 1.2 does.
Aliases are bounded since a few nested ones can stand for billions of nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from proxy.policy.parsing.json import is_json, parse_json
from proxy.policy.parsing.nodes import (
    MAX_DEPTH,
    MAX_NODES,
    Entry,
    Listing,
    Node,
    Scalar,
    Table,
    Unreadable,
    join_surrogates,
)

MAX_TEXT_CHARS = 1 << 20

# libyaml's scanner if PyYAML was built with it: ten times as fast, and lazy like PyYAML's own.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_document(text: str) -> Node | None:
    """The tree of a policy's text, JSON or YAML; None if it is empty. Raises Unreadable."""
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_TEXT_CHARS:
        raise Unreadable(1, "it is longer than 1 MiB", "write a shorter policy")
    # Before libyaml sees them: its own message for such a character has no usable line.
    bad = _UNPRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise Unreadable(line, f"it has the character U+{ord(bad[0]):04X}", "take the character out")
    # JSON first: every JSON text should be YAML, but PyYAML fails on some.
    if is_json(text):
        return parse_json(text)
    try:
        return _Composer(yaml.parse(text, Loader=_LOADER)).compose()
    except yaml.MarkedYAMLError as error:
        raise _describe_yaml_error(error) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # ValueError: an escape such as "\UFFFFFFFF", which the scanner does not check.
        raise Unreadable(1, f"it is not YAML ({' '.join(str(error).split())[:120]})", "write YAML") from None


def _describe_yaml_error(error: yaml.MarkedYAMLError) -> Unreadable:
    mark = error.problem_mark or error.context_mark
    problem = " ".join((error.problem or "it cannot be read").split())
    if "nesting depth" in problem:  # PyYAML from 6.0.4 on has a bound of its own
        return Unreadable(mark.line + 1 if mark else 1, "it is nested too deeply", f"nest at most {MAX_DEPTH} levels")
    context = ""
    if error.context:
        since = f" from line {error.context_mark.line + 1}" if error.context_mark else ""
        context = f" {' '.join(error.context.split())}{since}"
    fix = "indent with spaces, close what is open, and quote values with ': ', ' #' or * & ! % in them, and ${…} in { }"
    return Unreadable(mark.line + 1 if mark else 1, f"it is not YAML: {problem}{context}", fix)


def _line_of(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


@dataclass(slots=True)
class _Composer:
    events: Iterator[yaml.Event]
    count: int = 0
    anchors: dict[str, tuple[Node, int] | None] = field(default_factory=dict)

    def compose(self) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in self.events:
            line = _line_of(event)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Unreadable(line, "a second document begins", "write one document")
            elif isinstance(event, yaml.NodeEvent):
                root = self._compose_node(event, 1)
        return root

    def _compose_node(self, event: yaml.Event, depth: int) -> Node:
        line = _line_of(event)
        if depth > MAX_DEPTH:
            raise Unreadable(line, "it is nested too deeply", f"nest at most {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._resolve_alias(event.anchor or "", line)
        anchor = getattr(event, "anchor", None)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise Unreadable(line, f"it has the tag {tag[:60]!r}", "leave the tag out")
        if anchor is not None:
            self.anchors[anchor] = None  # known, but not complete: an alias to it from inside would never end
        before = self.count
        self._count_nodes(1, line)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            # The style of a scalar without quotes is "" from libyaml and None from PyYAML.
            node = Scalar(line, join_surrogates(event.value, line), plain=not event.style)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Listing(line, tuple(self._compose_items(depth)))
        else:
            node = Table(line, tuple(self._compose_entries(depth)))
        if anchor is not None:
            self.anchors[anchor] = (node, self.count - before)
        return node

    def _compose_items(self, depth: int) -> Iterator[Node]:
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                return
            yield self._compose_node(event, depth + 1)

    def _compose_entries(self, depth: int) -> Iterator[Entry]:
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                return
            line = _line_of(event)
            key = self._compose_node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise Unreadable(line, "a key is a list or a mapping", "write a word before the colon")
            # Tools that know YAML 1.1 merge here; silently reading it as a key would lose what the author meant.
            if key.text == "<<" and key.plain:
                raise Unreadable(line, "<< merges, which YAML 1.2 does not know", "write the keys out")
            yield Entry(key.text, line, self._compose_node(next(self.events), depth + 1))

    def _resolve_alias(self, anchor: str, line: int) -> Node:
        if anchor not in self.anchors:
            raise Unreadable(line, f"no anchor &{anchor[:60]} stands before this alias", "write the value out")
        known = self.anchors[anchor]
        if known is None:
            raise Unreadable(line, f"*{anchor[:60]} stands inside what it names", "write the value out")
        # Each use of an alias counts as all the nodes that it stands for, so a text cannot multiply itself.
        node, size = known
        self._count_nodes(size, line)
        return node

    def _count_nodes(self, size: int, line: int) -> None:
        self.count += size
        if self.count > MAX_NODES:
            raise Unreadable(line, "it has too many values", f"write at most {MAX_NODES}, aliases followed")
