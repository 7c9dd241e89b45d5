"""Shell lines: what only a shell can run, and when its last command can take the place of the shell.

A signal that is sent to a shell reaches nobody else: the shell ends, or waits until its command has ended. `exec`
before the last simple command of a line changes nothing else, since nothing follows (POSIX.1-2024, Shell & Utilities,
section 2.9.1.4 and `exec`): the app is then the process that was started, with its own status and signals.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

SHELL = "/bin/sh"
SHELLS = frozenset(("sh", "ash", "bash", "busybox", "dash", "fish", "ksh", "ksh93", "mksh", "yash", "zsh"))
KEYWORDS = frozenset(
    (
        "!", "{", "}", "if", "then", "elif", "else", "fi", "for", "while", "until", "do", "done", "case", "esac",
        "select", "function", "time", "[[", "]]", "coproc",
    )
)  # fmt: skip
# Commands without a program of their own, or whose program would not do the same.
BUILTINS = frozenset(
    (
        ".", ":", "[", "alias", "bg", "break", "builtin", "cd", "command", "continue", "declare", "dirs", "echo",
        "eval", "exit", "export", "false", "fc", "fg", "getopts", "hash", "help", "history", "jobs", "kill", "let",
        "local", "mapfile", "popd", "printf", "pushd", "pwd", "read", "readarray", "readonly", "return", "set",
        "shift", "shopt", "source", "suspend", "test", "times", "trap", "true", "type", "typeset", "ulimit", "umask",
        "unalias", "unset", "wait",
    )
)  # fmt: skip
_NAMED = re.compile(r"[A-Za-z_]\w*=")
_ASSIGNED = re.compile(r"(?:[A-Za-z_]\w*=(?:'[^']*'|\"[^\"]*\"|\\.|[^\s'\"\\])*\s+)*")
_WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|\\.|[^\s'\"\\])+")


def exec_last_command(line: str) -> str:
    """The line with `exec` before its last command if that is a simple one, else the line as it is."""
    parts = list(_split_commands(line))
    words = [_first_word(line[start:end]) for start, end in parts]
    # Inside a compound command nothing is surely the last one, and a trap needs its shell to stay.
    if not parts or any(word in KEYWORDS or word == "trap" for word, _ in words):
        return line
    word, at = words[-1]
    # A builtin has no program; a variable may expand to a builtin, or to nothing.
    if not word or word == "exec" or word in BUILTINS or "$" in word or _NAMED.match(word):
        return line
    at += parts[-1][0]
    return f"{line[:at]}exec {line[at:]}"


def main_program(line: str) -> str:
    """The program of the last command of a list; of any other line, its first word."""
    for start, end in reversed(list(_split_commands(line))):
        word, at = _first_word(line[start:end])
        if word == "exec":
            word, _ = _first_word(line[start + at + len(word) : end])
        if word in KEYWORDS:
            break
        if word not in BUILTINS:
            return _unquote(word)
    found = re.search(r"[^\s;&|<>()`'\"]+", line)
    return found[0] if found is not None else ""


def is_shell(pid: int, argv0: str, proc: Path = Path("/proc")) -> bool:
    """Whether a process is a shell now; it may have become something else by `exec`."""
    try:
        name = os.readlink(proc / str(pid) / "exe")
    except OSError:
        name = argv0
    return os.path.basename(name) in SHELLS


def _first_word(command: str) -> tuple[str, int]:
    """A command's first word after its assignments, as written, and its position; an empty one if there is none."""
    lead = len(command) - len(command.lstrip())
    assigned = _ASSIGNED.match(command, lead)
    at = assigned.end() if assigned is not None else lead
    word = _WORD.match(command, at)
    return (word[0], at) if word is not None else ("", at)


def _unquote(word: str) -> str:
    return word.replace("'", "").replace('"', "").replace("\\", "")


def _split_commands(line: str) -> Iterator[tuple[int, int]]:
    """The commands of a list (`a && b; c`), each by its start and end. None if the line is anything else: a pipe, a job
    in the background, a subshell, a here-document, a substitution, or a quote that is not closed."""
    found: list[tuple[int, int]] = []
    start = at = 0
    while at < len(line):
        char = line[at]
        if char == "\\":
            at += 2
        elif char in "'\"":
            at = _closing_quote(line, at)
            if at < 0:
                return
        elif char in "()`" or line.startswith(("<<", "$("), at) or _is_comment(line, at):
            return
        elif line.startswith(("&&", "||"), at):
            found.append((start, at))
            start = at = at + 2
        elif char in ";\n":
            found.append((start, at))
            start = at = at + 1
        elif char == "|" or (char == "&" and line[at - 1 : at] not in ("<", ">")):
            return
        else:
            at += 1
    found.append((start, len(line)))
    yield from (part for part in found if line[slice(*part)].strip())


def _closing_quote(line: str, at: int) -> int:
    """The position after the quote that closes the one at `at`; -1 if none does, or if a command is substituted
    inside."""
    quote, at = line[at], at + 1
    while at < len(line):
        if line[at] == quote:
            return at + 1
        if quote == '"':
            if line[at] == "\\":
                at += 1
            elif line[at] == "`" or line.startswith("$(", at):
                return -1
        at += 1
    return -1


def _is_comment(line: str, at: int) -> bool:
    return line[at] == "#" and (at == 0 or line[at - 1] in " \t\n;&|")
