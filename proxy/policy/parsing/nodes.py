"""A policy's text as a tree that remembers its lines; what each scalar means is the schema's to say."""

from __future__ import annotations

from dataclasses import dataclass

NULL_WORDS = ("", "~", "null", "Null", "NULL")
MAX_DEPTH = 40  # the language itself is eight deep
MAX_NODES = 50_000  # aliases counted as often as they are named


@dataclass(frozen=True, slots=True)
class Scalar:
    """`plain` scalars are those without quotes: only they can be null."""

    line: int
    text: str
    plain: bool = True

    @property
    def null(self) -> bool:
        return self.plain and self.text in NULL_WORDS


@dataclass(frozen=True, slots=True)
class Listing:
    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """`line` is that of the first key; keys may occur twice, which the reader finds fault with."""

    line: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    line: int
    value: Node


Node = Scalar | Listing | Table


class Unreadable(Exception):
    """The text is not a tree: one clause with its line and what to do."""

    def __init__(self, line: int, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem
        self.fix = mend


def join_surrogates(text: str, line: int) -> str:
    """The text with its surrogate pairs joined; Unreadable for half of one."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise Unreadable(
            line, "half a surrogate pair stands alone", "write the whole character or both halves"
        ) from None
