"""JSON text to nodes. YAML parsers cannot read all of JSON: tabs, `\\/`, surrogate pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

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

# Punctuation, a string, or the rest: numbers and words, which stay text until the schema reads them.
_TOKEN = re.compile(r'[ \t\r\n]*(?:([{}\[\],:])|("(?:[^"\\]|\\.)*")|([^\s{}\[\],:"]+))', re.DOTALL)


def is_json(text: str) -> bool:
    """Whether the text is a JSON object or array; others are read as YAML."""
    if not text.lstrip(" \t\r\n").startswith(("{", "[")):
        return False
    # The whole text decides: a YAML flow mapping begins with a brace as well.
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(text: str) -> Node:
    """The nodes of a text that `is_json`. Raises Unreadable when it is too deep or too large."""
    return _Parser(text).next_node(1)


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = self._scan_tokens(text)
        self.count = 0

    @staticmethod
    def _scan_tokens(text: str) -> Iterator[tuple[str, int]]:
        line, position = 1, 0
        while (match := _TOKEN.match(text, position)) is not None:
            # The line of the token itself, not of the blanks before it.
            start = match.end() - len(match[0].lstrip(" \t\r\n"))
            line += text.count("\n", position, start)
            yield match[0].lstrip(" \t\r\n"), line
            position = match.end()

    def next_node(self, depth: int) -> Node:
        word, line = next(self.tokens)
        return self._parse_node(word, line, depth)

    def _parse_node(self, word: str, line: int, depth: int) -> Node:
        self.count += 1
        # Before it goes down: these methods call each other, so the depth bounds their stack.
        if depth > MAX_DEPTH:
            raise Unreadable(line, "it is nested too deeply", f"nest at most {MAX_DEPTH} levels")
        if self.count > MAX_NODES:
            raise Unreadable(line, "it has too many values", f"write at most {MAX_NODES}")
        if word == "{":
            return self._parse_table(line, depth)
        if word == "[":
            return self._parse_list(line, depth)
        # In quotes `null` is a text, without quotes it is no value.
        if word.startswith('"'):
            return Scalar(line, join_surrogates(json.loads(word), line), plain=False)
        return Scalar(line, word)

    def _parse_table(self, line: int, depth: int) -> Table:
        entries = []
        # No errors to expect: `is_json` had json.loads read the whole text before.
        word, at = next(self.tokens)
        while word != "}":
            if word == ",":
                word, at = next(self.tokens)
            key = join_surrogates(json.loads(word), at)
            next(self.tokens)  # the colon
            entries.append(Entry(key, at, self.next_node(depth + 1)))
            word, at = next(self.tokens)
        return Table(line, tuple(entries))

    def _parse_list(self, line: int, depth: int) -> Listing:
        items = []
        word, at = next(self.tokens)
        while word != "]":
            if word == ",":
                word, at = next(self.tokens)
            items.append(self._parse_node(word, at, depth + 1))
            word, at = next(self.tokens)
        return Listing(line, tuple(items))
