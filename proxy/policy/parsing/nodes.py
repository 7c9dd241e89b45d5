"""A policy's text as a tree that remembers its lines. A scalar stays text here: the schema says what it means."""

from __future__ import annotations

from dataclasses import dataclass

NULL_WORDS = ("", "~", "null", "Null", "NULL")
MAX_DEPTH = 40  # the language itself is eight deep
# Far above any policy that a person wrote; it is against texts that multiply themselves by aliases.
MAX_NODES = 50_000  # aliases counted as often as they are named


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `plain` says that it has no quotes: only then can it be null."""

    line: int
    text: str
    plain: bool = True

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in NULL_WORDS


@dataclass(frozen=True, slots=True)
class Listing:
    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping. `line` is that of the first key; keys may occur twice, which the reader reports."""

    line: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    line: int
    value: Node


Node = Scalar | Listing | Table


class Unreadable(Exception):
    """The text is not a tree. `problem` and `fix` are one clause each; `line` counts from 1."""

    def __init__(self, line: int, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem
        self.fix = fix


def join_surrogates(text: str, line: int) -> str:
    """The text with its surrogate pairs joined. Raises Unreadable for half of a pair."""
    if text.isascii():
        return text
    try:
        # In UTF-16 a pair is one character: the halves are written as they are and read as one.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise Unreadable(
            line, "half a surrogate pair stands alone", "write the whole character or both halves"
        ) from None
