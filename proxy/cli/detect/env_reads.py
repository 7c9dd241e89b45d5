"""What the code of an app reads of its environment: the variable, what holds without it, and where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from proxy.cli.detect.project_files import Folder

# os.environ[...], os.environ.get(...), os.getenv(...), decouple's config(...), environs' env(...), env.str(...)
_PYTHON = re.compile(
    r"\b(?:environ\[|environ\.get\(|getenv\(|config\(|env(?:\.\w+)?\()\s*['\"]([A-Za-z][A-Za-z0-9_]*)['\"]"
    r"(?:\s*,\s*(?:default\s*=\s*)?(?:['\"]([^'\"\n]*)['\"]|(\d+)))?"
)
_NODE = re.compile(
    r"\bprocess\.env(?:\.|\[['\"])([A-Z][A-Z0-9_]*)(?:['\"]\])?(?:\s*(?:\|\||\?\?)\s*(?:['\"`]([^'\"`\n]*)['\"`]|(\d+)))?"
)
_FIELD = re.compile(
    r"^[ \t]+([A-Za-z][A-Za-z0-9_]*)\s*:\s*[^=\n]+?(?:=\s*(?:Field\()?(?:['\"]([^'\"\n]*)['\"]|(\d+)).*)?$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """`default` is empty where nothing, or neither plain text nor a number, is written."""

    name: str
    default: str
    where: str  # FILE:LINE


def find_settings(folder: Folder) -> list[Setting]:
    return list(_all(folder))


def _all(folder: Folder) -> Iterator[Setting]:
    for name, text in folder.sources(".py"):
        for hit in _PYTHON.finditer(text):
            yield _setting(name, text, hit)
        if "BaseSettings" in text:  # pydantic: a field is a variable of that name, in either case
            for hit in _FIELD.finditer(text):
                yield _setting(name, text, hit)
    for name, text in folder.sources(".js", ".ts", ".mjs", ".cjs"):
        for hit in _NODE.finditer(text):
            yield _setting(name, text, hit)


def _setting(name: str, text: str, hit: re.Match[str]) -> Setting:
    return Setting(hit[1].upper(), hit[2] or hit[3] or "", f"{name}:{text.count(chr(10), 0, hit.start()) + 1}")
