"""An app's folder, read with bounds: a folder that is not an app's must not take minutes."""

from __future__ import annotations

import codecs
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

LARGEST = 512 * 1024  # bytes of a file that is looked at
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


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, name: str) -> bool:
        return os.path.isfile(self.path / name)

    def text(self, name: str) -> str:
        """The text of a file; empty where there is none that can be read."""
        try:
            if not self.has(name):  # a FIFO would be waited for
                return ""
            with open(self.path / name, "rb") as file:
                return _decoded(file.read(LARGEST))
        except (OSError, ValueError):  # ValueError: a name with NUL in it
            return ""

    def json(self, name: str) -> Mapping[str, object]:
        try:
            found = json.loads(self.text(name))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def toml(self, name: str) -> Mapping[str, object]:
        try:
            return tomllib.loads(self.text(name))
        except tomllib.TOMLDecodeError:
            return {}

    def yaml(self, name: str) -> Mapping[str, object]:
        try:
            found = yaml.safe_load(self.text(name))
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    def sources(self, *suffixes: str) -> Iterator[tuple[str, str]]:
        """The names (relative) and texts of source files, those of tests and other people's packages left out."""
        count = 0
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
                count += 1
                if count > MOST:
                    return
                yield str(here / name), self.text(str(here / name))


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
