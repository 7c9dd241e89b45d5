"""Reading an app's folder within bounds: `init` may be pointed at any folder, and must neither take minutes nor end
with a traceback."""

from __future__ import annotations

import codecs
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

MAX_FILE_BYTES = 512 * 1024  # bytes of a file that is looked at
MAX_LINE_LENGTH = 2_000  # characters of a line of it: what is longer is data, or was made by a program
MAX_TOTAL_LENGTH = 32 * 1024 * 1024  # bytes of all sources together
MAX_NESTING = 100  # brackets within brackets that a file of settings may have
MAX_TOML_DOTS = 200  # in a line of TOML: the time that its parser takes grows with their square
MAX_FILES = 2000  # files
MAX_DEPTH = 6
SKIPPED_FOLDERS = {
    "node_modules",
    "__pycache__",
    "site-packages",
    "venv",
    "env",
    "dist",
    "build",
    "migrations",
    "tests",
    "test",
}


class PlainTextLoader(yaml.SafeLoader):
    """Reads every plain value but null and merged keys as text: a date that does not exist, or a number of 5,000
    digits, is no reason to stop."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as its base has it
        first: [one for one in resolvers if one[0].endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def is_too_nested(text: str) -> bool:
    """Whether brackets are nested deeper than in any file that a person wrote."""
    depth = 0
    for mark in _BRACKETS.findall(text):
        depth += 1 if mark in "[{" else -1 if depth else 0
        if depth > MAX_NESTING:
            return True
    return False


_BRACKETS = re.compile(r"[\[\]{}]")


class Folder:
    """An app's folder. What cannot be read is as if it were empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._texts: dict[str, str] = {}  # each file is looked at for several things

    def has_file(self, name: str) -> bool:
        return os.path.isfile(self.path / name)

    def read_text(self, name: str) -> str:
        """The text of a file, long lines cut; empty if there is none that can be read."""
        if name not in self._texts:
            text = self._read_whole(name)
            # Patterns that look behind and ahead would take minutes over a line of a megabyte.
            if len(text) > MAX_LINE_LENGTH:
                text = "\n".join(line[:MAX_LINE_LENGTH] for line in text.split("\n"))
            self._texts[name] = text
        return self._texts[name]

    def _read_whole(self, name: str) -> str:
        try:
            if not self.has_file(name):  # a FIFO would be waited for
                return ""
            with open(self.path / name, "rb") as file:
                return _decode(file.read(MAX_FILE_BYTES))
        except (OSError, ValueError):  # ValueError: a name with NUL in it
            return ""

    def read_json(self, name: str) -> Mapping[str, object]:
        try:
            found = json.loads(self._read_whole(name))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def read_toml(self, name: str) -> Mapping[str, object]:
        try:
            text = self._read_whole(name)
            # tomllib goes down at each bracket, and its time grows with the square of the dots in a key.
            deep = is_too_nested(text) or any(
                line.count(".") > MAX_TOML_DOTS and len(line) > MAX_LINE_LENGTH for line in text.split("\n")
            )
            return {} if deep else tomllib.loads(text)
        except (ValueError, RecursionError):  # ValueError: of dates and numbers, too
            return {}

    def read_yaml(self, name: str) -> Mapping[str, object]:
        try:
            text = self._read_whole(name)
            found = None if is_too_nested(text) else yaml.load(text, PlainTextLoader)  # noqa: S506, a SafeLoader itself
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):  # of tags such as !!timestamp
            return {}
        return found if isinstance(found, dict) else {}

    def source_files(self, *suffixes: str) -> Iterator[tuple[str, str]]:
        """The names (relative) and texts of source files, those of tests and other people's packages left out."""
        count = whole = 0
        for top, folders, files in os.walk(self.path):
            here = Path(top).relative_to(self.path)
            # In place: os.walk goes into what is left. Sorted, so that every run finds the same file first.
            folders[:] = sorted(
                name
                for name in folders
                if name not in SKIPPED_FOLDERS
                and not name.startswith(".")
                and not (Path(top) / name / "pyvenv.cfg").exists()
            )
            if len(here.parts) >= MAX_DEPTH:
                folders.clear()
            for name in sorted(files):
                if not name.endswith(suffixes) or name.startswith("test_"):
                    continue
                text = self.read_text(str(here / name))
                count, whole = count + 1, whole + len(text)
                if count > MAX_FILES or whole > MAX_TOTAL_LENGTH:
                    return
                yield str(here / name), text


def _decode(data: bytes) -> str:
    """UTF-8, or what its first bytes say (PowerShell's `>` writes UTF-16), with the line ends of text."""
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    # The mark decides; without one, bytes that are not UTF-8 are replaced and the rest can still be read.
    coding = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
    return data.decode(coding, errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def location_of(name: str, text: str, hit: re.Match[str]) -> str:
    """FILE:LINE of a match in the text of a file."""
    return f"{name}:{text.count(chr(10), 0, hit.start()) + 1}"


def get_table(table: Mapping[str, object], *keys: str) -> Mapping[str, object]:
    """A table within a table, empty if there is none."""
    for key in keys:
        found = table.get(key)
        table = found if isinstance(found, dict) else {}
    return table
