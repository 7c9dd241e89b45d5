"""What to start: the words after `--`. A shell may have put the public port into them; there the private one
belongs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.app.shell_command import SHELL, exec_last_command, main_program

# The options that a port follows: --port, --bind, -p, -b, -P, and --server.port (Streamlit), --http-port,
# --ServerApp.port (Jupyter) and their like; --listen (waitress), --http and --http-socket (uWSGI).
_LONG = r"--(?:[\w-]+[._-])?(?:port|bind)|--listen|--http(?:-socket)?"
_OPTION = re.compile(rf"(?:{_LONG}|-[pPb])")
_JOINED = re.compile(rf"((?:{_LONG})=|-[pPb]=?)(?=.)")


@dataclass(frozen=True, slots=True)
class Command:
    """What is executed, `argv`, and how it is shown in the log, `display`. `replaced_words` says which words were
    changed; `is_shell_line`: the shell in `argv` was put there by us."""

    argv: tuple[str, ...]
    display: str
    replaced_words: tuple[str, ...] = ()
    is_shell_line: bool = False

    @property
    def main_program(self) -> str:
        """The program to look for on PATH; of a shell line, the one that stays as the process."""
        if self.argv[0] == SHELL and len(self.argv) == 3:
            return main_program(self.argv[2]) or SHELL
        return self.argv[0]

    @property
    def programs(self) -> tuple[str, ...]:
        """The words that may be programs; of a shell line, all of them."""
        if self.argv[0] == SHELL and len(self.argv) == 3:
            return tuple(word for word in re.split(r"[\s;&|()'\"]+", self.argv[2]) if word)
        return (self.argv[0],)


def parse_command(words: Sequence[str], public: int | None, private: int) -> Command:
    """The command to start. One word with spaces in it is a shell line; in it only a port in digits is replaced, since
    `$PORT` is for the shell to expand.

    The public port is replaced by the private one after a port option (--port, --server.port, -p, --bind, -b and their
    like, in any spelling) and in HOST:PORT; no other word is touched.
    """
    if len(words) == 1 and re.search(r"\s", words[0].strip()):
        line, replaced = _replace_in_line(words[0].strip(), public, private)
        return Command((SHELL, "-c", exec_last_command(line)), line, replaced, is_shell_line=True)
    argv, replaced = _replace_in_words(words, public, private)
    return Command(tuple(argv), shlex.join(argv), replaced)


def _replace_in_words(words: Sequence[str], public: int | None, private: int) -> tuple[list[str], tuple[str, ...]]:
    out: list[str] = []
    replaced: list[str] = []  # as "before → after"
    before = ""
    for at, word in enumerate(words):
        new = _replace_port_in_word(word, before, public, private) if at and public else word
        if new != word:
            replaced.append(f"{word} → {new}")
        out.append(new)
        before = word
    return out, tuple(replaced)


def _replace_port_in_word(word: str, before: str, public: int | None, private: int) -> str:
    if _OPTION.fullmatch(before):
        return _replace_port(word, public, private)
    if found := _JOINED.match(word):
        return found[1] + _replace_port(word[found.end() :], public, private)
    if re.fullmatch(rf"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+):{public}", word):
        return _replace_port(word, public, private)
    return word


def _replace_port(value: str, public: int | None, private: int) -> str:
    """In a port, or in an address that ends with one; in a shell line it may be quoted."""
    return re.sub(rf"(^|[:'\"]){public}(?=['\"]?$)", rf"\g<1>{private}", value)


def _replace_in_line(line: str, public: int | None, private: int) -> tuple[str, tuple[str, ...]]:
    """As `_replace_in_words`, inside a shell line, whose spaces and quotes stay as they are."""
    if not public:
        return line, ()
    replaced: list[str] = []
    pieces = re.split(r"(\s+)", line)
    before = ""
    for at in range(0, len(pieces), 2):
        word = pieces[at]
        bare = word.strip("'\"")
        new = _replace_port_in_word(bare, before, public, private) if at else bare
        if new != bare:
            replaced.append(f"{bare} → {new}")
            pieces[at] = word.replace(bare, new)
        before = bare
    return "".join(pieces), tuple(replaced)
