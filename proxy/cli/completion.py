"""`completion bash|zsh|fish`: a shell's completion of our commands, made of the usage text.

The forms of a command are read once: options with their values (`--by user|model|route`), words to choose from
(`block|unblock`), and what else follows (FILE, DIR). What stands after `--` is the app's own command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TextIO

from proxy.cli.arguments import parse_arguments
from proxy.cli.output import write_text
from proxy.cli.usage import COMMANDS, SUMMARIES
from proxy.errors import UsageError


@dataclass(slots=True)
class CommandWords:
    """What may follow a command.

    Attributes:
        options: each with the word for its value, empty if it takes none: `FILE`, `24h`, `user|model|route`.
        choices: the first words to choose from: the actions of `ctl`.
        positional: `FILE`, `DIR` or empty.
    """

    does: str
    options: dict[str, str] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    positional: str = ""


# An option, and its value if one follows without a bracket between: `--by user|model|route`, `-H 'K: V'`.
_OPTION = re.compile(r"(?<![\w-])(--?[A-Za-z][\w-]*)(?: ([A-Z]+|[a-z0-9|]+|'[^']*'))?")


def read_forms(command: str) -> CommandWords:
    """The words of a command, out of its forms."""
    found = CommandWords(SUMMARIES.get(command, COMMANDS[command][0][1]))
    for form, _ in COMMANDS[command]:
        # What follows `--` is not ours.
        ours = re.split(r"\[?-- ", form)[0]
        found.options |= {name: "" if value.startswith("'") else value for name, value in _OPTION.findall(ours)}
        rest = re.sub(r"[\[\]…]", " ", _OPTION.sub(" ", ours)).split()
        rest = [word for word in rest if word != command]
        if rest and rest[0].islower():
            found.choices += rest[0].split("|")
        found.positional = found.positional or next((word for word in rest if word in ("FILE", "DIR")), "")
    return found


def run_completion(argv: Sequence[str], stdout: TextIO) -> int:
    """Exit status 0. Raises UsageError."""
    arguments = parse_arguments("completion", argv)
    if arguments.remainder or len(arguments.positionals) != 1 or arguments.positionals[0] not in SHELLS:
        raise UsageError(f"completion: name your shell, one of {', '.join(SHELLS)}")
    write_text(stdout, SHELLS[arguments.positionals[0]]())
    return 0


def _all_words() -> dict[str, CommandWords]:
    return {command: read_forms(command) for command in COMMANDS}


def _proposals(value: str) -> str:
    """The words to choose from for an option's value; none where it stands for one (`R`), not is one (`24h`)."""
    return "" if value.isupper() else value.replace("|", " ")


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ── bash ─────────────────────────────────────────────────────────────────────────────────────


def format_bash() -> str:
    """For /usr/share/bash-completion/completions, or `eval "$(outrigger completion bash)"`."""
    cases = "".join(_bash_case(command, words) for command, words in _all_words().items())
    return f"""# bash completion for outrigger; made by `outrigger completion bash`
_outrigger() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} index
    local commands="{" ".join(COMMANDS)} --help --version" words= files=
    COMPREPLY=()
    # What follows -- is the app's own command.
    for ((index = 1; index < COMP_CWORD; index++)); do
        if [[ ${{COMP_WORDS[index]}} == -- ]]; then
            if ((index == COMP_CWORD - 1)); then
                mapfile -t COMPREPLY < <(compgen -c -- "$current")
            else
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
            fi
            return
        fi
    done
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}    *) return ;;
    esac
    [[ -n $words ]] && mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    if [[ -n $files && $current != -* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen "$files" -- "$current")
    fi
}}
complete -F _outrigger outrigger
"""


def _bash_case(command: str, words: CommandWords) -> str:
    values = ""
    for option, value in words.options.items():
        if value:
            answer = "files=-f" if value == "FILE" else f'words="{_proposals(value)}"'
            values += f"            {option}) {answer} ;;\n"
    files = {"FILE": " files=-f", "DIR": " files=-d"}.get(words.positional, "")
    rest = f'words="{" ".join((*words.choices, *words.options))}"{files}'
    if not values:
        return f"    {command}) {rest} ;;\n"
    return f"    {command})\n        case $previous in\n{values}            *) {rest} ;;\n        esac ;;\n"


# ── zsh ──────────────────────────────────────────────────────────────────────────────────────


def format_zsh() -> str:
    """For a folder of `fpath`, as the file `_outrigger`."""
    described = "\n".join(f"    {_quote(f'{name}:{words.does}')}" for name, words in _all_words().items())
    cases = "".join(_zsh_case(command, words) for command, words in _all_words().items())
    return f"""#compdef outrigger
# zsh completion for outrigger; made by `outrigger completion zsh`
_outrigger() {{
  local -a commands=(
{described}
  )
  # What follows -- is the app's own command.
  local at=${{words[(i)--]}}
  if (( at < CURRENT )); then
    shift $at words
    (( CURRENT -= at ))
    _normal
    return
  fi
  if (( CURRENT == 2 )); then
    _describe command commands
    _arguments '--help[how it is used]' '--version[which version it is]'
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
{cases}  esac
}}
if [[ $funcstack[1] == _outrigger ]]; then _outrigger "$@"; else compdef _outrigger outrigger; fi
"""


def _zsh_case(command: str, words: CommandWords) -> str:
    parts = []
    for option, value in words.options.items():
        after = "" if not value else ":file:_files" if value == "FILE" else f":value:({_proposals(value)})"
        parts.append(_quote(option + after))
    if words.choices:
        parts.append(_quote(f"1:action:({' '.join(words.choices)})"))
    if words.positional:
        parts.append(_quote("1:file:_files" if words.positional == "FILE" else "1:folder:_files -/"))
    return f"  {command}) _arguments {' '.join(parts) or _quote('*: :')} ;;\n"


# ── fish ─────────────────────────────────────────────────────────────────────────────────────


def format_fish() -> str:
    """For a folder of completions, as the file `outrigger.fish`."""
    lines = [
        "# fish completion for outrigger; made by `outrigger completion fish`",
        "# What follows -- is the app's own command.",
        "function __outrigger_before_dashes; not contains -- -- (commandline -opc); end",
        "complete -c outrigger -n __outrigger_before_dashes -f",
        "complete -c outrigger -n __fish_use_subcommand -l help -d 'how it is used'",
        "complete -c outrigger -n __fish_use_subcommand -l version -d 'which version it is'",
    ]
    for command, words in _all_words().items():
        lines.append(f"complete -c outrigger -n __fish_use_subcommand -a {command} -d {_quote(words.does)}")
        seen = f"'__outrigger_before_dashes; and __fish_seen_subcommand_from {command}'"
        for option, value in words.options.items():
            name = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            after = "" if not value else " -rF" if value == "FILE" else f" -xa {_quote(_proposals(value))}"
            lines.append(f"complete -c outrigger -n {seen} {name}{after}")
        if words.choices:
            lines.append(f"complete -c outrigger -n {seen} -a {_quote(' '.join(words.choices))}")
        if words.positional:
            lines.append(f"complete -c outrigger -n {seen} -F")
    return "\n".join(lines) + "\n"


SHELLS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {"bash": format_bash, "zsh": format_zsh, "fish": format_fish}
)
