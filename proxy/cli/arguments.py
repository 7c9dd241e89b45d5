"""The arguments of one command: options with and without values, positionals, and what stands after `--`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.errors import UsageError


@dataclass(slots=True)
class Arguments:
    """A parsed command line.

    Attributes:
        options: the values of each option in their order; an empty text for an option that takes none.
        positionals: the words that are no options and no option's value.
        remainder: what stands after `--`, None without it.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    positionals: list[str] = field(default_factory=list)
    remainder: list[str] | None = None

    def last_value(self, option: str) -> str | None:
        """The value that counts if an option was given several times."""
        return self.options.get(option, [None])[-1]


def parse_arguments(
    command: str, argv: Sequence[str], *, with_value: Sequence[str] = (), flags: Sequence[str] = ()
) -> Arguments:
    """Parse `argv`; `with_value` and `flags` are the options that are known. `--name value` and `--name=value` are the
    same. Raises UsageError, whose text begins with `command` unless that is empty."""
    arguments = Arguments()
    left = list(argv)
    prefix = f"{command}: " if command else ""
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        # What follows is the app's command, its options included.
        if word == "--":
            arguments.remainder = left
            return arguments
        if not word.startswith("-"):
            arguments.positionals.append(word)
        elif word in flags:
            arguments.options.setdefault(word, []).append("")
        elif name in with_value:
            # `--policy -- COMMAND` lacks a value; `--` is never one.
            if not equals and left and left[0] != "--":
                value = left.pop(0)
            if not value:
                raise UsageError(f"{prefix}{name} needs a value")
            arguments.options.setdefault(name, []).append(value)
        else:
            known = [*with_value, *flags]
            raise UsageError(f"{prefix}`{word}` is not known; there is {_join_names(known)}")
    return arguments


def _join_names(names: Sequence[str]) -> str:
    *most, last = names or ("no option",)
    return f"{', '.join(most)} and {last}" if most else last
