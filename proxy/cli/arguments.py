"""A command's line, taken apart: options with values, options alone, words, and what stands after `--`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.errors import UsageError


@dataclass(slots=True)
class Line:
    """`options` has the values of each in order, an empty text for one that takes none; `rest` is None without `--`."""

    options: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    rest: list[str] | None = None

    def last(self, option: str) -> str | None:
        return self.options.get(option, [None])[-1]


def parse(command: str, argv: Sequence[str], *, valued: Sequence[str] = (), alone: Sequence[str] = ()) -> Line:
    """`--name value` and `--name=value` are the same. Raises UsageError, which begins with the command's name
    where there is one."""
    line = Line()
    left = list(argv)
    prefix = f"{command}: " if command else ""
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            line.rest = left
            return line
        if not word.startswith("-"):
            line.words.append(word)
        elif word in alone:
            line.options.setdefault(word, []).append("")
        elif name in valued:
            if not equals and left and left[0] != "--":
                value = left.pop(0)
            if not value:
                raise UsageError(f"{prefix}{name} needs a value")
            line.options.setdefault(name, []).append(value)
        else:
            known = [*valued, *alone]
            raise UsageError(f"{prefix}`{word}` is not known; there is {_listed(known)}")
    return line


def _listed(names: Sequence[str]) -> str:
    *most, last = names or ("no option",)
    return f"{', '.join(most)} and {last}" if most else last
