"""An app's folder, read with bounds: a folder that is not an app's must not take minutes."""

from __future__ import annotations

import codecs
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

LARGEST = 512 * 1024  # bytes of a file that is looked at
LONGEST = 2_000  # characters of a line of it: what is longer is data, or was made by a program
WHOLE = 32 * 1024 * 1024  # bytes of all sources together
NESTED = 100  # brackets within brackets that a file of settings may have
TABLES = 200  # dots in a line of TOML: its parser takes the square of them
MOST = 2000  # files
DEEPEST = 6
SKIPPED = {
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


class Texts(yaml.SafeLoader):
    """Reads every plain value as the text that it is, but for null and merged keys: a date that there is not, or a
    number of 5,000 digits, is no reason to stop."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as its base has it
        first: [one for one in resolvers if one[0].endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def is_deep(text: str) -> bool:
    """Whether brackets stand in one another deeper than in any file that a person wrote."""
    depth = 0
    for mark in _BRACKETS.findall(text):
        depth += 1 if mark in "[{" else -1 if depth else 0
        if depth > NESTED:
            return True
    return False


_BRACKETS = re.compile(r"[\[\]{}]")


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._texts: dict[str, str] = {}  # each file is looked at for several things

    def has(self, name: str) -> bool:
        return os.path.isfile(self.path / name)

    def text(self, name: str) -> str:
        """The text of a file, long lines cut; empty where there is none that can be read."""
        if name not in self._texts:
            text = self._whole(name)
            if len(text) > LONGEST:
                text = "\n".join(line[:LONGEST] for line in text.split("\n"))
            self._texts[name] = text
        return self._texts[name]

    def _whole(self, name: str) -> str:
        try:
            if not self.has(name):  # a FIFO would be waited for
                return ""
            with open(self.path / name, "rb") as file:
                return _decoded(file.read(LARGEST))
        except (OSError, ValueError):  # ValueError: a name with NUL in it
            return ""

    def json(self, name: str) -> Mapping[str, object]:
        try:
            found = json.loads(self._whole(name))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def toml(self, name: str) -> Mapping[str, object]:
        try:
            text = self._whole(name)
            deep = is_deep(text) or any(line.count(".") > TABLES and len(line) > LONGEST for line in text.split("\n"))
            return {} if deep else tomllib.loads(text)
        except (ValueError, RecursionError):  # ValueError: of dates and numbers, too
            return {}

    def yaml(self, name: str) -> Mapping[str, object]:
        try:
            text = self._whole(name)
            found = None if is_deep(text) else yaml.load(text, Texts)  # noqa: S506, a SafeLoader itself
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):  # of tags such as !!timestamp
            return {}
        return found if isinstance(found, dict) else {}

    def sources(self, *suffixes: str) -> Iterator[tuple[str, str]]:
        """The names (relative) and texts of source files, those of tests and other people's packages left out."""
        count = whole = 0
        for top, folders, files in os.walk(self.path):
            here = Path(top).relative_to(self.path)
            folders[:] = sorted(
                name
                for name in folders
                if name not in SKIPPED and not name.startswith(".") and not (Path(top) / name / "pyvenv.cfg").exists()
            )
            if len(here.parts) >= DEEPEST:
                folders.clear()
            for name in sorted(files):
                if not name.endswith(suffixes) or name.startswith("test_"):
                    continue
                text = self.text(str(here / name))
                count, whole = count + 1, whole + len(text)
                if count > MOST or whole > WHOLE:
                    return
                yield str(here / name), text


def _decoded(data: bytes) -> str:
    """UTF-8, or what its first bytes say (PowerShell's `>` writes UTF-16), with the line ends of text."""
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    coding = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
    return data.decode(coding, errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def part(table: Mapping[str, object], *keys: str) -> Mapping[str, object]:
    """A table within a table, empty where there is none."""
    for key in keys:
        found = table.get(key)
        table = found if isinstance(found, dict) else {}
    return table
